"""Language models of transformers as models that prompts are learned for: causal ones and encoder-decoders."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pez_fast._shared.installation import install_hint
from pez_fast._shared.rows import ROW_MULTIPLE
from pez_fast.models.arguments import checked_device, checked_dtype, checked_name, quiet
from pez_fast.models.embedded import EmbeddedModel
from pez_fast.models.fingerprint import text_digest, tokenizer_state, weights_digest
from pez_fast.models.hub import without_waiting
from pez_fast.models.language.runner import Runner
from pez_fast.models.reasons import load_failure, quoted
from pez_fast.models.sentence import in_dtype
from pez_fast.models.vocabulary import Vocabulary

BUNDLED_LM = {"reviews": Path(__file__).parents[2] / "assets" / "reviews"}


def load_lm(
    name: str, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32, revision: str | None = None
) -> LanguageModel:
    """Loads a language model of transformers (the extra "lm").

    Args:
        name: a folder that `save_pretrained` wrote, a name on the Hugging Face hub, such as "gpt2-large", or "reviews",
            the small model that comes with this package. Code that comes with a model is not run.
        device: default CUDA where there is one, else the CPU.
        dtype: the dtype of the model's weights.
        revision: a branch, tag or commit of the hub. Default: the main one.

    Returns:
        A frozen `LanguageModel`.

    Raises:
        ValueError: there is no such model, or it cannot be had here or be fed with embeddings; the sentence says why.
        ImportError: transformers cannot be imported; the message says what to install.
    """
    try:
        import transformers
        from transformers.utils import logging
    except Exception as error:  # a package built for another torch raises what it likes
        hint = f"({quoted(error)}); {install_hint('lm')}"
        raise ImportError(f"transformers cannot be imported {hint}") from error
    name, device = checked_name(name), checked_device(device)
    dtype = checked_dtype(dtype)
    folder = BUNDLED_LM.get(name) or (Path(name) if Path(name).is_dir() else None)
    if folder is not None and not (folder / "config.json").is_file():
        raise ValueError(f"name={name!r} holds no config.json, which every model of transformers has")
    bars = logging.is_progress_bar_enabled()
    if folder is not None:
        logging.disable_progress_bar()  # of reading files; downloads have their own
    source = str(folder or name)
    try:
        with quiet(), without_waiting():
            config = transformers.AutoConfig.from_pretrained(source, revision=revision)
            seq2seq = bool(config.is_encoder_decoder)
            cls = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision)
            model = cls.from_pretrained(source, revision=revision, dtype=dtype)
    except Exception as error:  # hub, file and network errors come in many classes; all mean that it cannot be had
        raise ValueError(f"name={name!r} could not be downloaded or read: {load_failure(error)}") from error
    finally:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    try:
        return LanguageModel(nn.Module.to(model, device), tokenizer, name)
    except ValueError as error:
        raise ValueError(f"name={name!r} cannot be used: {error}") from error


class LanguageModel(EmbeddedModel):
    """A frozen language model, causal or an encoder-decoder, with its tokenizer.

    The tokens that may be learned are those of the tokenizer that come back as themselves: no special tokens, no
    sentinels, and no rows of the table that have no token. The model's tables are neither changed nor resized.

    Args:
        model: a causal model or an encoder-decoder of transformers. It is put in evaluation mode and frozen.
        tokenizer: its tokenizer.
        name: the name that results show. Default: the one of the model's configuration.

    Attributes:
        is_encoder_decoder: whether an encoder reads the text and a decoder writes the label.

    Raises:
        TypeError: model or tokenizer lacks what is needed.
        ValueError: the model cannot be fed with embeddings, or no token can be learned.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        super().__init__()
        _check_parts(model, tokenizer)
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.embedding: nn.Embedding = model.get_input_embeddings()
        rows = self.embedding.weight.shape[0]
        known = sorted({i for i in tokenizer.get_vocab().values() if i < rows})
        self.vocabulary = Vocabulary(tokenizer, known)
        self._head, self._tail = _specials(tokenizer)
        self._runners: dict[torch.dtype, Runner] = {self.dtype: Runner(model)}
        self._check_fed()

    @property
    def context_length(self) -> int:
        """The number of tokens that the model reads, special ones included."""
        config = self.model.config.get_text_config()
        limit = self.tokenizer.model_max_length if self.is_encoder_decoder else None
        names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
        found = [int(v) for v in (limit, *(getattr(config, name, None) for name in names)) if v]
        return min([v for v in found if 0 < v < 10**9], default=1_000_000)

    @property
    def room(self) -> int:
        """The number of tokens that a text may have: texts that run together are padded, and must fit even so."""
        return self.context_length - ROW_MULTIPLE + 1

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text as the model reads it.

        The special tokens that the tokenizer puts before a text are there; those behind it only for an
        encoder-decoder, since a causal model goes on from where the text ends.
        """
        if not texts:
            return []
        plain = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [[*self._head, *ids, *self.tail] for ids in plain]

    @property
    def head(self) -> list[int]:
        """The special ids that stand before every text."""
        return self._head

    @property
    def tail(self) -> list[int]:
        """The special ids that stand behind every text that `tokenize` reads."""
        return self._tail if self.is_encoder_decoder else []

    def runner(self, dtype: torch.dtype | None = None) -> Runner:
        """Returns the model as it is run in a dtype; another one than its own needs a copy, which is kept."""
        dtype = dtype or self.dtype
        if dtype not in self._runners:
            self._runners[dtype] = Runner(in_dtype(copy.deepcopy(self.model), dtype))
        return self._runners[dtype]

    @torch.no_grad()
    def perplexity(self, texts: Sequence[str]) -> list[float]:
        """Returns the perplexity of each text: exp of the mean cross-entropy of its tokens from the second on.

        Raises:
            ValueError: the model is an encoder-decoder, which gives a text alone no probability.
        """
        if self.is_encoder_decoder:
            raise ValueError(f"the encoder-decoder {self.name} gives a text alone no probability")
        found = []
        for ids in self.tokenize(texts):
            whole = torch.tensor([ids], device=self.device)
            count = len(ids) - len(self._head)
            if count < 2:
                found.append(math.nan)
                continue
            nll = self.runner().token_nll(self.embedding(whole), whole[:, len(self._head) :])
            found.append(float(nll.mean().exp()))
        return found

    def fingerprint(self) -> dict[str, str]:
        """Returns what decides on the results: digests of weights, configuration and tokenizer, and the dtype."""
        state = tokenizer_state(self.tokenizer)
        return {
            "model's weights": weights_digest(self.model),
            "modules": text_digest(repr(self.model)),
            "tokenizer": text_digest(json.dumps([state, self._head, self._tail], sort_keys=True)),
            "model's dtype": str(self.dtype).removeprefix("torch."),
        }

    @torch.no_grad()
    def _check_fed(self) -> None:
        """Fed with the embeddings of ids, the model must give what it gives for the ids."""
        ids = torch.tensor([self.vocabulary.stable()[:5]], device=self.device)
        decoder = {"decoder_input_ids": ids[:, :1]} if self.is_encoder_decoder else {}
        try:
            expected = self.model(input_ids=ids, use_cache=False, **decoder).logits
            found = self.model(inputs_embeds=self.embedding(ids), use_cache=False, **decoder).logits
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"model cannot be fed with embeddings: {quoted(error)}") from error
        scale = expected.abs().max().clamp_min(1)
        if not (found - expected).abs().max() <= scale * torch.finfo(self.dtype).eps ** 0.5:
            raise ValueError("model looks at ids beside their embeddings, so that it cannot be fed with embeddings")

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {str(self.dtype).removeprefix('torch.')} on {self.device})"


def _check_parts(model: Any, tokenizer: Any) -> None:
    needed = ("config", "get_input_embeddings", "get_output_embeddings", "forward")
    missing = [name for name in needed if getattr(model, name, None) is None]
    if missing:
        raise TypeError(f"model must be a language model of transformers; {type(model).__name__} lacks {missing[0]}")
    if not callable(tokenizer) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(f"tokenizer must be one of transformers; got {type(tokenizer).__name__}")
    if not isinstance(model.get_input_embeddings(), nn.Embedding):
        raise ValueError(f"{type(model).__name__} has no table of token embeddings")
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no language-model head")


def _specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the special ids that the tokenizer puts before a text and behind it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    marked = tokenizer("a")["input_ids"]
    for start in range(len(marked) - len(plain) + 1):
        if marked[start : start + len(plain)] == plain:
            return marked[:start], marked[start + len(plain) :]
    return [], []
