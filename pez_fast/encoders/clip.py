"""open_clip models as encoders of images, texts and prompts."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pez_fast.encoders.causal import filled_up
from pez_fast.encoders.precision import text_part
from pez_fast.encoders.text import TextEncoder, token_embedding, unit_features
from pez_fast.encoders.vocabulary import Vocabulary
from pez_fast.images import load_image
from pez_fast.table import TokenTable

BUNDLED = {"emoji": Path(__file__).parents[1] / "models" / "emoji"}
_TOGETHER = 16  # images or texts encoded at once: always as many, since how a library rounds depends on the shape


class ClipEncoder:
    """A frozen CLIP with its tokenizer and preprocessing.

    Args:
        model: an open_clip model; it is put in evaluation mode and its parameters are frozen.
        tokenizer: open_clip's tokenizer of that model.
        preprocess: PIL image -> (3, H, W) tensor.
        name: shown in results.
        known_ids: the tokens that the model was trained on, where that is known; the others are noise to it and are
            left out of the "stable" vocabulary.
    """

    def __init__(
        self, model: Any, tokenizer: Any, preprocess: Any, name: str = "custom", known_ids: Sequence[int] | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preprocess, self.name = tokenizer, preprocess, name
        self.vocabulary = Vocabulary(tokenizer, known_ids)
        self.embedding = token_embedding(model)
        self._tables: dict[tuple, TokenTable] = {}
        self._parts: dict[torch.dtype, Any] = {self.dtype: self.model}  # and its text part in other dtypes

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def context_length(self) -> int:
        return int(self.tokenizer.context_length)

    def table(self, vocabulary: str = "stable", banned: Sequence[str | int] = ()) -> TokenTable:
        """The tokens that may be learned, as what the embedding module puts out for them.

        Args:
            vocabulary: "stable": tokens that survive being written out and read again; "full": all but the special ones.
            banned: ids and words (a word bans every token that contains it).

        Raises:
            ValueError: an unknown vocabulary, a banned id outside it, or nothing left.
        """
        key = (vocabulary, tuple(banned))
        if key not in self._tables:
            with torch.no_grad():
                ids = torch.arange(self.embedding.num_embeddings, device=self.device)
                weight = torch.cat([self.embedding(part) for part in ids.split(8192)])
            if torch.equal(weight, self.embedding.weight):
                weight = self.embedding.weight
            allowed = self.vocabulary.allowed(vocabulary, banned, len(weight))
            self._tables[key] = TokenTable(weight, ~allowed.to(self.device))
        return self._tables[key]

    def encode_images(self, images: Sequence[Any]) -> Tensor:
        """Pictures (what `load_image` takes) -> (N, D) float32 unit features, each independent of the others."""
        parts = (images[start : start + _TOGETHER] for start in range(0, len(images), _TOGETHER))
        return torch.cat([self.encode_pixels([self.preprocess(load_image(image)) for image in part]) for part in parts])

    @torch.no_grad()
    def encode_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Preprocessed pictures, (3, H, W) each -> (N, D) float32 unit features, each independent of the others."""
        return _encoded(pixels, lambda part: self.model.encode_image(part.to(self.device, self.dtype)))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D) float32 unit features; a text longer than the context is cut as open_clip's tokenizer does."""
        return _encoded(self.tokenizer(list(texts)), lambda part: self.model.encode_text(part.to(self.device)))

    def text_encoder(
        self,
        prompt_len: int,
        prefix: str = "",
        suffix: str = "",
        truncate: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> TextEncoder:
        """An encoder of prompts of prompt_len learned tokens between two fixed texts; see `TextEncoder`.

        dtype: that the tower is run in, by default the model's; another one needs a copy of the tower, which is kept.
        """
        dtype = dtype or self.dtype
        if dtype not in self._parts:
            self._parts[dtype] = text_part(self.model, dtype)
        return TextEncoder(self._parts[dtype], self.vocabulary.template(prompt_len, prefix, suffix), truncate=truncate)

    def __repr__(self) -> str:
        return f"ClipEncoder({self.name!r}, {str(self.dtype).removeprefix('torch.')} on {self.device})"


def _encoded(inputs: Sequence[Tensor] | Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Unit features of each of the inputs, encoded in batches of one size."""
    features = []
    for start in range(0, len(inputs), _TOGETHER):
        part = torch.stack(list(inputs[start : start + _TOGETHER]))
        features.append(unit_features(encode(filled_up(part, _TOGETHER)))[: len(part)])
    return torch.cat(features)


def load_clip(
    name: str,
    pretrained: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> ClipEncoder:
    """Load a CLIP that open_clip can build.

    Args:
        name: a name of `open_clip.list_models()`, "hf-hub:owner/repo", "local-dir:folder", a folder's path, or "emoji",
            the small model that comes with this package.
        pretrained: for a name of open_clip's: a tag of its weights, or the path of a checkpoint.
        device: default CUDA where there is one, else the CPU.
        dtype: of the model's weights.

    Raises:
        ValueError: no such model, tag or file, or weights that cannot be had here.
        ImportError: open_clip cannot be imported; the message says what to install.
    """
    open_clip = _import_open_clip()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source, folder = name, None
    if name in BUNDLED:
        folder = BUNDLED[name]
    elif name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
    elif Path(name).is_dir():
        folder = Path(name)
    quick_gelu = False
    if pretrained is not None and (folder is not None or name.startswith("hf-hub:")):
        raise ValueError(f"pretrained={pretrained!r} does not go with name={name!r}, which brings its own weights")
    if folder is not None:
        source = f"local-dir:{folder}"
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"name={name!r} holds no open_clip_config.json")
    elif not name.startswith("hf-hub:"):
        quick_gelu = _check_name(open_clip, name, pretrained)
    try:
        with _quiet():
            model = open_clip.create_model(
                source,
                pretrained=pretrained,
                device=device,
                precision="fp32",
                force_quick_gelu=quick_gelu,
                require_pretrained=True,
            )
            tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:  # hub, file and network errors come in many classes; all mean that it cannot be had
        tag = f" with pretrained={pretrained!r}" if pretrained else ""
        raise ValueError(f"name={name!r}{tag} could not be downloaded or read: {_first_line(error)}") from error
    preprocess = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    known = None
    if folder is not None and (folder / "tokens.json").is_file():
        known = json.loads((folder / "tokens.json").read_text())["tokens_seen"]
    return ClipEncoder(
        model.to(dtype), tokenizer, preprocess, name if not pretrained else f"{name}/{pretrained}", known
    )


def _check_name(open_clip: Any, name: str, pretrained: str | None) -> bool:
    """Whether QuickGELU must be forced; raises where open_clip would only warn."""
    if name not in open_clip.list_models():
        close = [m for m in open_clip.list_models() if name.lower() in m.lower()][:5]
        hint = f"; did you mean {', '.join(close)}?" if close else "; open_clip.list_models() lists the names"
        raise ValueError(f"name={name!r} is no model of open_clip, no folder and no bundled model{hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"pretrained must be given for {name}: a checkpoint's path, or one of {', '.join(tags) or 'no tags'}; got None"
        )
    if Path(pretrained).is_file():
        return False
    config = open_clip.get_pretrained_cfg(name, pretrained)
    if not config:
        raise ValueError(
            f"pretrained={pretrained!r} is neither a file nor a tag of {name}; its tags are {', '.join(tags) or 'none'}"
        )
    built, wanted = bool(open_clip.get_model_config(name).get("quick_gelu")), bool(config.get("quick_gelu"))
    if built and not wanted:
        raise ValueError(
            f"pretrained={pretrained!r} was trained with GELU; use name={name.removesuffix('-quickgelu')!r}"
        )
    return wanted


def _import_open_clip() -> Any:
    try:
        import open_clip
    except Exception as error:
        if "torchvision" in str(error):
            raise ImportError(
                "open_clip cannot be imported because torchvision was built for another torch; "
                "install torch and torchvision together from the same source, both CUDA or both CPU builds"
            ) from error
        raise ImportError(
            f"open_clip cannot be imported ({_first_line(error)}); pip install 'open_clip_torch>=3,<5'"
        ) from error
    return open_clip


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip and the hub's client say much while they load; what matters of it is checked here and raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
