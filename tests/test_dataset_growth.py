"""Data sets that grow or are repaired: only what is new or has changed is learned, and nothing is learned twice."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("pyarrow.parquet")

from test_dataset import QUICK, as_parquet, counted_images, rows_of  # noqa: E402, F401

from pez_fast.dataset import Job, invert_dataset, learning, open_source, stamps  # noqa: E402
from pez_fast.dataset.locks import exclusive_lock  # noqa: E402
from pez_fast.images import image_or_error  # noqa: E402


@pytest.fixture(name="photos")
def folder_of_photos(tmp_path: Path, images) -> Path:
    """Returns a folder of four images and one that cannot be read; its own for each test."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for k in range(4):
        images[k].save(root / ("sub" if k % 2 else ".") / f"{k}.png")
    (root / "broken.png").write_bytes(b"no image")
    return root


def data(images, k: int) -> bytes:
    """Returns an image as the bytes of a PNG file."""
    file = io.BytesIO()
    images[k].save(file, "PNG")
    return file.getvalue()


def make_older(path: Path) -> None:
    """Gives files another time, as a copy or a restored backup has it."""
    for file in [path] if path.is_file() else sorted(path.rglob("*.png")):
        os.utime(file, ns=(10**18, 10**18))


def test_only_new_changed_and_mended_images_are_learned(photos: Path, images, tiny_clip, tmp_path: Path, counted):
    out = tmp_path / "out"
    first = invert_dataset(photos, out, tiny_clip, **QUICK)
    assert (first.finished, first.errors, counted.learned, list(first.failures)) == (5, 1, 4, ["broken.png"])
    before = rows_of(out)
    images[4].save(photos / "added.png")
    images[5].save(photos / "sub" / "1.png")  # changed
    images[6].save(photos / "broken.png")  # mended
    second = invert_dataset(photos, out, tiny_clip, **QUICK)
    assert (second.images, second.finished, second.errors, second.failures) == (6, 6, 0, {}) and counted.learned == 7
    grown, anew = rows_of(out), tmp_path / "anew"
    assert all(grown[name] == before[name] for name in ("0.png", "2.png", "sub/3.png"))
    invert_dataset(photos, anew, tiny_clip, **QUICK)
    assert dict(sorted(grown.items())) == dict(sorted(rows_of(anew).items()))


def test_a_change_is_seen_by_the_time_and_by_the_bytes(photos: Path, images, tiny_clip, tmp_path: Path, counted):
    """Another time alone makes the image read, and not learned; other bytes of the same size are learned."""
    out = tmp_path / "out"
    names = [photos / "a.ppm", photos / "b.ppm"]
    for k, name in enumerate(names):
        images[k].save(name)
    invert_dataset(photos, out, tiny_clip, **QUICK)
    before = rows_of(out)
    make_older(photos)
    make_older(names[0])
    assert names[0].stat().st_size == names[1].stat().st_size
    names[1].write_bytes(names[0].read_bytes())
    invert_dataset(photos, out, tiny_clip, **QUICK)
    after = rows_of(out)
    assert counted.learned == 7 and after["b.ppm"]["prompt"] == after["a.ppm"]["prompt"]
    assert {k: v for k, v in after.items() if k != "b.ppm"} == {k: v for k, v in before.items() if k != "b.ppm"}


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_finished_images_are_not_read_again(
    monkeypatch: pytest.MonkeyPatch, photos: Path, images, tiny_clip, tmp_path: Path, kind: str
):
    source = photos if kind == "folder" else tar_of(tmp_path / "data.tar", [data(images, 0), b"no image"])
    invert_dataset(source, tmp_path / "out", tiny_clip, **QUICK)
    monkeypatch.setattr(stamps, "_digest", lambda source: pytest.fail("an image was read"))
    invert_dataset(source, tmp_path / "out", tiny_clip, **QUICK)


def test_errors_are_tried_again_when_asked_or_when_the_file_is_another(
    monkeypatch: pytest.MonkeyPatch, photos: Path, images, tiny_clip, tmp_path: Path, counted
):
    """An image that was refused by its size stays so until --retry-errors; one that was missing is found."""
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("photos/0.png\nlater.png\n")
    monkeypatch.setenv("PEZ_FAST_MAX_PIXELS", "1")
    assert invert_dataset(listed, out, tiny_clip, **QUICK).errors == 2
    monkeypatch.delenv("PEZ_FAST_MAX_PIXELS")
    images[5].save(tmp_path / "later.png")
    found = invert_dataset(listed, out, tiny_clip, **QUICK)
    assert list(found.failures) == ["photos/0.png"] and counted.learned == 1
    assert invert_dataset(listed, out, tiny_clip, retry_errors=True, **QUICK).errors == 0 and counted.learned == 2
    assert set(rows_of(out)) == {"photos/0.png", "later.png"}


def test_a_prompt_stays_while_its_file_is_gone(
    capsys: pytest.CaptureFixture, photos: Path, tiny_clip, tmp_path: Path, counted
):
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("photos/0.png\nphotos/2.png\n")
    invert_dataset(listed, out, tiny_clip, **QUICK)
    before = rows_of(out)
    (photos / "0.png").unlink()
    assert invert_dataset(listed, out, tiny_clip, **QUICK).errors == 0 and rows_of(out) == before
    listed.write_text("photos/2.png\nphotos/sub/1.png\n")
    summary = invert_dataset(listed, out, tiny_clip, **QUICK)
    assert (summary.images, summary.finished, counted.learned, len(rows_of(out))) == (2, 2, 3, 3)
    assert "the source no longer holds 1 of the images" in (said := capsys.readouterr().err)
    assert "their rows stay and are not counted: photos/0.png" in said


def tar_of(path: Path, members: list[bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for k, content in enumerate(members):
            info = tarfile.TarInfo(f"{k}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_tar_and_a_parquet_file_grow_too(images, tiny_clip, tmp_path: Path, counted, kind: str):
    """The bytes decide: of a file that was written anew, only rows that are new or have changed are learned."""

    def write(members: list[bytes]) -> Path:
        if kind == "tar":
            return tar_of(tmp_path / "data.tar", members)
        import pyarrow

        return as_parquet(members, pyarrow.binary(), tmp_path, row_group_size=2)

    out = tmp_path / "out"
    members = [data(images, 0), data(images, 1), b"no image"]
    assert invert_dataset(write(members), out, tiny_clip, **QUICK).errors == 1
    before = rows_of(out)
    members = [members[0], data(images, 5), data(images, 2), data(images, 3)]
    assert invert_dataset(write(members), out, tiny_clip, **QUICK).errors == 0 and counted.learned == 5
    after = rows_of(out)
    assert after["0"] == before["0"] and len(after) == 4
    invert_dataset(tmp_path / write(members).name, tmp_path / "anew", tiny_clip, **QUICK)
    anew = rows_of(tmp_path / "anew")
    assert all({**after[k], "stamp": 0} == {**anew[k], "stamp": 0} for k in anew)


def test_a_data_set_that_has_moved(photos: Path, images, tiny_clip, tmp_path: Path, counted):
    out, there = tmp_path / "out", tmp_path / "there"
    invert_dataset(photos, out, tiny_clip, **QUICK)
    shutil.copytree(photos, there)
    make_older(there)
    said = f"{out} holds results of the source {photos}, and not of {there}; take another --out, or add --moved if it"
    with pytest.raises(ValueError, match=f"^{said} is the same data set at another place$"):
        Job(there, out, QUICK)
    images[6].save(there / "6.png")
    before = rows_of(out)
    assert invert_dataset(there, out, tiny_clip, moved=True, **QUICK).finished == 6 and counted.learned == 5
    assert {k: v for k, v in rows_of(out).items() if k != "6.png"} == before
    assert invert_dataset(there, out, tiny_clip, **QUICK).finished == 6 and counted.learned == 5
    strange = tmp_path / "strange"
    (strange / "sub").mkdir(parents=True)
    images[7].save(strange / "0.png")
    said = f"^--moved: none of the 6 images in {out} is the same in the source; take another --out$"
    with pytest.raises(ValueError, match=said):
        invert_dataset(strange, out, tiny_clip, moved=True, **QUICK)
    assert len(rows_of(out)) == 6


def test_a_link_to_a_data_set_is_that_data_set(photos: Path, tiny_clip, tmp_path: Path, counted):
    (tmp_path / "link").symlink_to(photos)
    invert_dataset(photos, tmp_path / "out", tiny_clip, **QUICK)
    assert invert_dataset(tmp_path / "link", tmp_path / "out", tiny_clip, **QUICK).finished == 5
    assert counted.learned == 4


def test_no_image_changes_its_shard_when_the_data_set_grows(photos: Path, images, tmp_path: Path):
    def shards() -> list[set[str]]:
        return [{item.id for item in Job(photos, tmp_path / "out", QUICK, f"{k}/3").items} for k in range(3)]

    before = shards()
    for k in range(8):
        shutil.copy(photos / "0.png", photos / f"0-{k}.png")
    assert all(old <= new for old, new in zip(before, shards(), strict=True))
    assert sum(map(len, shards())) == 13 == len(set().union(*shards()))


def test_shards_and_batches_change_nothing_while_a_data_set_grows(
    photos: Path, images, tiny_clip, tmp_path: Path, counted
):
    out = tmp_path / "out"
    invert_dataset(photos, out, tiny_clip, batch_size=2, **QUICK)
    for k in range(4, 8):
        images[k].save(photos / f"{k}.png")
    images[7].save(photos / "0.png")
    for number in (1, 2, 0):
        invert_dataset(photos, out, tiny_clip, f"{number}/3", batch_size=1 + number, **QUICK)
    assert counted.learned == 9
    invert_dataset(photos, tmp_path / "anew", tiny_clip, **QUICK)
    assert dict(sorted(rows_of(out).items())) == dict(sorted(rows_of(tmp_path / "anew").items()))


def test_a_changed_image_of_a_file_that_another_run_is_writing_waits(
    capsys: pytest.CaptureFixture, photos: Path, images, tiny_clip, tmp_path: Path, counted
):
    out = tmp_path / "out"
    invert_dataset(photos, out, tiny_clip, **QUICK)
    images[7].save(photos / "0.png")
    with exclusive_lock(out, "part-00000-of-00001"):
        for number in (0, 1):
            summary = invert_dataset(photos, out, tiny_clip, f"{number}/2", **QUICK)
            assert summary.finished == summary.images
    assert counted.learned == 4 and "1 of its images wait for the next run" in capsys.readouterr().err
    invert_dataset(photos, out, tiny_clip, **QUICK)
    assert counted.learned == 5 and len(rows_of(out)) == 5


def test_an_image_that_changes_while_it_is_learned_is_learned_again(
    monkeypatch: pytest.MonkeyPatch, photos: Path, images, tiny_clip, tmp_path: Path, counted
):
    def slow(source, prepare):
        shutil.copy(photos / "2.png", photos / "0.png")
        make_older(photos / "0.png")
        return image_or_error(before, prepare)

    before = data(images, 0)
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("photos/0.png\n")
    with monkeypatch.context() as patch:
        patch.setattr(learning, "image_or_error", slow)
        invert_dataset(listed, out, tiny_clip, **QUICK)
    old = rows_of(out)["photos/0.png"]
    invert_dataset(listed, out, tiny_clip, **QUICK)
    assert counted.learned == 2 and rows_of(out)["photos/0.png"]["prompt"] != old["prompt"]


def test_links_to_folders_are_followed_once(photos: Path, tmp_path: Path, images):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    images[0].save(elsewhere / "deep" / "x.png")
    (photos / "again").symlink_to(photos / "sub")  # holds what stands under its own name
    (photos / "loop").symlink_to(photos)
    (photos / "self").symlink_to("self")
    (photos / "linked").symlink_to(elsewhere)
    (photos / "twice").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(elsewhere)
    (photos / "nowhere").symlink_to(tmp_path / "missing")
    (photos / "file.png").symlink_to(photos / "0.png")
    found = [item.id for item in open_source(photos).items]
    assert found == ["0.png", "2.png", "broken.png", "file.png", "linked/deep/x.png", "sub/1.png", "sub/3.png"]
