"""Reading an image gives the image, or one sentence that says why it cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pez_fast.images import image_or_error, load_image

SENTENCES = {
    "missing.png": "image missing.png does not exist or is no file",
    b"no image": "image the given bytes is in none of the formats PNG, JPEG, ",
    3: "image must be a PIL image, a path, bytes or a uint8 array; got int",
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
