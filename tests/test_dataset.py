"""Data sets: sources, shards, and runs that are interrupted, divided and continued."""

from __future__ import annotations

import io
import json
import os
import tarfile
from itertools import islice
from pathlib import Path

import pytest
from inputs import refused

import pez_fast
from pez_fast.dataset import learning, locks, shards
from pez_fast.engine import Scheduler

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from pez_fast.dataset import Job, invert_dataset  # noqa: E402

QUICK = {"prompt_len": 3, "steps": 6, "refine": 0}


@pytest.fixture(scope="module", name="folder")
def folder_of_images(tmp_path_factory: pytest.TempPathFactory, images) -> Path:
    """Returns a folder of eight images in two folders, two unreadable ones, and files to ignore."""
    root = tmp_path_factory.mktemp("images")
    (root / "sub").mkdir()
    for k, image in enumerate(images):
        image.save(root / ("sub" if k % 2 else ".") / f"{k}.png")
    (root / "broken.png").write_bytes(b"no image")
    (root / "sub" / "empty.JPG").write_bytes(b"")
    (root / "notes.txt").write_text("not one of them")
    (root / ".hidden.png").write_bytes(b"nor this")
    return root


@pytest.fixture(scope="module", name="undisturbed")
def undisturbed_rows(folder: Path, tiny_clip, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("undisturbed")
    summary = invert_dataset(folder, out, tiny_clip, **QUICK)
    assert (summary.images, summary.finished, summary.errors, summary.interrupted) == (10, 10, 2, False)
    return rows_of(out)


def rows_of(out: Path) -> dict[str, dict]:
    """Returns all rows by id; fails if an id is there twice or a file cannot be read."""
    table = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["id"] for row in table}) == len(table)
    return {row["id"]: row for row in table}


def test_rows_are_what_invert_gives(folder: Path, undisturbed, tiny_clip):
    assert list(undisturbed) == sorted(undisturbed)
    assert set(undisturbed) == {
        "0.png",
        "2.png",
        "4.png",
        "6.png",
        "sub/1.png",
        "sub/3.png",
        "sub/5.png",
        "sub/7.png",
        "broken.png",
        "sub/empty.JPG",
    }
    for name, row in undisturbed.items():
        assert list(row) == ["id", "prompt", "ids", "ids_score", "text_score", "seed", "steps", "error", "stamp"]
        if name in ("broken.png", "sub/empty.JPG"):
            assert row["error"].startswith(f"image {folder / name} is in none of the formats") and row["steps"] == 0
            assert row["prompt"] is row["ids"] is row["ids_score"] is row["text_score"] is None
        else:
            single = pez_fast.invert(folder / name, tiny_clip, **QUICK)
            own = {"id": name, "error": None, "stamp": row["stamp"]}
            assert row == own | {k: getattr(single, k) for k in row if k not in own}
    assert len({row["prompt"] for row in undisturbed.values()}) > 5


def test_a_reader_of_the_whole_folder_sees_only_the_rows(folder: Path, tiny_clip, tmp_path: Path):
    invert_dataset(folder, tmp_path, tiny_clip, **QUICK)
    assert pq.read_table(tmp_path).num_rows == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".part-00000-of-00001.lock",
        "_manifest.json",
        "part-00000-of-00001-000000.parquet",
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batches_and_shards_change_no_value(folder: Path, undisturbed, tiny_clip, tmp_path: Path, batch_size: int):
    sizes: list[int] = []
    for number in (2, 0, 1):
        summary = invert_dataset(
            folder, tmp_path, tiny_clip, f"{number}/3", workers=batch_size, batch_size=batch_size, **QUICK
        )
        sizes.append(summary.images)
        assert summary.images == summary.finished
    assert sum(sizes) == 10 and all(sizes)
    assert rows_of(tmp_path) == undisturbed
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert {path.name[:19] for path in tmp_path.glob("*.parquet")} == {f"part-0000{k}-of-00003"[:19] for k in range(3)}


def as_list(folder: Path, names: list[str], to: Path) -> Path:
    (to / "list.txt").write_text("\n".join(os.path.relpath(folder / name, to) for name in names) + "\n\n")
    return to / "list.txt"


def as_parquet(values: list, kind, to: Path, **more) -> Path:
    pq.write_table(pa.table({"n": range(len(values)), "image": pa.array(values, kind)}), to / "data.parquet", **more)
    return to / "data.parquet"


def as_tar(folder: Path, names: list[str], to: Path) -> Path:
    with tarfile.open(to / "data.tar", "w") as tar:
        for k, name in enumerate(names):
            for member, data in ((f"{k:03d}.json", b"{}"), (f"{k:03d}.in.{name[-3:]}", (folder / name).read_bytes())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return to / "data.tar"


@pytest.mark.parametrize("kind", ["list", "bytes", "paths", "structs", "tar"])
def test_every_source_gives_the_same_rows(folder: Path, undisturbed, tiny_clip, tmp_path: Path, kind: str):
    names = sorted(undisturbed, reverse=True)
    data = [(folder / name).read_bytes() for name in names]
    if kind == "list":
        source, ids = as_list(folder, names, tmp_path), [os.path.relpath(folder / name, tmp_path) for name in names]
    elif kind == "tar":
        source, ids = as_tar(folder, names, tmp_path), [f"{k:03d}" for k in range(10)]
    elif kind == "bytes":
        source, ids = as_parquet(data, pa.binary(), tmp_path, row_group_size=3), [str(k) for k in range(10)]
    elif kind == "paths":
        source, ids = (
            as_parquet([str(folder / name) for name in names], pa.string(), tmp_path),
            [str(k) for k in range(10)],
        )
    else:
        structs = [{"bytes": d, "path": "elsewhere.png"} for d in data]
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        source, ids = as_parquet(structs, struct, tmp_path), [str(k) for k in range(10)]
    invert_dataset(source, tmp_path / "out", tiny_clip, batch_size=4, **QUICK)
    result = rows_of(tmp_path / "out")
    assert list(result) == ids
    for name, (identity, row) in zip(names, result.items(), strict=True):
        expected = undisturbed[name]
        assert (row["error"] is None) == (expected["error"] is None)
        own = {"id": 0, "error": 0, "stamp": 0}
        assert {**row, **own} == {**expected, **own}, identity


def test_a_row_without_an_image_is_an_error_row(tiny_clip, tmp_path: Path):
    summary = invert_dataset(as_parquet([None, b""], pa.binary(), tmp_path), tmp_path / "out", tiny_clip, **QUICK)
    assert summary.errors == 2
    assert [row["error"] for row in rows_of(tmp_path / "out").values()] == [
        "row 0 holds no image",
        "row 1 holds no image",
    ]


class _Counted(learning.PromptSearch):
    """A search that counts the images that it has learned."""

    learned = 0

    def stream(self, *arguments):
        for found in super().stream(*arguments):
            type(self).learned += len(found)
            yield found


@pytest.fixture(name="counted")
def counted_images(monkeypatch: pytest.MonkeyPatch) -> type[_Counted]:
    monkeypatch.setattr(learning, "PromptSearch", _Counted)
    monkeypatch.setattr(_Counted, "learned", 0)
    return _Counted


@pytest.mark.parametrize("after", [1, 2])
def test_ctrl_c_loses_at_most_the_batch_and_the_next_run_continues(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    undisturbed,
    tiny_clip,
    tmp_path: Path,
    counted: type[_Counted],
    after: int,
):
    class Interrupted(learning.RowLearner):
        def rows(self, items):
            yield from islice(super().rows(items), after)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pez_fast.dataset.job.RowLearner", Interrupted)
        summary = invert_dataset(folder, tmp_path, tiny_clip, batch_size=3, **QUICK)
    assert summary.interrupted and summary.finished == len(rows_of(tmp_path)) >= 3 * after
    before = counted.learned
    summary = invert_dataset(folder, tmp_path, tiny_clip, batch_size=2, shard="0/1", **QUICK)
    assert not summary.interrupted and summary.finished == 10
    assert rows_of(tmp_path) == undisturbed and counted.learned == 8 and before > 0
    assert invert_dataset(folder, tmp_path, tiny_clip, **QUICK).errors == 2 and counted.learned == 8


def test_a_search_that_was_interrupted_gives_no_rows(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tiny_clip, tmp_path: Path, counted
):
    def interrupt(scheduler, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "_end_finished", interrupt)
    assert invert_dataset(folder, tmp_path, tiny_clip, **QUICK).interrupted
    assert list(tmp_path.iterdir()) == [tmp_path / ".part-00000-of-00001.lock"]


def test_leftovers_are_tidied_up(capsys: pytest.CaptureFixture, folder: Path, undisturbed, tiny_clip, tmp_path: Path):
    for number in (0, 1):
        invert_dataset(folder, tmp_path, tiny_clip, f"{number}/2", batch_size=2, **QUICK)
    first, second = sorted(tmp_path.glob("*.parquet"))
    whole = first.read_bytes()
    (tmp_path / "part-00000-of-00002-000007.parquet").write_bytes(whole[: len(whole) // 2])  # torn
    (tmp_path / "part-00000-of-00002-000008.parquet").write_bytes(b"")
    footer = len(whole) - 100
    (tmp_path / "part-00000-of-00002-000009.parquet").write_bytes(whole[:footer] + bytes(60) + whole[footer + 60 :])
    (tmp_path / "part-00009-of-00010-000000.parquet").write_bytes(whole)  # twice
    for name in (first.name, "part-00004-of-00007-000000.parquet"):
        (tmp_path / f".{name}.0123456789ab.tmp").write_bytes(whole[:100])
    both = pq.read_table(second).to_pylist()
    fingerprint = json.loads((tmp_path / "_manifest.json").read_text())["fingerprint"]
    shards.write_shard(second, [*both, *pq.read_table(first).to_pylist()[:1], both[0]], fingerprint)
    assert invert_dataset(folder, tmp_path, tiny_clip, **QUICK).finished == 10
    assert rows_of(tmp_path) == undisturbed and sorted(tmp_path.glob("*.parquet")) == [first, second]
    assert not list(tmp_path.glob(".*.tmp"))
    assert capsys.readouterr().err.count(".unreadable, and its images are learned again") == 3
    assert len(list(tmp_path.glob("*.unreadable"))) == 3


def test_a_lost_shard_is_learned_again(folder: Path, undisturbed, tiny_clip, tmp_path: Path, counted: _Counted):
    for number in (0, 1):
        invert_dataset(folder, tmp_path, tiny_clip, f"{number}/2", batch_size=2, **QUICK)
    (tmp_path / "part-00001-of-00002-000000.parquet").write_bytes(b"PAR1 gone")
    invert_dataset(folder, tmp_path, tiny_clip, **QUICK)
    assert rows_of(tmp_path) == undisturbed and 8 < counted.learned < 16


def test_shards_of_another_configuration_are_refused_without_the_manifest(folder: Path, tiny_clip, tmp_path: Path):
    """Each shard carries what made it: a lost manifest mixes nothing, and comes back where all is as it was."""
    invert_dataset(folder, tmp_path, tiny_clip, **QUICK)
    (tmp_path / "_manifest.json").unlink()
    shard = next(tmp_path.glob("*.parquet")).read_bytes()
    with pytest.raises(ValueError, match="was made by another configuration than this run's, or from another"):
        invert_dataset(folder, tmp_path, tiny_clip, **{**QUICK, "seed": 9})
    assert [p.read_bytes() for p in tmp_path.glob("*.parquet")] == [shard] and not (
        tmp_path / "_manifest.json"
    ).exists()
    assert invert_dataset(folder, tmp_path, tiny_clip, **QUICK).finished == 10
    assert [p.read_bytes() for p in tmp_path.glob("*.parquet")] == [shard] and (tmp_path / "_manifest.json").exists()


def test_a_foreign_shard_is_refused(folder: Path, tiny_clip, tmp_path: Path):
    foreign = tmp_path / "part-00000-of-00001-000000.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    with pytest.raises(ValueError, match="000000.parquet was not written by this version of pez-fast batch; move it"):
        invert_dataset(folder, tmp_path, tiny_clip, **QUICK)
    assert pq.read_table(foreign).num_rows == 1


def test_a_shard_that_is_being_written_is_refused_to_others(folder: Path, tiny_clip, tmp_path: Path):
    with locks.exclusive_lock(tmp_path, "part-00000-of-00002"):
        with pytest.raises(ValueError, match="another run is writing part-00000-of-00002 into"):
            invert_dataset(folder, tmp_path, tiny_clip, shard="0/2", **QUICK)
        temporary = tmp_path / ".part-00000-of-00002-000000.parquet.0123456789ab.tmp"
        temporary.touch()
        finished = invert_dataset(folder, tmp_path, tiny_clip, shard="1/2", **QUICK).finished
        assert temporary.exists()  # its run is alive
    assert finished + invert_dataset(folder, tmp_path, tiny_clip, shard="0/2", **QUICK).finished == 10
    assert not temporary.exists()


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "0/0", "a/b", "1/2/3", None])
def test_shards_are_named_i_of_n(folder: Path, tmp_path: Path, text):
    with refused(ValueError, f"shard must be i/n with i from 0 to n - 1, such as 0/4; got {text!r}"):
        Job(folder, tmp_path, QUICK, shard=text)
