"""The text encoders of a pipeline, fed with the embeddings of learned tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pez_fast.functional import splice
from pez_fast.models.diffusion.pipeline import check_pipeline
from pez_fast.models.embedded import EmbeddedModel
from pez_fast.models.vocabulary import Vocabulary, check_prompt_len, check_room


@dataclass(frozen=True)
class OpenText:
    """A text with places for learned tokens.

    Attributes:
        text: the text, with a filler word in the places.
        slots: (L,) int64, the places among the ids that the tokenizer gives.
    """

    text: str
    slots: Tensor


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told of a text.

    Attributes:
        hidden: (1, S, D), the hidden states of the text.
        pooled: (1, P), the pooled text of pipelines that use one, else None.
    """

    hidden: Tensor
    pooled: Tensor | None


class FedText(EmbeddedModel):
    """The text encoders of a pipeline, which read learned tokens as embeddings.

    Texts pass through the pipeline's own `encode_prompt`; a hook on each encoder's embedding module puts the learned
    embeddings in. Where there are two encoders (Stable Diffusion XL), a learned token is one id for both, and its
    embedding is the one of the first encoder, followed by that of the second one. The second one is scaled by a power
    of two, which rounds nothing, so that both have about the same length and the same say in the projection.

    Args:
        pipeline: of diffusers, with a tokenizer and a text encoder, or with two of each that share a vocabulary.

    Raises:
        TypeError, ValueError: the pipeline cannot be fed; the message says why.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        check_pipeline(pipeline, "encode_prompt", "tokenizer", "text_encoder")
        self.pipeline = pipeline
        if getattr(pipeline, "text_encoder_3", None) is not None:
            raise ValueError("pipeline has three text encoders; one or two can be fed")
        both = getattr(pipeline, "text_encoder_2", None) is not None
        ends = ("", "_2") if both else ("",)
        self.tokenizers = [getattr(pipeline, f"tokenizer{end}") for end in ends]
        self.embeddings = [_embedding(getattr(pipeline, f"text_encoder{end}")) for end in ends]
        self.vocabulary = Vocabulary(self.tokenizers[0])
        self.scales = [1.0] * len(ends)
        if both:
            self._join()
        else:
            self.embedding = self.embeddings[0]

    def _join(self) -> None:
        """Makes one table and one vocabulary of two."""
        first, second = self.tokenizers
        if first.get_vocab() != second.get_vocab():
            raise ValueError("pipeline has two tokenizers with different vocabularies, so no token is one id for both")
        other = Vocabulary(second)
        self.vocabulary = Vocabulary(first, other.stable())
        self.vocabulary.special |= other.special
        weights = [embedding.weight.detach() for embedding in self.embeddings]
        lengths = [float(weight.float().norm(dim=-1).mean()) for weight in weights]
        ratio = torch.tensor(lengths[1] / lengths[0]).log2().round()
        self.scales[1] = float(2**ratio) if ratio.isfinite() else 1.0
        rows = min(len(weight) for weight in weights)
        joint = torch.cat([weights[0][:rows], (weights[1] / self.scales[1])[:rows].to(weights[0])], 1)
        self.embedding = nn.Embedding.from_pretrained(joint)

    @property
    def context_length(self) -> int:
        """The number of tokens that every text encoder reads."""
        return min(int(tokenizer.model_max_length) for tokenizer in self.tokenizers)

    def open_text(self, prompt_len: int, prefix: str = "", suffix: str = "") -> OpenText:
        """Returns a text with places for prompt_len learned tokens between two fixed texts.

        Raises:
            ValueError: prompt_len is no positive integer, or all of it does not fit into the context.
        """
        check_prompt_len(prompt_len)
        before, probe, _ = self.vocabulary.around(prefix, suffix)
        text = self.vocabulary.framed([probe] * prompt_len, prefix, suffix)
        inner = self.vocabulary.encode(text)
        starts = set()
        for tokenizer in self.tokenizers:
            read = tokenizer(text, verbose=False)["input_ids"]
            check_room(prompt_len, len(read), self.context_length)
            places = [k for k in range(len(read)) if read[k : k + len(inner)] == inner]
            starts |= {places[0] if places else -1}
        if len(starts) != 1 or -1 in starts:
            raise ValueError(f"prefix={prefix!r} and suffix={suffix!r} are not read alike by the pipeline's tokenizers")
        start = starts.pop() + len(before)
        return OpenText(text, torch.arange(start, start + prompt_len, device=self.device))

    def of_text(self, text: str) -> Condition:
        """Returns the condition of a text, as the pipeline itself reads it."""
        device = self.device
        found = self.pipeline.encode_prompt(
            prompt=[text], device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Condition(found[0], found[2] if len(found) > 2 else None)

    def of_embeds(self, embeds: Tensor, opened: OpenText) -> Condition:
        """Returns the condition of a text with learned tokens in its places; it is differentiable.

        Args:
            embeds: (1, L, d), their embeddings.
            opened: from `open_text`.
        """
        with self._fed(embeds, opened.slots):
            return self.of_text(opened.text)

    @contextmanager
    def _fed(self, embeds: Tensor, slots: Tensor) -> Iterator[None]:
        """Lets the embedding modules put out the learned embeddings in the slots."""
        widths = [embedding.weight.shape[1] for embedding in self.embeddings]
        if embeds.shape[-1] != sum(widths):
            raise ValueError(
                f"embeddings must have {' + '.join(map(str, widths))} dimensions for this pipeline; "
                f"got {embeds.shape[-1]}"
            )
        parts = embeds.split(widths, -1)
        handles = [
            module.register_forward_hook(_feeder(part * scale, slots))
            for module, part, scale in zip(self.embeddings, parts, self.scales, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _feeder(embeds: Tensor, slots: Tensor) -> Any:
    def feed(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return splice(output.detach(), embeds.to(output.dtype), slots)

    return feed


def _embedding(encoder: Any) -> nn.Embedding:
    """Returns the module that turns ids into embeddings."""
    found = encoder.get_input_embeddings() if hasattr(encoder, "get_input_embeddings") else None
    if not isinstance(found, nn.Embedding):
        raise ValueError(f"pipeline has a text encoder that cannot be fed with embeddings: {type(encoder).__name__}")
    return found
