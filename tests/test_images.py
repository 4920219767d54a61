"""Reading an image gives the image, or one sentence that says why it cannot be read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pez_fast.images import image_or_error, load_image

SENTENCES = {
    "missing.png": "image missing.png does not exist or is no file",
    b"no image": "image the given bytes is in none of the formats PNG, JPEG, ",
    3: "image must be a PIL image, a path, an address, an open file, bytes, or an array or tensor of pixels; got int",
}


@pytest.mark.parametrize("source", SENTENCES)
def test_an_unreadable_image_is_a_sentence(source):
    for found in (image_or_error(source), image_or_error(source, np.asarray)):
        assert isinstance(found, str) and found.startswith(SENTENCES[source]) and "\n" not in found
    with pytest.raises((ValueError, TypeError)) as raised:
        load_image(source)
    assert str(raised.value) == image_or_error(source)


def test_a_readable_image_is_that_of_load_image(images, tmp_path: Path):
    images[0].save(tmp_path / "a.png")
    for source in (images[0], tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), np.asarray(images[0])):
        image = image_or_error(source)
        assert isinstance(image, Image.Image) and image.tobytes() == load_image(source).tobytes()
        assert image_or_error(source, np.asarray).tolist() == np.asarray(image).tolist()


def test_an_image_that_cannot_be_prepared_is_a_sentence(images):
    """One image so narrow that resizing leaves nothing of it must not end the others."""
    narrow = Image.new("RGB", (1, 1000))
    assert image_or_error(narrow, lambda image: image.resize((0, 32))) == "height and width must be > 0"
    with pytest.raises(ZeroDivisionError):  # a fault in the code is raised
        image_or_error(images[0], lambda image: 1 / 0)


GREY = np.linspace(0, 255, 12 * 10).reshape(12, 10).round().astype(np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


def file_of(image: Image.Image, suffix: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits, of 1, 3 or 4 channels, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def palette_with_hole() -> bytes:
    image = Image.fromarray(COLOUR).quantize(8)
    return file_of(image, "PNG", transparency=int(np.asarray(image)[0, 0]))


WIDE = GREY.astype(np.uint16) * 257
ALPHA = np.where(np.arange(120).reshape(12, 10) % 2, 255, 0).astype(np.uint8)
KINDS = {  # name: (a file or another source, the RGB values that it means, the most that they may differ)
    "16-bit grey PNG": (png16(WIDE[:, :, None]), GREY, 0),
    "16-bit grey TIFF": (file_of(Image.fromarray(WIDE), "TIFF"), GREY, 0),
    "16-bit RGB PNG": (png16(COLOUR.astype(np.uint16) * 257), COLOUR, 0),
    "16-bit RGBA PNG": (
        png16(np.dstack([COLOUR, ALPHA]).astype(np.uint16) * 257),
        np.where(ALPHA[:, :, None] > 0, COLOUR, 255),
        0,
    ),
    "32-bit integer TIFF": (file_of(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), GREY, 0),
    "float TIFF from 0 to 1": (file_of(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"), GREY, 0),
    "float TIFF from 0 to 255": (file_of(Image.fromarray(GREY.astype(np.float32)), "TIFF"), GREY, 0),
    "CMYK JPEG": (file_of(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=100), COLOUR, 40),
    "palette with transparency": (palette_with_hole(), None, 0),
    "black and white": (
        file_of(Image.fromarray(GREY).point(lambda v: 255 * (v > 99), "1"), "PNG"),
        255 * (GREY > 99),
        0,
    ),
    "AVIF": (file_of(Image.fromarray(COLOUR), "AVIF", quality=100, subsampling="4:4:4"), COLOUR, 30),
    "WebP": (file_of(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR, 0),
    "JPEG 2000": (file_of(Image.fromarray(COLOUR), "JPEG2000"), COLOUR, 0),
    "array (H, W, 4)": (np.dstack([COLOUR, ALPHA]), np.where(ALPHA[:, :, None] > 0, COLOUR, 255), 0),
    "array (C, H, W)": (np.moveaxis(COLOUR, 2, 0), COLOUR, 0),
    "array (1, H, W)": (GREY[None], GREY, 0),
    "float array": (COLOUR / 255, COLOUR, 0),
    "tensor (C, H, W)": (torch.from_numpy(COLOUR).permute(2, 0, 1) / 255, COLOUR, 0),
    "open file": (io.BytesIO(file_of(Image.fromarray(COLOUR), "PNG")), COLOUR, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read_as_what_it_shows(kind):
    source, values, tolerance = KINDS[kind]
    found = np.asarray(load_image(source)).astype(int)
    if kind == "palette with transparency":
        hole = np.asarray(Image.open(io.BytesIO(source)))
        assert (found[hole == hole[0, 0]] == 255).all() and (found[hole != hole[0, 0]] != 255).any()
        return
    expected = values if values.ndim == 3 else np.dstack([values] * 3)
    assert found.shape == expected.shape and abs(found - expected).max() <= tolerance
    assert abs(found - expected).mean() <= tolerance / 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_upright(orientation):
    upright = Image.fromarray(COLOUR)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's names of what EXIF asks for, turned back
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(stored, "PNG", exif=exif)
    assert np.array_equal(np.asarray(load_image(data)), COLOUR)


def test_the_first_frame_of_an_animation_is_taken_and_said():
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    data = file_of(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="the first frame of each such image is taken"):
        assert np.array_equal(np.asarray(load_image(data)), COLOUR)


def test_an_image_of_many_pixels_is_refused_unless_it_is_allowed(monkeypatch):
    data = file_of(Image.fromarray(COLOUR), "PNG")
    monkeypatch.setenv("PEZ_FAST_MAX_PIXELS", "100")
    sentence = "image the given bytes has more than 100 pixels; PEZ_FAST_MAX_PIXELS=N sets another limit"
    assert image_or_error(data) == sentence
    monkeypatch.setenv("PEZ_FAST_MAX_PIXELS", "120")
    assert load_image(data).size == (10, 12)
    monkeypatch.setenv("PEZ_FAST_MAX_PIXELS", "many")
    assert image_or_error(data) == "PEZ_FAST_MAX_PIXELS must be a positive integer; got 'many'"


ODD = {
    "negative floats": (
        Image.fromarray(GREY.astype(np.float32) - 9),
        "image the given image has values from -9 to 246",
    ),
    "not finite": (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "image the given image has values from nan"),
    "huge integers": (
        Image.fromarray(np.full((2, 2), 1 << 20, np.int32)),
        "image the given image has values from 1.04858e+06",
    ),
    "five channels": (np.zeros((7, 6, 5), np.uint8), "image must be a uint8 or float array"),
    "floats above 1": (np.full((4, 4, 3), 7.5), "image must hold values from 0 to 1 where it is a float array"),
    "int64": (np.zeros((4, 4, 3), np.int64), "image must be a uint8 or float array"),
    "HEIF": (b"\0\0\0\x18ftypheic" + bytes(40), "image the given bytes is in the format HEIF"),
    "empty": (np.zeros((0, 4, 3), np.uint8), "image the given array is empty: 4 x 0 pixels"),
    "a closed door": (b"", "image the given bytes is empty: 0 bytes"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_one_sentence(name):
    source, sentence = ODD[name]
    found = image_or_error(source)
    assert isinstance(found, str) and found.startswith(sentence) and "\n" not in found
