"""Reading of images from files, arrays and bytes; an image that cannot be read gives one sentence."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
T = TypeVar("T")


def load_image(source: Any) -> Image.Image:
    """Returns an image as RGB, with white behind its transparent parts.

    Args:
        source: a PIL image, a path, the bytes of a file, or an array (H, W, 3) or (H, W) uint8.

    Raises:
        ValueError: the image cannot be read, is truncated, or has so many pixels that decoding it may exhaust memory.
        TypeError: `source` has another type.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "the given image")
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3):
            raise ValueError(f"image must be a uint8 array (H, W) or (H, W, 3); got {source.dtype} {source.shape}")
        return _rgb(Image.fromarray(source), "the given array")
    if not isinstance(source, (str, os.PathLike, bytes)):
        raise TypeError(f"image must be a PIL image, a path, bytes or a uint8 array; got {type(source).__name__}")
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ValueError(f"image {name} does not exist or is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
                return _rgb(opened, name)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"image {name} has more pixels than is safe to decode ({Image.MAX_IMAGE_PIXELS})") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"image {name} is in none of the formats {', '.join(FORMATS)}, or damaged") from None
    except OSError as error:
        raise ValueError(f"image {name} cannot be read: {error}") from None


@overload
def image_or_error(source: Any) -> Image.Image | str: ...
@overload
def image_or_error(source: Any, prepare: Callable[[Image.Image], T]) -> T | str: ...
def image_or_error(source: Any, prepare: Callable[[Image.Image], Any] | None = None) -> Any:
    """Returns `load_image(source)`, or the sentence of its error, so that one bad image does not end the others.

    Args:
        source: as `load_image`.
        prepare: a function to apply to the image, such as a model's `preprocess`, which returns (3, H, W). Its
            ValueError and TypeError become sentences too.
    """
    try:
        image = load_image(source)
        return image if prepare is None else prepare(image)
    except (ValueError, TypeError) as error:
        return str(error)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns the image as RGB on white; `name` stands for it in errors."""
    if 0 in image.size:
        raise ValueError(f"image {name} is empty: {image.size[0]} x {image.size[1]} pixels")
    try:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            layered = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered).convert("RGB")
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # convert() decodes the pixels
        raise ValueError(f"image {name} cannot be read: {error}") from None
