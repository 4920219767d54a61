"""Files that do not belong into a folder of results, or stand in it twice: named, and never counted twice."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from test_dataset import QUICK, counted_images, rows_of  # noqa: E402, F401

from pez_fast.dataset import Job, export_rows, invert_dataset, shards  # noqa: E402
from pez_fast.dataset.held import scan  # noqa: E402

FIRST = "part-00000-of-00001-000000.parquet"


@pytest.fixture(name="photos")
def folder_of_photos(tmp_path: Path, images) -> Path:
    """Returns a folder of four images and one that cannot be read; its own for each test."""
    root = tmp_path / "photos"
    root.mkdir()
    for k in range(4):
        images[k].save(root / f"{k}.png")
    (root / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(name="out")
def finished_folder(photos: Path, tiny_clip, tmp_path: Path) -> Path:
    invert_dataset(photos, tmp_path / "out", tiny_clip, **QUICK)
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["copy.parquet", "part-00000-of-00001-000000 (1).parquet", "a/b.parquet", FIRST[:-9]])
def test_a_copied_shard_is_named_and_not_counted(
    capsys: pytest.CaptureFixture, photos: Path, tiny_clip, out: Path, tmp_path: Path, name: str, counted
):
    """A reader of the folder would see each picture twice; afterwards it sees each once."""
    before = rows_of(out)
    copy = out / (name if name.endswith(".parquet") else f"{name}7.parquet")
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(out / FIRST, copy)
    assert pq.read_table(out).num_rows == 10
    exported = export_rows(out, tmp_path / "rows.jsonl")
    assert (exported.rows, exported.errors, exported.missing) == (5, 1, [])
    assert f"5 rows of {copy} are of images that stand in other rows" in capsys.readouterr().err
    assert invert_dataset(photos, out, tiny_clip, **QUICK).finished == 5 and counted.learned == 0
    said = capsys.readouterr().err
    assert f"{copy} holds no image that other files of the folder do not hold (5); it is now _{copy.name}.dup" in said
    assert pq.read_table(out).num_rows == 5 and rows_of(out) == before
    assert (copy.parent / f"_{copy.name}.duplicate").read_bytes() == (out / FIRST).read_bytes()


def test_a_renamed_shard_still_counts(photos: Path, tiny_clip, out: Path, counted):
    before = rows_of(out)
    (out / FIRST).rename(out / "mine.parquet")
    assert invert_dataset(photos, out, tiny_clip, **QUICK).finished == 5
    assert counted.learned == 0 and rows_of(out) == before


def test_rows_that_stand_twice_in_part_are_named(capsys: pytest.CaptureFixture, photos: Path, tiny_clip, out: Path):
    """Of a prompt and an error of one image, the prompt stays, wherever it is."""
    before = rows_of(out)
    made_by = next(iter(scan(out, None).makers))
    error = {**dict.fromkeys(before["0.png"]), "id": "0.png", "seed": 0, "steps": 0, "error": "was missing"}
    held = [error, before["1.png"], before["broken.png"]]
    shards.write_shard(out / "part-00000-of-00001-000000.parquet", held, made_by)
    shards.write_shard(out / "part-00000-of-00001-000001.parquet", [before[k] for k in before if k != "1.png"], made_by)
    assert invert_dataset(photos, out, tiny_clip, **QUICK).errors == 1
    said = capsys.readouterr().err
    assert f"{out / FIRST} held 1 images that the folder holds twice" in said
    assert "000001.parquet held 1 images that the folder holds twice" in said
    assert dict(sorted(rows_of(out).items())) == before


@pytest.mark.parametrize("other", ["configuration", "data set", "program", "damage"])
def test_a_foreign_file_is_named_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture, photos: Path, images, tiny_clip, out: Path, tmp_path: Path, other: str
):
    before, stranger = rows_of(out), out / "part-00000-of-00001-000001.parquet"
    if other in ("configuration", "data set"):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        images[5].save(elsewhere / "5.png")
        seed = 1 if other == "configuration" else 0
        invert_dataset(photos if seed else elsewhere, tmp_path / "other", tiny_clip, seed=seed, **QUICK)
        shutil.copy(tmp_path / "other" / FIRST, stranger)
        why = "was made by another configuration than this run's, or from another data set"
    elif other == "program":
        pq.write_table(pa.table({"id": ["x"]}), stranger)
        why = "was not written by this version of pez-fast batch"
    else:
        stranger = out / "photos.parquet"
        stranger.write_bytes(b"PAR1 nonsense PAR1")
        why = "is damaged or no file of Parquet"
    content = stranger.read_bytes()
    with pytest.raises(ValueError, match=f"{stranger.name} {why}; move it to another place, or take another --out"):
        Job(photos, out, QUICK)
    assert stranger.read_bytes() == content
    assert export_rows(out, tmp_path / "rows.csv").rows == 5
    assert f"warning: {stranger} {why}; it is left out" in capsys.readouterr().err
    stranger.unlink()
    assert rows_of(out) == before


def test_without_the_manifest_an_export_of_two_configurations_is_refused(
    photos: Path, tiny_clip, out: Path, tmp_path: Path
):
    invert_dataset(photos, tmp_path / "other", tiny_clip, seed=1, **QUICK)
    shutil.copy(tmp_path / "other" / FIRST, out / "part-00000-of-00001-000001.parquet")
    (out / "_manifest.json").unlink()
    with pytest.raises(ValueError, match="has lost its manifest and holds results of 2 configurations"):
        export_rows(out, tmp_path / "rows.csv")
    (out / "part-00000-of-00001-000001.parquet").unlink()
    assert export_rows(out, tmp_path / "rows.csv").missing is None


def test_a_reader_of_the_folder_skips_what_was_set_aside(photos: Path, tiny_clip, out: Path):
    """Readers of a folder of Parquet fail at any other file whose name begins neither with _ nor with a dot."""
    torn = out / "part-00000-of-00001-000001.parquet"
    for _ in range(2):
        torn.write_bytes((out / FIRST).read_bytes()[:-9])
        invert_dataset(photos, out, tiny_clip, **QUICK)
    assert pq.read_table(out).num_rows == 5
    assert sorted(path.name for path in out.glob("_part*")) == [
        f"_{torn.name}.1.unreadable",
        f"_{torn.name}.unreadable",
    ]


def test_no_changed_byte_goes_unnoticed(out: Path):
    """Whichever byte of a shard is another, its rows are those that were written, or the shard is not taken."""
    shard = out / FIRST
    whole, rows = shard.read_bytes(), pq.read_table(shard).to_pylist()
    made_by = next(iter(scan(out, None).makers))
    rng, refused = random.Random(0), 0
    for place in [*range(4, len(whole), 7), *range(len(whole) - 60, len(whole))]:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ rng.randrange(1, 256)]) + whole[place + 1 :])
        held = scan(out, made_by)
        if held.unreadable or held.strangers:
            refused += 1
        else:
            assert pq.read_table(shard).to_pylist() == rows and len(held.rows) == 5, place
    assert refused > 100
