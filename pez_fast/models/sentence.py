"""Sentence encoders of sentence-transformers as models that prompts are learned for."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pez_fast._shared.devices import device_from
from pez_fast._shared.installation import install_hint
from pez_fast._shared.linear import frozen_products
from pez_fast._shared.rows import ROW_MULTIPLE, run_alike
from pez_fast.engine import Outputs
from pez_fast.engine.memory import transformer_bytes
from pez_fast.functional import splice
from pez_fast.models.arguments import checked_name, quiet
from pez_fast.models.embedded import EmbeddedModel
from pez_fast.models.fingerprint import text_digest, tokenizer_state, weights_digest
from pez_fast.models.reasons import load_failure, quoted
from pez_fast.models.text_tower import unit_features
from pez_fast.models.vocabulary import Vocabulary, check_prompt_len, check_room


def load_sentence_encoder(
    name: str, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> SentenceEncoder:
    """Load a sentence encoder of sentence-transformers (the extra "sentence").

    Args:
        name: a folder that `SentenceTransformer.save` wrote, or a name on the Hugging Face hub, as "owner/repo".
        device: default CUDA where there is one, else the CPU.
        dtype: of the model's weights.

    Raises:
        ValueError: no such model, or one that cannot be had here or be fed with embeddings.
        ImportError: sentence_transformers cannot be imported; the message says what to install.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except Exception as error:  # a package built for another torch raises what it likes
        hint = f"({quoted(error)}); {install_hint('sentence')}"
        raise ImportError(f"sentence_transformers cannot be imported {hint}") from error
    name, device = checked_name(name), str(device_from(device))
    if Path(name).is_dir() and not (Path(name) / "modules.json").is_file():
        raise ValueError(f"name={name!r} holds no modules.json, which every sentence encoder has")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of reading files; downloads have their own
    try:
        with quiet():
            model = SentenceTransformer(str(name), device=device)
    except Exception as error:  # hub, file and network errors come in many classes; all mean that it cannot be had
        raise ValueError(f"name={name!r} could not be downloaded or read: {load_failure(error)}") from error
    finally:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    try:
        return SentenceEncoder(in_dtype(model, dtype), str(name))
    except ValueError as error:
        raise ValueError(f"name={name!r} cannot be used: {error}") from error


class SentenceEncoder(EmbeddedModel):
    """A frozen sentence encoder: texts and prompts to unit features.

    Every text is put before the model as `SentenceTransformer.encode` does it, with the model's default prompt
    (`default_prompt_name`) before it where it has one; that prompt is no part of a result's text.

    Args:
        model: a `sentence_transformers.SentenceTransformer`, or what does the same: a torch module from tokenised
            features to a dict with "sentence_embedding" (R, D), with `tokenizer`, `max_seq_length`, and `preprocess` or
            `tokenize`. The encoder puts it in evaluation mode and freezes its parameters.
        name: shown in results.

    Raises:
        TypeError: model lacks one of these.
        ValueError: the model has no token embedding, or several routes for queries and documents.
    """

    def __init__(self, model: Any, name: str = "custom") -> None:
        super().__init__()
        _check_parts(model)
        self.model, self.name = model.eval().requires_grad_(False), name
        for module in model.children():
            if hasattr(module, "unpad_inputs"):  # texts laid end to end have no rows to put embeddings into
                module.unpad_inputs = False
        prompt = getattr(model, "default_prompt_name", None)
        self.prompt: str = model.prompts[prompt] or "" if prompt else ""
        self.fed = _fed(model, self.features("a"))
        self.embedding: nn.Embedding = model.get_submodule(self.fed)
        self.vocabulary = Vocabulary(model.tokenizer)
        self._parts: dict[torch.dtype, Any] = {self.dtype: model}

    @property
    def context_length(self) -> int:
        """Tokens that the model reads of a text, special ones included."""
        return int(getattr(self.model, "max_seq_length", None) or 1_000_000)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D) float32 unit features (float64 where the model is), each independent of the others.

        A text longer than the context is cut as the model's tokenizer does.
        """
        read = [self.features(text) for text in texts]
        alike: dict[str, list[int]] = {}  # texts of one length share a batch, so that none is padded
        for k, features in enumerate(read):
            shapes = {name: v.shape if isinstance(v, Tensor) else v for name, v in features.items()}
            alike.setdefault(repr(shapes), []).append(k)
        found: dict[int, Tensor] = {}
        for numbers in alike.values():
            singly = self.dtype == torch.float64 and self.device.type == "cpu"  # as in `run_alike`
            size = 1 if singly else ROW_MULTIPLE
            for part in (numbers[k : k + size] for k in range(0, len(numbers), size)):
                filled = part + part[:1] * (size - len(part))  # always as many: see `ClipEncoder`
                joined = {
                    name: torch.cat([read[k][name] for k in filled]) if isinstance(value, Tensor) else value
                    for name, value in read[part[0]].items()
                }
                with frozen_products(self.device):
                    found.update(zip(part, unit_features(_pooled(self.model, joined)), strict=False))
        return torch.stack([found[k] for k in range(len(read))])

    def features(self, text: str) -> dict[str, Any]:
        """What the model is fed with for one text: tensors (1, S), "input_ids" int64 among them, and plain values."""
        if hasattr(self.model, "preprocess"):
            read = self.model.preprocess([text], prompt=self.prompt) if self.prompt else self.model.preprocess([text])
        else:
            read = self.model.tokenize([self.prompt + text])
        device = next(self.model.parameters()).device
        return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in read.items()}

    def bind(
        self, prompt_len: int, prefix: str = "", suffix: str = "", dtype: torch.dtype | None = None
    ) -> BoundSentence:
        """The model with prompt_len slots between two fixed texts; see `PromptModel`.

        dtype: that it is run in, by default its own; another one needs a copy, which is kept.

        Raises:
            ValueError: prompt_len is no positive integer; the prompt does not fit into the context; the tokenizer does
                not read a token as itself beside the fixed texts; the model looks at ids beside their embeddings.
        """
        check_prompt_len(prompt_len)
        before, probe, behind = self.vocabulary.around(prefix, suffix)
        text = self.vocabulary.framed([probe], "", "")
        own = self.features(text)["input_ids"].shape[1] - len(
            self.vocabulary.encode(text)
        )  # special ones, the model's prompt
        used = own + len(before) + prompt_len + len(behind)
        check_room(prompt_len, used, self.context_length)
        dtype = dtype or self.dtype
        if dtype not in self._parts:
            self._parts[dtype] = in_dtype(copy.deepcopy(self.model), dtype)
        other = next((i for i in self.vocabulary.stable() if i != probe), probe)
        read = [self.features(self.vocabulary.framed([i] * prompt_len, prefix, suffix)) for i in (probe, other)]
        slots = learned_slots([features["input_ids"][0] for features in read], probe, prompt_len)
        return BoundSentence(self, self._parts[dtype], read[0], slots, prefix, suffix)

    def fingerprint(self) -> dict[str, str]:
        """Returns what decides on the results: digests of weights, modules and tokenizer, and the dtype."""
        settings = [self.context_length, self.prompt, getattr(self.model, "truncate_dim", None)]
        return {
            "model's weights": weights_digest(self.model),
            "modules": text_digest(repr(self.model)),
            "tokenizer": text_digest(json.dumps([tokenizer_state(self.model.tokenizer), settings], sort_keys=True)),
            "model's dtype": str(self.dtype).removeprefix("torch."),
        }

    def __repr__(self) -> str:
        return f"SentenceEncoder({self.name!r}, {str(self.dtype).removeprefix('torch.')} on {self.device})"


class BoundSentence:
    """A sentence encoder around learned tokens: "features" (R, D) of unit length; see `BoundModel`.

    The model runs as it is, over the template's own tokens: without padding its mask is all ones. A hook on the module
    that makes the embeddings puts in the learned ones. A row's features do not depend on the others, to the bit: see
    `run_alike`.

    Args:
        part: the model in its dtype. template: what it is fed with, one row; ids in the slots are a filler.
        slots: (L,) int64, the learned tokens' positions.
    """

    def __init__(
        self, encoder: SentenceEncoder, part: Any, template: dict[str, Any], slots: Tensor, prefix: str, suffix: str
    ) -> None:
        self.encoder, self.part, self.prefix, self.suffix = encoder, part, prefix, suffix
        self.template, self.slots, self.embedding = template, slots, part.get_submodule(encoder.fed)
        weight, blocks = self.embedding.weight, getattr(getattr(part, "config", None), "num_hidden_layers", None) or 12
        length = template["input_ids"].shape[1]
        self.bytes_per_prompt = transformer_bytes(blocks, length, weight.shape[1], weight.dtype.itemsize)
        self._check_fed()

    def __call__(self, embeds: Tensor, ids: Tensor) -> Outputs:
        return {"features": unit_features(run_alike(embeds, self._run))}

    def _run(self, hard: Tensor) -> Tensor:
        def feed(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return splice(output.detach(), hard, self.slots)

        features = {
            name: value.expand(len(hard), *value.shape[1:]) if isinstance(value, Tensor) else value
            for name, value in self.template.items()
        }
        handle = self.embedding.register_forward_hook(feed)
        try:
            with frozen_products(hard.device):
                return _pooled(self.part, features)
        finally:
            handle.remove()

    def text(self, ids: Sequence[int]) -> str:
        return self.encoder.vocabulary.framed(ids, self.prefix, self.suffix)

    def from_text(self, texts: Sequence[str]) -> Outputs:
        return {"features": self.encoder.encode_texts(texts)}

    @torch.no_grad()
    def _check_fed(self) -> None:
        """Fed with the embeddings of other ids the model must give what it gives for these ids."""
        stable, whole = self.encoder.vocabulary.stable(), self.template["input_ids"].clone()
        ids = torch.tensor([stable[k % len(stable)] for k in range(len(self.slots))], device=self.slots.device)
        whole[:, self.slots] = ids
        expected = unit_features(_pooled(self.part, {**self.template, "input_ids": whole}))
        found = self(self.embedding(ids)[None], ids[None])["features"]
        if not (found - expected).abs().max() <= torch.finfo(self.embedding.weight.dtype).eps ** 0.5:
            raise ValueError("model looks at ids beside their embeddings, so that it cannot be fed with embeddings")


def _fed(model: Any, features: dict[str, Any]) -> str:
    """The name of the module that turns ids into embeddings: the first that is called with them."""
    called: list[str] = []
    names: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}

    def see(module: nn.Module, given: tuple) -> None:
        if given and given[0].tolist() == features["input_ids"].tolist():
            called.append(names[module])

    handles = [module.register_forward_pre_hook(see) for module in names]
    try:
        with torch.no_grad():
            model(dict(features))
    finally:
        for handle in handles:
            handle.remove()
    if called:
        return called[0]
    first = type(next(iter(model.children()), model)).__name__
    raise ValueError(f"model has no token embedding that can be fed: it begins with {first}")


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in a dtype, in place. What is not saved with it (rotary frequencies) keeps its own."""
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def _check_parts(model: Any) -> None:
    missing = [name for name in ("tokenizer", "modules", "state_dict") if getattr(model, name, None) is None]
    if not hasattr(model, "preprocess") and not hasattr(model, "tokenize"):
        missing.append("preprocess")
    if missing:
        raise TypeError(
            f"model must be a SentenceTransformer, or have {', '.join(missing)}; got {type(model).__name__}"
        )
    if any(type(module).__name__ in ("Router", "Asym") for module in model.modules()):
        raise ValueError("model has several routes (Router), for queries and documents; hand one route in as a model")


def _pooled(model: Any, features: dict[str, Any]) -> Tensor:
    """(R, D): the sentence embeddings, cut as the model's `truncate_dim` says."""
    return model(dict(features))["sentence_embedding"][:, : getattr(model, "truncate_dim", None)]


def learned_slots(read: Sequence[Tensor], probe: int, prompt_len: int) -> Tensor:
    """Where the ids (S,) of two texts that differ in the learned tokens alone differ: (L,) int64."""
    first, second = read
    slots = (first != second).nonzero()[:, 0] if len(first) == len(second) else first[:0]
    if len(slots) != prompt_len or int(slots[-1] - slots[0]) != prompt_len - 1 or bool((first[slots] != probe).any()):
        raise ValueError("the model's tokenizer reads learned tokens otherwise than its vocabulary says")
    return slots
