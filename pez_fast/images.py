"""Reading of images from files, arrays and bytes; an image that cannot be read gives one sentence."""

from __future__ import annotations

import io
import os
import re
import time
import warnings
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar, overload
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps, features

from pez_fast.version import __version__

SUFFIXES = frozenset(".png .jpg .jpeg .webp .gif .bmp .tif .tiff .ppm .pgm .pbm".split())
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB as RGB
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000", "TIFF": "libtiff"}  # parts of Pillow
_ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")
_CHANNELS = (1, 3, 4)
MAX_DOWNLOAD = 100_000_000  # bytes of an image from the web
_ANSWER_SECONDS, _ALL_SECONDS = 20, 120  # for the server's next bytes, and for the whole image
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_HANDLERS: tuple[type[request.BaseHandler], ...] = (
    request.ProxyHandler,
    request.HTTPHandler,
    request.HTTPSHandler,
    request.HTTPRedirectHandler,
    request.HTTPDefaultErrorHandler,
    request.HTTPErrorProcessor,
    request.UnknownHandler,
)
T = TypeVar("T")


def load_image(source: Any) -> Image.Image:
    """Returns an image as RGB, upright as its EXIF data says, with white behind its transparent parts.

    Values of 16 bits and floats (from 0 to 1, to 255 or to 65535) are scaled to 8 bits. The first frame stands for an
    animation, and a warning says so.

    Args:
        source: a PIL image, a path, an http or https address, an open binary file, the bytes of a file, or an array or
            tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, uint8 or floats from 0 to 1.

    Raises:
        ValueError: the image cannot be downloaded or read, is truncated, or has more pixels than PEZ_FAST_MAX_PIXELS
            (89,478,485).
        TypeError: `source` has another type.
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "the given image")
    if hasattr(source, "detach") and hasattr(source, "numpy"):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source), "the given array")
    if hasattr(source, "read"):
        source = source.read()
    if not isinstance(source, (str, os.PathLike, bytes)):
        kinds = "a PIL image, a path, an address, an open file, bytes, or an array or tensor of pixels"
        raise TypeError(f"image must be {kinds}; got {type(source).__name__}")
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    if isinstance(source, str) and _ADDRESS.match(source) and not _exists(source):
        source = _downloaded(source)
    if not isinstance(source, bytes):
        if not _exists(source):
            kind = "is a folder, not a file" if name and os.path.isdir(source) else "does not exist or is no file"
            raise ValueError(f"image {name or repr(name)} {kind}")
        return _decoded(source, name)
    if not source:
        raise ValueError(f"image {name} is empty: 0 bytes")
    return _decoded(io.BytesIO(source), name)


def _exists(path: str | os.PathLike) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _downloaded(address: str) -> bytes:
    """Returns what lies at an http or https address.

    Raises:
        ValueError: it cannot be had; one sentence says why.
    """
    scheme = address.split(":")[0].lower()
    if scheme not in ("http", "https"):
        hint = "give the file's path" if scheme == "file" else "save it as a file"
        raise ValueError(
            f"image {address} has an address of the kind {scheme}://; http and https are read, else {hint}"
        )
    opener = request.OpenerDirector()  # one that follows no link to a file or to ftp
    for kind in _HANDLERS:
        opener.add_handler(kind())
    parts, end = bytearray(), time.monotonic() + _ALL_SECONDS
    try:
        escaped = quote(address.split("#")[0], safe="%/:=&?~+!$,;'@()*[]")
        asked = request.Request(escaped, headers={"User-Agent": f"pez_fast/{__version__}"})
        with opener.open(asked, timeout=_ANSWER_SECONDS) as answer:
            while part := answer.read1(1 << 16):
                parts += part
                if len(parts) > MAX_DOWNLOAD:
                    raise OSError(f"it has more than {MAX_DOWNLOAD // 10**6} MB")
                if time.monotonic() > end:
                    raise OSError(f"it takes more than {_ALL_SECONDS} seconds")
            if answer.length:
                raise OSError("the connection ended too early")
    except HTTPError as error:
        phrase = str(error.reason).split("\n")[0]
        raise ValueError(f"image {address} cannot be downloaded: the server says {error.code} {phrase}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        reason = getattr(reason, "strerror", None) or reason or type(reason).__name__
        raise ValueError(f"image {address} cannot be downloaded: {reason}") from None
    return bytes(parts)


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


def _decoded(file: Any, name: str) -> Image.Image:
    limit = _max_pixels()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked here
            opened = Image.open(file, formats=_formats())
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name, limit)) from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"image {name} is {_unreadable(file)}") from None
    except (OSError, ValueError) as error:  # a damaged header can have values that Pillow refuses
        raise ValueError(f"image {name} cannot be read: {error}") from None
    with opened:
        if opened.width * opened.height > limit:
            raise ValueError(_too_large(name, limit))
        if getattr(opened, "is_animated", False) and opened.format in _ANIMATIONS:
            warnings.warn("an image is animated: the first frame of each such image is taken", stacklevel=3)
        return _rgb(opened, name)


def _formats() -> tuple[str, ...]:
    """The formats of `FORMATS` that this Pillow was built with, and HEIF where a plugin reads it."""
    known = [f for f in FORMATS if f not in _OPTIONAL or f == "TIFF" or features.check(_OPTIONAL[f])]
    return (*known, *(["HEIF"] if "HEIF" in Image.OPEN else []))


def _unreadable(file: Any) -> str:
    """What a file is that Pillow does not open."""
    if isinstance(file, io.BytesIO):
        head = file.getvalue()[:12]
    else:
        with open(file, "rb") as opened:
            head = opened.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "in the format HEIF, which Pillow does not read (pip install pillow-heif and register its opener)"
    return f"in none of the formats {', '.join(_formats())}, or damaged"


def _max_pixels() -> int:
    text = os.environ.get("PEZ_FAST_MAX_PIXELS") or str(MAX_PIXELS)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"PEZ_FAST_MAX_PIXELS must be a positive integer; got {text!r}")
    limit = int(text)
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # Pillow refuses what has twice as many
    return limit


def _too_large(name: str, limit: int) -> str:
    return f"image {name} has more than {limit} pixels; PEZ_FAST_MAX_PIXELS=N sets another limit"


def _from_array(array: np.ndarray) -> Image.Image:
    """An array (H, W), (H, W, C) or (C, H, W), uint8 or floats from 0 to 1."""
    wanted = "image must be a uint8 or float array (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels"
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise ValueError(f"{wanted}; got shape {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("image must hold values from 0 to 1 where it is a float array; got others")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"{wanted}; got {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns the image as RGB on white; `name` stands for it in errors."""
    if 0 in image.size:
        raise ValueError(f"image {name} is empty: {image.size[0]} x {image.size[1]} pixels")
    try:
        image = ImageOps.exif_transpose(image)  # decodes the pixels
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            layered = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered).convert("RGB")
        if image.mode != "F" and not image.mode.startswith("I"):
            return image.convert("RGB")
        values = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image {name} cannot be read: {error}") from None
    return Image.fromarray(_eight_bits(values, name)).convert("RGB")


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Grey values (H, W) of 16 or 32 bits or floats, as uint8 by the smallest of the usual ranges that holds them."""
    low, high = float(values.min()), float(values.max())
    floats = np.issubdtype(values.dtype, np.floating)
    ranges = [65535.0] if values.dtype.itemsize == 2 else [1.0, 255.0, 65535.0] if floats else [255.0, 65535.0]
    top = next((r for r in ranges if 0 <= low and high <= r), None)
    if top is None or not np.isfinite(values).all():
        raise ValueError(f"image {name} has values from {low:g} to {high:g}; it must have them from 0 to 65535 at most")
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)
