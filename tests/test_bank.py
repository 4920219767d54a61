"""Banks of phrases: what describes images, what is kept on the disk, and prompts that begin at phrases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from inputs import refused

import pez_fast
from pez_fast.models.loading import BUNDLED
from pez_fast.tasks import PhraseBank, load_bank
from pez_fast.tasks.bank import BANKS
from pez_fast.tasks.phrase_cache import VARIABLE, cache_folder

PICTURES = sorted((BUNDLED["emoji"] / "images").glob("*.png"))
SMALL = {"subjects": ["a red cat", "a dog", "the sea"], "flavors": ["blue", "dark green", "a hat", "soft light"]}
QUICK = {"steps": 6, "refine": 2, "prompt_len": 4}


@pytest.fixture
def calls(tiny_clip, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of texts that the tiny model encodes, call by call."""
    made, encode = [], tiny_clip.encode_texts
    monkeypatch.setattr(tiny_clip, "encode_texts", lambda texts: (made.append(len(texts)), encode(texts))[1])
    return made


@pytest.fixture
def emoji():
    return pez_fast.load_clip("emoji", device="cpu")


def without_time(results) -> list[dict]:
    return [{**result.to_dict(), "seconds": 0} for result in results]


def test_the_bundled_images_are_described(emoji, tmp_path):
    """Subject and colour of the files' names are in the texts: of six of eight pictures, and of all."""
    found = pez_fast.describe(PICTURES, emoji, cache=tmp_path)
    names = [path.stem.partition(" on ") for path in PICTURES]
    assert sum(d.text == f"{n}, {c} background" for d, (n, _, c) in zip(found, names, strict=True)) >= 5
    assert sum(f"{c} background" in d.text for d, (_, _, c) in zip(found, names, strict=True)) == 8
    for path, each in zip(PICTURES, found, strict=True):
        typed = pez_fast.score([path], [each.text, *(part.phrase for part in each.parts)], emoji)[0].tolist()
        assert typed == [each.score, *(part.score for part in each.parts)]
        assert each.parts[-1].text_score == each.score
        assert [part.category for part in each.parts] == ["subjects", "backgrounds"]
    assert pez_fast.describe(PICTURES[2], emoji, cache=tmp_path) == found[2]


def test_the_banks_that_come_with_the_package():
    for name, categories in (
        ("general", ["subjects", "mediums", "movements", "flavors"]),
        ("emoji", ["subjects", "backgrounds"]),
    ):
        bank = load_bank(name)
        assert list(bank.categories) == categories and all(len(c) > 10 for c in bank.categories.values())
        for path in (BANKS / name).iterdir():
            lines = path.read_text("ascii").splitlines()
            assert lines == [" ".join(line.split()) for line in lines] and len(set(lines)) == len(lines)
    assert "CC0" in (BANKS / "NOTICE").read_text()
    assert load_bank(None, "emoji").name == "emoji" and load_bank(None, "small").name == "general"


def test_a_folder_of_text_files_is_a_bank(tmp_path):
    (tmp_path / "artists.txt").write_text("Ädam\r\n\r\n  Eva \n Ädam\n", encoding="utf-8-sig")
    (tmp_path / "Flavors.TXT").write_text("red\nblue")
    (tmp_path / "styles.txt").write_text("loud")
    (tmp_path / "mediums.txt").write_text("a photo\n")
    (tmp_path / "._mediums.txt").write_bytes(b"\0\1")
    (tmp_path / "notes.md").write_text("not a list")
    bank = load_bank(tmp_path)
    assert list(bank.categories) == ["mediums", "artists", "styles", "flavors"]
    assert bank.categories["artists"] == ["Ädam", "Eva"]
    assert repr(bank) == f"PhraseBank({tmp_path}: 1 mediums, 2 artists, 1 styles, 2 flavors)"
    assert load_bank(bank) is bank


def test_flavors_are_chained_as_long_as_they_raise_the_cosine(emoji):
    known = load_bank("emoji").categories
    flavors = [*known["subjects"][:30], "pizza", *known["backgrounds"]]
    bank, picture = PhraseBank({"flavors": flavors, "subjects": ["watch", "cookie"]}), PICTURES[2]
    found = pez_fast.describe(picture, emoji, bank, max_flavors=6, candidates=50, cache=False)
    chain = [part.text_score for part in found.parts]
    assert 2 <= len(chain) <= 7 and chain == sorted(chain) and len(set(chain)) == len(chain)
    assert found.parts[0].category == "subjects" and found.text == ", ".join(p.phrase for p in found.parts)
    first = pez_fast.score([picture], [f"{found.parts[0].phrase}, {flavor}" for flavor in flavors], emoji)[0]
    assert found.parts[1].phrase == flavors[int(first.argmax())] == "green background"
    if len(chain) < 7:  # no other flavor would have raised it
        left = [flavor for flavor in flavors if flavor not in found.text]
        assert pez_fast.score([picture], [f"{found.text}, {flavor}" for flavor in left], emoji).max() <= chain[-1]
    none = pez_fast.describe(picture, emoji, bank, max_flavors=0, cache=False)
    assert [part.category for part in none.parts] == ["subjects"]


def test_phrases_alone_and_only_flavors(tiny_clip, images):
    found = pez_fast.describe(images[0], tiny_clip, {"flavors": ["red", "blue"]}, max_flavors=1, cache=False)
    scores = pez_fast.score([images[0]], ["red", "blue"], tiny_clip)[0]
    assert found.text == ["red", "blue"][int(scores.argmax())]


def test_a_batch_is_as_its_images_alone(tiny_clip, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    many = pez_fast.describe([images[0], tmp_path / "broken.png", images[1]], tiny_clip, SMALL, cache=False)
    assert [many[0], many[2]] == [pez_fast.describe(i, tiny_clip, SMALL, cache=False) for i in images[:2]]
    assert "broken.png" in many[1].error and str(many[1]) == many[1].error and '"score": null' in many[1].to_json()
    alone = pez_fast.describe([tmp_path / "broken.png"], tiny_clip, SMALL, cache=False)
    assert alone == [many[1]]


def test_the_text_fits_into_the_context(tiny_clip, images):
    long = [" ".join(["cat"] * 60), " ".join(["dog"] * 50)]
    bank = {"subjects": long, "styles": [" ".join(["sea"] * 30), "sun"], "flavors": long}
    found = pez_fast.describe(images[0], tiny_clip, bank, cache=False)
    assert len(tiny_clip.vocabulary.encode(found.text)) <= 75
    assert [p.category for p in found.parts] == ["subjects", "styles"] and found.parts[1].phrase == "sun"


def test_phrases_are_encoded_once(tiny_clip, images, calls, tmp_path):
    bank, seen = load_bank("general"), []
    first = bank.features(tiny_clip, tmp_path, lambda *counted: seen.append(counted))
    total = sum(map(len, bank.categories.values()))
    assert sum(calls) == total and seen[-1] == ("phrases", total, total)
    calls.clear()
    bank.features(tiny_clip, tmp_path)  # in memory
    again = load_bank("general").features(tiny_clip, tmp_path)  # from the disk
    assert calls == [] and all(torch.equal(first[name], again[name]) for name in first)
    load_bank({**bank.categories, "mediums": ["a photo"]}).features(tiny_clip, tmp_path)
    assert calls == [1]  # what has changed
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"]


def test_another_model_has_features_of_its_own(tiny_clip, emoji, tmp_path):
    for model, count in ((tiny_clip, 2), (emoji, 4)):
        load_bank(SMALL).features(model, tmp_path)
        assert len(list(tmp_path.rglob("*.phrases"))) == count
    assert load_bank(SMALL).features(emoji, tmp_path)["subjects"].shape == (3, 128)


@pytest.mark.parametrize("damage", [b"", b"x", None, "flip"])
def test_a_damaged_file_is_written_anew(tiny_clip, calls, tmp_path, damage):
    whole = load_bank({"subjects": ["a", "b"]}).features(tiny_clip, tmp_path)["subjects"]
    file = next(tmp_path.rglob("*.phrases"))
    content = file.read_bytes()
    broken = content[:-4] if damage is None else content[:-1] + b"\x7f" if damage == "flip" else damage
    file.write_bytes(broken)
    with pytest.warns(UserWarning, match=f"{re.escape(str(file))} is damaged, so its phrases are encoded again"):
        again = load_bank({"subjects": ["a", "b"]}).features(tiny_clip, tmp_path)["subjects"]
    assert torch.equal(whole, again) and file.read_bytes() == content and calls == [2, 2]


def test_nothing_is_kept_where_nothing_can_be_written(tiny_clip, calls, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="phrases are not kept for the next time") as told:
        load_bank(SMALL).features(tiny_clip, tmp_path / "file")
    assert len(told) == 1 and calls == [3, 4]
    load_bank(SMALL).features(tiny_clip, False)
    assert calls == [3, 4, 3, 4] and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_features_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / "x" / "pez_fast"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "l"))
    assert cache_folder() == tmp_path / "l" / "pez_fast" / "Cache"


@pytest.mark.parametrize("use", ["init", "hold"])
def test_prompts_with_phrases_do_not_depend_on_the_batch(tiny_clip, images, use):
    many = pez_fast.invert_with_bank(images[:3], tiny_clip, SMALL, use, cache=False, **QUICK)
    alone = [pez_fast.invert_with_bank(image, tiny_clip, SMALL, use, cache=False, **QUICK) for image in images[:3]]
    assert without_time(many) == without_time(alone)


def test_held_phrases_stay_and_progress_counts_all_images(tiny_clip, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    given = [images[0], tmp_path / "broken.png", images[1]]
    seen: list = []
    results = pez_fast.invert_with_bank(
        given, tiny_clip, SMALL, "hold", cache=False, prefix="so:", callback=seen.append, every=1, **QUICK
    )
    for image, result in ((images[0], results[0]), (images[1], results[2])):
        described = pez_fast.describe(image, tiny_clip, SMALL, max_flavors=2, cache=False)
        assert result.prompt.startswith(f"so: {described.text}, ") and len(result.ids) == 4
        assert pez_fast.score([image], [result.prompt], tiny_clip).item() == pytest.approx(result.text_score, abs=1e-6)
    assert "broken.png" in results[1].error
    assert {len(state.prompts) for state in seen} == {2}
    assert seen[-1].step == seen[-1].steps == 6 and sorted(s.step for s in seen) == [s.step for s in seen]
    stopped = pez_fast.invert_with_bank(
        images[:3], tiny_clip, SMALL, "hold", cache=False, callback=lambda state: True, every=1, **QUICK
    )
    assert {result.stop_reason for result in stopped} == {"callback"} and len(stopped) == 3


def test_a_search_begins_at_the_phrases(tiny_clip, images):
    begun: list = []
    pez_fast.invert_with_bank(
        images[0], tiny_clip, SMALL, cache=False, prompt_len=8, steps=1, refine=0, callback=begun.append, every=1
    )
    phrases = [p.phrase for p in pez_fast.describe(images[0], tiny_clip, SMALL, max_flavors=2, cache=False).parts]
    assert begun[0].step == 0 and begun[0].prompts[0].startswith(" ".join(phrases))
    parts = pez_fast.invert_with_bank(
        images[0], tiny_clip, SMALL, cache=False, prompt_len=8, steps=1, refine=0, banned=[phrases[0].split()[-1]]
    )
    assert phrases[0] not in parts.prompt


def test_each_target_of_a_search_has_its_own_beginning(tiny_clip, images):
    from pez_fast.objectives import Similarity

    targets = tiny_clip.encode_images(images[:2])
    inits = ["a red cat", None]
    together = pez_fast.search(Similarity(targets), tiny_clip, inits=inits, batch_size=1, **QUICK)
    alone = [
        pez_fast.search(Similarity(targets[k : k + 1]), tiny_clip, init=inits[k], restarts=1, **QUICK)[0]
        for k in range(2)
    ]
    assert without_time(together) == without_time(alone)
    with refused(ValueError, "inits must hold a text for each of the 2 targets; got 1"):
        pez_fast.search(Similarity(targets), tiny_clip, inits=["a"], **QUICK)


def describe_of(bank, **more):
    return lambda clip, image: pez_fast.describe(image, clip, bank, cache=False, **more)


REFUSED = [
    (describe_of("/nowhere"), ValueError, "bank must be a folder, or emoji or general; '/nowhere' cannot be read: No "),
    (describe_of(3), TypeError, "bank must be a folder, a name or lists of phrases by category; got int"),
    (describe_of({}), ValueError, "bank given holds no category"),
    (describe_of({"a": []}), ValueError, "bank must hold at least one phrase as a; got none"),
    (describe_of({"a": "cat"}), ValueError, "bank must hold a list of phrases as a; got 'cat'"),
    (describe_of({"a": [1]}), ValueError, "bank must hold phrases as a; got 1"),
    (describe_of({"a": ["x " * 90]}), ValueError, f"the phrase '{'x ' * 30}…' of a has 90 tokens; the model's context"),
    (describe_of(SMALL, max_flavors=-1), ValueError, "max_flavors must be an integer, not negative; got -1"),
    (describe_of(SMALL, candidates=0), ValueError, "candidates must be a positive integer; got 0"),
    (lambda c, i: pez_fast.describe([], c, SMALL), ValueError, "images must hold at least one image; got an empty"),
    (
        lambda c, i: pez_fast.describe(i, c, SMALL, cache=3),
        ValueError,
        "cache must be a folder, or False for none; got 3",
    ),
    (lambda c, i: pez_fast.describe(i, "clip", SMALL), TypeError, "model must come from load_clip"),
    (
        lambda c, i: pez_fast.invert_with_bank(i, c, SMALL, "both"),
        ValueError,
        "use must be 'init' or 'hold'; got 'both'",
    ),
    (
        lambda c, i: pez_fast.invert_with_bank(i, c, SMALL, init="a"),
        ValueError,
        "init and use='init' exclude each other",
    ),
    (
        lambda c, i: pez_fast.invert_with_bank(i, c, SMALL, "hold", prompt_len=75, cache=False),
        ValueError,
        "prompt_len must leave room for a phrase of the bank in the context of 75 tokens; got 75",
    ),
]


@pytest.mark.parametrize(("call", "kind", "sentence"), REFUSED)
def test_what_cannot_be_used_is_one_sentence(tiny_clip, images, call, kind, sentence):
    with refused(kind, re.escape(sentence)):
        call(tiny_clip, images[0])


def test_files_that_cannot_be_used_are_one_sentence(tmp_path: Path):
    with refused(ValueError, "holds no .txt file; each of them is a category"):
        load_bank(tmp_path)
    for content, sentence in (
        (b" \n", "holds no phrase"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"a\0", "no text in"),
    ):
        (tmp_path / "a.txt").write_bytes(content)
        with refused(ValueError, f"bank file .*a.txt .*{sentence}"):
            load_bank(tmp_path)
