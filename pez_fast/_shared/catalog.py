"""Models by short names: what each is for, and what it costs. Plain data; nothing heavy is imported.

Sizes come from the parameters of open_clip's own configurations, counted on the "meta" device; `tests/test_catalog.py`
counts again. The checkpoints hold float32, 4 bytes for a parameter.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

DEFAULT_MODEL = "small"  # of the command line
_WEIGHTS = tuple(
    f"open_clip_{stem}" for stem in ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
)
_RUNTIME = 900_000_000  # bytes that Python, torch and open_clip take themselves, measured


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes:
        name: the short name.
        model, pretrained: what `open_clip` calls it.
        purpose: which image generator reads prompts with it, or whom it suits.
        repository: where its weights lie on the hub.
        parameters, text_parameters: of the model, and of its text tower with the table of tokens.
        width, layers: of the text tower.
        context: places that the tower runs over at any length; 0 if it runs over the prompt's own.
    """

    name: str
    model: str
    pretrained: str | None
    purpose: str
    repository: str | None
    parameters: int
    text_parameters: int
    width: int
    layers: int
    context: int = 0

    @property
    def download_bytes(self) -> int:
        """About the size of its checkpoint."""
        return 4 * self.parameters if self.repository else 0

    @property
    def memory_bytes(self) -> int:
        """About the most memory that loading it and learning one prompt take.

        That is the model in float32, its text tower in bfloat16 (three times where it is laid out for few rows), and
        what the libraries take.
        """
        return _RUNTIME + 4 * self.parameters + (2 if self.context else 6) * self.text_parameters

    @property
    def where(self) -> str:
        """The name that open_clip has for it, with its weights."""
        return f"{self.model} {self.pretrained}" if self.pretrained else self.model

    def is_here(self) -> bool:
        """Whether it needs no download: it is part of this package, or in the hub's cache."""
        if self.repository is None:
            return True
        folder = hub_cache() / f"models--{self.repository.replace('/', '--')}" / "snapshots"
        try:
            return any((snapshot / file).is_file() for snapshot in folder.iterdir() for file in _WEIGHTS)
        except OSError:
            return False


def _large(name: str, purpose: str) -> Entry:
    """OpenAI's ViT-L-14, which several generators share."""
    repository = "timm/vit_large_patch14_clip_224.openai"
    return Entry(name, "ViT-L-14", "openai", purpose, repository, 427_616_513, 123_650_305, 768, 12)


CATALOG = (
    Entry(
        "small",
        "ViT-B-32",
        "laion2b_s34b_b79k",
        "any laptop; the default",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        151_277_313,
        63_428_097,
        512,
        12,
    ),
    _large("sd15", "Stable Diffusion 1.x"),
    Entry(
        "sd21",
        "ViT-H-14",
        "laion2b_s32b_b79k",
        "Stable Diffusion 2.x; the paper's model",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        986_109_441,
        354_032_641,
        1024,
        24,
    ),
    _large("sdxl-l", "Stable Diffusion XL, first encoder"),
    Entry(
        "sdxl-g",
        "ViT-bigG-14",
        "laion2b_s39b_b160k",
        "Stable Diffusion XL, second encoder",
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        2_539_567_105,
        694_659_841,
        1280,
        32,
    ),
    _large("flux", "FLUX.1, its CLIP"),
    Entry(
        "siglip",
        "ViT-B-16-SigLIP",
        "webli",
        "SigLIP, base",
        "timm/ViT-B-16-SigLIP",
        203_155_970,
        110_271_746,
        768,
        12,
        64,
    ),
    Entry(
        "siglip-l",
        "ViT-SO400M-14-SigLIP-384",
        "webli",
        "SigLIP, large",
        "timm/ViT-SO400M-14-SigLIP-384",
        877_960_498,
        449_734_898,
        1152,
        27,
        64,
    ),
    Entry("emoji", "emoji", None, "trying it out: emoji on plain", None, 9_840_138, 7_143_809, 128, 4),
)

JOINT = {"sdxl": ("sdxl-l", "sdxl-g"), "sd3": ("sdxl-l", "sdxl-g")}  # generators with two CLIP encoders


def joint_names(model: str) -> tuple[str, ...]:
    """The encoders that a name of several stands for, such as "sdxl" or "sd15+sdxl-g"; none for any other name."""
    if "+" in model and not Path(model).exists():
        return tuple(model.split("+"))
    return JOINT.get(model, ())


def find(name: str) -> Entry | None:
    """The model with this short name."""
    return next((entry for entry in CATALOG if entry.name == name), None)


def entry_of(model: str, pretrained: str | None) -> Entry | None:
    """The entry of a short name, or of a name of open_clip's with these weights."""
    short = find(model)
    if short is not None and pretrained in (None, short.pretrained):
        return short
    return next((e for e in CATALOG if (e.model, e.pretrained) == (model, pretrained) and e.repository), None)


def tag_of(model: str) -> str | None:
    """The weights that the catalogue names for a name of open_clip's."""
    return next((entry.pretrained for entry in CATALOG if entry.model == model), None)


def close_names(name: str) -> list[str]:
    """Short names that somebody who wrote this may have meant."""
    names, plain = [entry.name for entry in CATALOG], "".join(c for c in name.lower() if c.isalnum())
    near = [n for n in names if len(plain) > 1 and (plain in n.replace("-", "") or n.replace("-", "") in plain)]
    return near or get_close_matches(name.lower(), names, 3, 0.6)


def names_here() -> list[str]:
    """Short names of the models that need no download."""
    return [entry.name for entry in CATALOG if entry.is_here()]


def hub_cache() -> Path:
    """The folder where the hub's client keeps what it downloads, by the same variables and in the same order."""
    variables = (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"))
    for variable, below in variables:
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable]), below).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(home), "huggingface", "hub")


def size_of(count: int) -> str:
    """A number of bytes as people say it, such as 610 MB or 4.0 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{round(count / 1e6, -1):.0f} MB"
