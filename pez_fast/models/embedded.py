"""What every model with a table of token embeddings shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pez_fast.config import Vocabulary as Listed
from pez_fast.config import listed_words
from pez_fast.models.allowed import embedding_table
from pez_fast.models.vocabulary import Vocabulary
from pez_fast.table import TokenTable


class EmbeddedModel:
    """A frozen model that reads tokens through an embedding module.

    Attributes:
        embedding: that module.
        vocabulary: the tokens as text.
    """

    embedding: nn.Embedding
    vocabulary: Vocabulary

    def __init__(self) -> None:
        self._tables: dict[tuple, TokenTable] = {}

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def table(self, vocabulary: Listed = "stable", banned: Sequence[str | int] = ()) -> TokenTable:
        """Returns the tokens that may be learned, as what the embedding module puts out for them.

        Args:
            vocabulary: "stable": tokens that survive being written out and read again; "words": those of them that are
                whole English words; "full": all but the special tokens; a list of words or a file of them: those
                "stable" ones that are one of these words, in any case. A warning names words that no token is.
            banned: ids and words (a word bans every token that contains it).

        Raises:
            ValueError: an unknown vocabulary, a banned id outside it, or nothing left.
        """
        which = listed_words(vocabulary)
        key = (which, tuple(banned))
        if key not in self._tables:
            self._tables[key] = embedding_table(self.embedding, self.vocabulary, which, banned)
        return self._tables[key]
