"""`pez-fast export`, the list of failures, full disks, and wrong usage of `batch` and `export`."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from test_cli import complaint, run

pq = pytest.importorskip("pyarrow.parquet")

from test_dataset import QUICK, counted_images, rows_of  # noqa: E402, F401
from test_dataset_strangers import finished_folder, folder_of_photos  # noqa: E402, F401

from pez_fast.dataset import FullDiskError, export, export_rows, invert_dataset, shards  # noqa: E402
from pez_fast.dataset.held import scan  # noqa: E402

FLAGS = ("--steps", 6, "--refine", 0, "--prompt-len", 3, "--device", "cpu")


@pytest.fixture(name="command")
def model_of_the_command(monkeypatch: pytest.MonkeyPatch, tiny_clip) -> None:
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: tiny_clip)


def test_both_kinds_of_export_hold_the_rows(out: Path, tmp_path: Path):
    expected = [{k: v for k, v in row.items() if k != "stamp"} for row in rows_of(out).values()]
    for name in ("rows.csv", "rows.jsonl"):
        result = run("export", out, tmp_path / name)
        assert result.stderr == f"5 rows written to {tmp_path / name}, 1 of them without a prompt\n"
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected
    with (tmp_path / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["id", "prompt", "ids", "ids_score", "text_score", "seed", "steps", "error"]
    for cells, row in zip(table, expected, strict=True):
        assert all(cells[k] == ("" if row[k] is None else str(row[k])) for k in cells)
    run("export", out, tmp_path / "failures.csv", "--errors")
    with (tmp_path / "failures.csv").open(newline="") as file:
        assert [(row["id"], row["error"]) for row in csv.DictReader(file)] == [
            ("broken.png", expected[-1]["error"]),
        ]
    assert json.loads(run("export", out, tmp_path / "rows.csv", "--json").stdout) == {
        "rows": 5,
        "errors": 1,
        "missing": [],
    }


def test_an_unfinished_data_set_says_what_is_missing(photos: Path, out: Path, images, tmp_path: Path):
    for k in range(4, 8):
        images[k].save(photos / f"{k}.png")
    said = run("export", out, tmp_path / "rows.csv").stderr.splitlines()
    assert said[-1] == "4 images are still missing: 4.png, 5.png, 6.png, 7.png"
    shutil.rmtree(photos)
    said = run("export", out, tmp_path / "rows.csv").stderr.splitlines()
    assert said[-1].startswith("the source of the data set cannot be listed now")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize("gone", [True, False])
def test_an_export_of_a_folder_that_a_run_repairs_meanwhile_writes_no_wrong_row(
    monkeypatch: pytest.MonkeyPatch, out: Path, tmp_path: Path, gone: bool
):
    (shard,) = out.glob("*.parquet")

    def scan_and_repair(*arguments):
        held = scan(*arguments)
        rows = pq.read_table(shard).to_pylist()[1:]
        shard.unlink() if gone else shards.write_shard(shard, rows, next(iter(held.makers)))
        return held

    monkeypatch.setattr(export, "scan", scan_and_repair)
    said = complaint("export", out, tmp_path / "rows.csv")
    assert said == f"{shard} was written anew while it was read; the same command tries again"
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_an_export_replaces_an_export_and_nothing_else(out: Path, tmp_path: Path, name: str):
    target = tmp_path / name
    run("export", out, target)
    whole = target.read_bytes()
    run("export", out, target, "--errors")
    assert target.read_bytes() != whole
    link = tmp_path / f"link-{name}"
    link.symlink_to(target)
    run("export", out, link)
    assert link.is_symlink() and target.read_bytes() == whole
    for content in (b"path,label\n0.png,cat\n", b'{"id": "x", "label": 1}\n', b"0.png\n"):
        target.write_bytes(content)
        assert complaint("export", out, target) == f"the file {target} exists, and is no export of pez-fast; " + (
            "take another name"
        )
        assert target.read_bytes() == content


def test_failures_are_listed_by_name(command, photos: Path, tmp_path: Path):
    for k in range(11):
        (photos / f"bad-{k:02d}.png").write_bytes(b"")
    out = tmp_path / "out put"
    result = run("batch", photos, "--out", out, *FLAGS, code=1)
    lines = result.stderr.splitlines()[-12:]
    assert [line.partition(":")[0] for line in lines[:10]] == [f"bad-{k:02d}.png" for k in range(10)]
    assert all(f"image {photos}" in line and "in none of the formats" in line for line in lines[:10])
    assert lines[10] == f"and 2 more; all of them: pez-fast export '{out}' failures.csv --errors"
    assert lines[11] == f"16 of 16 images finished in {out}, 12 of them unreadable"
    value = json.loads(run("batch", photos, "--out", out, *FLAGS, "--json", code=1).stdout)
    assert len(value["failures"]) == value["errors"] == 12
    for path in photos.glob("b*.png"):
        shutil.copy(photos / "0.png", path)
    assert run("batch", photos, "--out", out, *FLAGS).stderr.splitlines()[-1].endswith(", 0 of them unreadable")


def test_the_exit_status_is_in_the_help(command):
    said = " ".join(run("batch", "--help").stdout.replace("│", "").split())
    assert (
        "Exit status: 0 all have prompts, 1 some images could not be read or the disk is full, 2 wrong usage, " in said
    )
    assert "130 Ctrl-C" in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_the_same_command_continues(
    monkeypatch: pytest.MonkeyPatch, command, photos: Path, tiny_clip, tmp_path: Path, counted, code: int
):
    out, real, written = tmp_path / "out", os.fsync, []

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) > 5:  # the manifest, the first shard and their folder are on the disk
            raise OSError(code, os.strerror(code))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = complaint("batch", photos, "--out", out, *FLAGS, "--batch-size", 2, code=1)
    path = out / "part-00000-of-00001-000000.parquet"
    assert said.startswith(f"{path} cannot be written: {os.strerror(code)}; nothing that was written before is lost: ")
    assert said.endswith("make room there, and the same command continues")
    before, learned = rows_of(out), counted.learned
    assert 0 < len(before) < 5 and not list(out.glob(".*.tmp"))
    run("batch", photos, "--out", out, *FLAGS, code=1)
    assert len(rows_of(out)) == 5 and rows_of(out).items() >= before.items()
    invert_dataset(photos, tmp_path / "calm", tiny_clip, **QUICK)
    assert dict(sorted(rows_of(out).items())) == dict(sorted(rows_of(tmp_path / "calm").items()))
    assert counted.learned <= learned + 4 + 4

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        file = tmp_path / "rows.csv"
        assert complaint("export", out, file, code=1).startswith(f"{file} cannot be written: {os.strerror(code)}; ")
        with pytest.raises(FullDiskError):
            export_rows(out, file)
    assert not file.exists()


def test_other_errors_of_the_disk_stay_what_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        shards.write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    assert type(caught.value) is OSError and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "rows.csv"], "the folder nowhere does not exist"),
        (["list.txt", "rows.csv"], "list.txt is no folder"),
        (["photos", "rows.csv"], "the folder photos holds no results of pez-fast batch"),
        (["out", "rows.txt"], "the file rows.txt must end in .csv or .jsonl"),
        (["out", "rows"], "the file rows must end in .csv or .jsonl"),
        (["out", "nowhere/rows.csv"], "the file nowhere/rows.csv cannot be written: there is no folder {here}/nowhere"),
        (["out", "out/rows.csv"], "the file out/rows.csv must not be in out, where readers of Parquet would meet it"),
        (["out", "folder.csv"], "the file folder.csv exists, and is no export of pez-fast; take another name"),
        (["out", "x" * 300 + ".csv"], "the file x"),
        (["out"], "Missing argument 'FILE'"),
        (["torn", "rows.csv"], "the manifest torn/_manifest.json cannot be read: "),
    ],
)
def test_wrong_usage_of_export_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, out: Path, tmp_path: Path, arguments: list[str], sentence: str
):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a.png\n")
    Path("folder.csv").mkdir()
    shutil.copytree("out", "torn")
    Path("torn/_manifest.json").write_text("[" * 100000)
    assert complaint("export", *arguments).startswith(sentence.format(here=tmp_path))
    assert not Path("rows.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["photos", "--out", "photos/0.png"], "the folder photos/0.png cannot be made: "),
        (["photos", "--out", "out", "--workers", "100000"], "workers must be an integer from 1 to 1024; got 100000"),
        (["photos", "--out", "out", "--shard", "0/0"], "shard must be i/n with i from 0 to n - 1, such as 0/4; got '0"),
        (["list.txt", "--out", "out"], "out holds results of another configuration: source's kind 'folder' there, "),
        (["empty.txt", "--out", "o"], "the source {here}/empty.txt holds no images"),
        (["empty.tar", "--out", "o"], "the source {here}/empty.tar is damaged or no uncompressed tar"),
        (["empty.parquet", "--out", "o"], "the source {here}/empty.parquet is damaged or no Parquet file"),
        (["out", "--out", "o"], "the source {here}/out holds no images"),
        (["data/data.parquet", "--out", "data"], "data/data.parquet was not written by this version of pez-fast batch"),
        (["photos/0.png", "--out", "o"], "the source {here}/photos/0.png is no list of paths"),
        (["\0", "--out", "o"], "Invalid value for 'SOURCE': "),
        (["x" * 300, "--out", "o"], "the source {here}/xxx"),
        (["photos", "--out", "x" * 300], "the folder xxx"),
        (
            ["photos", "--out", "above"],
            "above/results/part-00000-of-00001-000000.parquet belongs to a folder of results ",
        ),
        (["pipe", "--out", "o"], "the source {here}/pipe does not exist, or is neither a file nor a folder"),
    ],
)
def test_wrong_usage_of_batch_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, out: Path, tmp_path: Path, arguments: list[str], sentence: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: pytest.fail("loaded"))
    Path("list.txt").write_text("a.png\n")
    Path("data").mkdir()
    for name in ("empty.txt", "empty.tar", "empty.parquet"):
        Path(name).touch()
    pq.write_table(pq.read_table("out").select(["prompt"]), "data/data.parquet")
    os.mkfifo("pipe")
    shutil.copytree("out", "above/results")
    before = rows_of(out)
    assert complaint("batch", *arguments, *FLAGS).startswith(sentence.format(here=tmp_path))
    assert rows_of(out) == before


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, photos: Path, tmp_path: Path
):
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "out")  # root may write everywhere
    said = complaint("batch", photos, "--out", tmp_path / "out", *FLAGS)
    assert said == f"the folder {tmp_path / 'out'} cannot be written"


def test_entries_that_are_no_images_become_rows(command, photos: Path, tmp_path: Path):
    """A folder, a pipe, a path that cannot be and a text in a list are rows with their reasons, not tracebacks."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    lines = [
        "photos/0.png",
        "pipe.png",
        "folder.png",
        "x" * 300 + ".png",
        "nul\x01.png",
        "list.txt",
        "photos/../photos",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    result = run("batch", tmp_path / "list.txt", "--out", tmp_path / "out", *FLAGS, code=1)
    assert result.stderr.splitlines()[-1].startswith("7 of 7 images finished")
    rows = rows_of(tmp_path / "out")
    assert [row["error"] is None for row in rows.values()] == [True] + [False] * 6
    assert all(f"image {tmp_path}" in row["error"] for row in list(rows.values())[1:])
