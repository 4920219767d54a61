"""The parts of a run over a data set: sources, shards, reading ahead, progress."""

from __future__ import annotations

import os
import random
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from test_cli import _Terminal
from test_dataset import as_parquet

from pez_fast.dataset import learning, open_source, progress, rows, shards
from pez_fast.dataset.held import scan
from pez_fast.images import image_or_error
from pez_fast.report import console

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def test_rows_can_be_read_in_any_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(rows, "_CHUNK", 4)
    monkeypatch.setattr(rows, "_CHUNKS", 2)
    source = open_source(as_parquet([b"%d" % k for k in range(50)], pa.binary(), tmp_path, row_group_size=23))
    order = [*range(50), *range(49, -1, -1), *random.Random(0).sample(range(50), 50)]
    assert [source.items[k].read() for k in order] == [b"%d" % k for k in order]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "holds no images"),
        (lambda p: p.write_text("a.png\nb.png\na.png\n"), "holds the line 'a.png' twice; ids must be unique"),
        (lambda p: p.write_text("\n \n"), "holds no images"),
        (lambda p: p.write_bytes(b"\x89PNG\0\0"), "is no list of paths"),
    ],
)
def test_sources_that_cannot_be_used(tmp_path: Path, make, sentence: str):
    make(tmp_path / "source")
    with pytest.raises(ValueError, match=sentence):
        open_source(tmp_path / "source")


def test_parquet_and_tar_that_cannot_be_used(tmp_path: Path):
    for name, sentence in (
        ("a.parquet", "is damaged or no Parquet file"),
        ("a.tar", "is damaged or no uncompressed tar"),
    ):
        (tmp_path / name).write_bytes(b"nonsense" * 200)
        with pytest.raises(ValueError, match=sentence):
            open_source(tmp_path / name)
    two = {"left": pa.array([b"x"]), "right": pa.array([b"y"]), "n": pa.array([1])}
    pq.write_table(pa.table(two), tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"no column that is surely .* left \(binary\), right \(binary\), n \(int64\)"):
        open_source(tmp_path / "two.parquet")
    with pytest.raises(ValueError, match="no column 'n' of bytes or paths"):
        open_source(tmp_path / "two.parquet", "n")
    assert open_source(tmp_path / "two.parquet", "right").items[0].read() == b"y"
    with pytest.raises(ValueError, match="a column can be named for a .parquet file only"):
        open_source(tmp_path, "image")


def test_keys_of_a_tar_are_made_unique_by_the_whole_name(tmp_path: Path):
    def tar_of(*names: str) -> Path:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
        return tmp_path / "a.tar"

    assert [i.id for i in open_source(tar_of("d.1/x.left.png", "d.1/x.right.png", "y.png", "y.txt")).items] == [
        "d.1/x.left.png",
        "d.1/x.right.png",
        "y",
    ]
    with pytest.raises(ValueError, match="holds the key 'x.png' twice"):
        open_source(tar_of("x.png", "x.png"))


def test_a_file_name_of_any_bytes_becomes_an_id(tmp_path: Path, images):
    name = os.fsencode(tmp_path / "caf") + b"\xe9 \xe2\x99\xa5.png"
    try:
        with open(name, "wb") as file:
            images[0].save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (item,) = open_source(tmp_path).items
    assert item.id == "caf\\xe9 ♥.png" and Path(item.read()).is_file()


def test_shards_grow_until_they_are_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(shards, "_ROWS", 4)
    for begun, batches in enumerate((5, 1)):
        writer = shards.ShardWriter(tmp_path, "part-0-of-1", "x")
        for k in range(batches):
            writer.add([{"id": f"{begun}-{k}-{half}", "seed": 0, "steps": 1} for half in "ab"])
    assert [len(pq.read_table(path)) for path in sorted(tmp_path.glob("*.parquet"))] == [4, 4, 2, 2]
    assert len(scan(tmp_path, "x").rows) == 12


def test_files_are_synchronised_before_they_get_their_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    order, real = [], {"fsync": os.fsync, "replace": os.replace}
    for name in real:
        monkeypatch.setattr(os, name, lambda *a, name=name: (order.append(name), real[name](*a))[1])
    shards.write_atomically(tmp_path / "a", lambda file: file.write(b"new"))
    assert order == ["fsync", "replace", "fsync"] and (tmp_path / "a").read_bytes() == b"new"

    def fail(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write_atomically(tmp_path / "a", fail)
    assert not shards.write_atomically(tmp_path / "a", lambda file: file.write(b"newer"), replace=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and (tmp_path / "a").read_bytes() == b"new"


def test_reading_ahead_is_bounded_and_in_order():
    begun: list[int] = []
    values = learning.prefetch(range(50), lambda k: (begun.append(k), k * k)[1], threads=3, buffer_size=5)
    for k in range(40):
        assert next(values) == (k, k * k)
        assert len(begun) <= k + 6
    values.close()
    assert len(begun) <= 46


def test_pixels_are_encoded_as_images_are(tiny_clip, images):
    pixels = [image_or_error(image, tiny_clip.preprocess) for image in images]
    for image, feature in zip(images, tiny_clip.encode_pixels(pixels), strict=True):
        assert torch.equal(feature, tiny_clip.encode_images([image])[0])


def test_progress_says_rate_time_left_and_the_last_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.watch_batch(40, 10) as plain:
        for k in range(15):
            now[0] += 4
            plain.add([{"prompt": f"prompt {2 * k}"}, {"prompt": None, "error": "x"}])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "10/40 images finished" and lines[1] == '12/40  0.50 images/s  0:00:56 left  "prompt 0"'
    assert [line.split("/")[0] for line in lines[1:]] == [str(k) for k in range(12, 41, 4)]
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "12"}.items():
        monkeypatch.setenv(name, value)
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.watch_batch(40, 10) as live:
        assert isinstance(live, progress.LiveBatchProgress)
        now[0] += 10
        live.add([{"prompt": "[bold] one"}])
        live.within(10.0)
    assert (
        "21/40" in terminal.getvalue()
        and "[bold] one" in terminal.getvalue()
        and "1.10 images/s" in terminal.getvalue()
    )


@pytest.mark.parametrize("names", [["image"], ["a", "b"]])
@pytest.mark.parametrize("terminal", [True, False])
def test_one_check_decides_what_is_drawn(monkeypatch: pytest.MonkeyPatch, terminal: bool, names: list[str]):
    """A search and a data set draw on the same terminals: those that can draw lines anew."""
    monkeypatch.setattr(sys, "stderr", _Terminal())
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm" if terminal else "dumb")
    assert console.stderr_is_terminal() is terminal
    assert isinstance(console.watch(names, 10), console.LiveProgress) is terminal
    assert isinstance(progress.watch_batch(10, 0), progress.LiveBatchProgress) is terminal
    monkeypatch.setattr(sys, "stderr", None)
    assert console.stderr_is_terminal() is False


def test_the_last_prompt():
    found = [{"prompt": "one"}, {"prompt": "two"}, {"prompt": None, "error": "x"}, {"error": "y"}]
    assert progress.last_prompt(found, "zero") == "two"
    assert progress.last_prompt(found[2:], "zero") == "zero" and progress.last_prompt([]) == ""


def test_a_struct_is_its_bytes_else_its_path():
    assert rows.bytes_or_path({"bytes": b"data", "path": "a.png"}) == b"data"
    assert rows.bytes_or_path({"bytes": None, "path": "a.png"}) == rows.bytes_or_path({"path": "a.png"}) == "a.png"
    assert rows.bytes_or_path({"bytes": None, "path": None}) is None and rows.bytes_or_path(b"data") == b"data"


@pytest.mark.parametrize(
    ("line", "home"),
    [
        ("stderr.isatty()", "report/console.py"),
        ('get("bytes")', "dataset/rows.py"),
        ('in reversed(rows) if row.get("prompt")', "dataset/progress.py"),
    ],
)
def test_what_these_do_stands_in_one_place(line: str, home: str):
    package = Path(console.__file__).parents[1]
    found = {str(p.relative_to(package)): p.read_text().count(line) for p in package.rglob("*.py")}
    assert {name: count for name, count in found.items() if count} == {home: 1}
