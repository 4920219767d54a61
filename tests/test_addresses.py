"""Images at http addresses, on stdin, and names that stand for no image."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image
from test_cli import complaint, here, run, tiny  # noqa: F401
from typer.testing import CliRunner

from pez_fast import images as reading
from pez_fast.cli import app
from pez_fast.images import load_image


class Site(BaseHTTPRequestHandler):
    """A few answers; `agents` holds who asked."""

    picture = b""
    agents: list[str] = []

    def do_GET(self) -> None:
        self.agents.append(self.headers["User-Agent"])
        moved = {"/moved": "/a.png", "/to-file": "file:///etc/hostname", "/round": "/round"}
        if self.path in moved:
            self.send_response(302)
            self.send_header("Location", moved[self.path])
            self.end_headers()
            return
        if self.path == "/gone":
            self.send_error(404)
            return
        body = b"x" * 5000 if self.path == "/large" else b"<html>" if self.path == "/page" else self.picture
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + (self.path == "/short") * 10))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        return


@pytest.fixture
def site(images, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine."""
    buffer = io.BytesIO()
    images[0].save(buffer, "PNG")
    Site.picture, Site.agents = buffer.getvalue(), []
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_image_is_read_from_an_address(site: str, images):
    for path in ("/a.png", "/moved", "/a b ü.png?x=1#part"):
        assert load_image(site + path).tobytes() == load_image(images[0]).tobytes()
    assert all(agent.startswith("pez_fast/") for agent in Site.agents)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/gone", "cannot be downloaded: the server says 404 Not Found"),
        ("/large", "cannot be downloaded: it has more than 0 MB"),
        ("/short", "cannot be downloaded: the connection ended too early"),
        ("/page", "is in none of the formats"),
        ("/to-file", "cannot be downloaded"),
        ("/round", "cannot be downloaded"),
    ],
)
def test_what_an_address_does_not_give_is_one_sentence(site, monkeypatch, path: str, sentence: str):
    monkeypatch.setattr(reading, "MAX_DOWNLOAD", 4500)
    with pytest.raises(ValueError) as caught:
        load_image(site + path)
    assert str(caught.value).startswith(f"image {site}{path} {sentence}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://127.0.0.1:1/x.png", "cannot be downloaded: Connection refused"),
        ("http://[x/y", "cannot be downloaded: "),
        ("http://", "cannot be downloaded: no host given"),
        ("file:///etc/hostname", "has an address of the kind file://; http and https are read, else give the file's"),
        ("s3://bucket/key.png", "has an address of the kind s3://; http and https are read, else save it as a file"),
    ],
)
def test_addresses_that_are_not_read(address: str, sentence: str):
    with pytest.raises(ValueError) as caught:
        load_image(address)
    assert str(caught.value).startswith(f"image {address} {sentence}")


def test_a_file_may_be_named_like_an_address(tmp_path: Path, images, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("http:/x").mkdir(parents=True)
    images[0].save("http:/x/y.png")
    assert load_image("http://x/y.png").size == images[0].size


def test_invert_and_score_take_addresses_and_stdin(site: str, tiny):  # noqa: F811
    quick = ("--steps", 2, "--prompt-len", 2, "--refine", 0)
    expected = run("invert", "a.png", *quick).stdout
    assert run("invert", f"{site}/a.png", *quick).stdout == expected
    given = CliRunner().invoke(app, [str(a) for a in ("invert", "-", *quick)], input=Path("a.png").read_bytes())
    assert (given.exit_code, given.stdout) == (0, expected)
    each = run("invert", "--each", "a.png", f"{site}/gone", *quick, code=1)
    assert "404" in each.stdout and expected.strip() in each.stdout
    assert f"{site}/a.png" in run("score", f"{site}/a.png", "a cat", "--json").stdout
    assert complaint("score", f"{site}/gone", "a cat").endswith("the server says 404 Not Found")


@pytest.mark.usefixtures("tiny")
def test_what_is_no_image_is_said_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: pytest.fail("loaded"))
    Path("folder.png").mkdir()
    Path("loop.png").symlink_to("loop.png")
    for command in (["invert"], ["invert", "--each"], ["score", "a cat"]):
        told = complaint(*command, "folder.png")
        assert told == (
            "image folder.png is a folder; `pez-fast batch folder.png --out DIR` learns a prompt for each image in it"
        )
        assert complaint(*command, "-", "-").startswith("- stands for the one image on stdin")
    assert complaint("invert", "-") == "image - is empty: 0 bytes came from stdin"
    assert complaint("invert", "") == "image '' does not exist or is no file"
    for name in ("loop.png", "x" * 300 + ".png", "a\0b.png"):
        assert complaint("invert", name).endswith("does not exist or is no file")
    assert complaint("score", "a.png", " ") == "a prompt must not be empty; got ' '"


def test_a_damaged_header_is_one_sentence(images):
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    for cut in (0, 8, 20, 40):
        with pytest.raises(ValueError) as caught:
            load_image(data.getvalue()[:cut])
        assert "\n" not in str(caught.value)
