"""Targets of any kind, prompts that are joined, and both ways to one prompt for several images."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
import torch
from test_cli import complaint, here, run, tiny  # noqa: F401

import pez_fast
from pez_fast.report import mixing
from pez_fast.report.sheet import check_writable
from pez_fast.result import PromptResult

QUICK = {"prompt_len": 4, "steps": 12, "refine": 0}


def mean_cosine(text, targets, clip):
    return float((clip.encode_texts([text]) @ targets.T).mean())


def test_images_and_texts_are_one_weighted_target(tiny_clip, images, monkeypatch):
    seen = []
    search = pez_fast.search
    monkeypatch.setattr("pez_fast.tasks.images.search", lambda *a, **o: seen.append(a[0]) or search(*a, **o))
    texts, weights = ["a red cat", "the sea"], [1, 0.25, -0.5, 2]
    result = pez_fast.invert(images[:2], tiny_clip, texts=texts, weights=weights, **QUICK)
    features = torch.cat([tiny_clip.encode_images(images[:2]), tiny_clip.encode_texts(texts)])
    target = sum(w * row for w, row in zip(weights, features, strict=True)) / 3.75
    torch.testing.assert_close(seen[0].targets, target[None])
    assert result.text_score == pytest.approx(float(tiny_clip.encode_texts([result.prompt]) @ target), abs=1e-6)
    pez_fast.invert(images[:2], tiny_clip, texts=texts, **QUICK)
    torch.testing.assert_close(seen[1].targets, features.mean(0)[None])


@pytest.mark.parametrize("none", [None, [], ()])
def test_a_text_alone_is_what_distill_learns(tiny_clip, none):
    alone = pez_fast.invert(none, tiny_clip, texts="a red cat by the sea", **QUICK)
    short = pez_fast.distill("a red cat by the sea", tiny_clip, **QUICK)
    assert {**alone.to_dict(), "seconds": 0} == {**short.to_dict(), "seconds": 0}


def test_a_negative_weight_pushes_away_and_a_text_is_found():
    clip, text = pez_fast.load_clip("emoji", device="cpu"), "a red apple on white"
    options = {"prompt_len": 3, "steps": 40, "refine": 0, "vocabulary": "words"}
    found = pez_fast.invert(None, clip, texts=text, **options)
    assert "red" in found.prompt and found.text_score > 0.8
    away = pez_fast.invert(None, clip, texts=["a rocket on white", text], weights=[1, -0.5], **options)
    near = pez_fast.invert(None, clip, texts=["a rocket on white", text], weights=[1, 0.5], **options)
    target = clip.encode_texts([text])
    assert mean_cosine(away.prompt, target, clip) < mean_cosine(near.prompt, target, clip) - 0.1


def test_a_text_longer_than_the_context_is_warned_of(tiny_clip):
    with pytest.warns(UserWarning, match="reads the first 75 of the 80 tokens") as told:
        pez_fast.invert(None, tiny_clip, texts="cat " * 80, **QUICK)
    assert len(told) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_best_of_all_orders_is_taken(tiny_clip, images, count):
    texts = ["a red cat", "sea and rain", "two old boats", "music"][:count]
    joined = pez_fast.concatenate(texts, tiny_clip, images[:count])
    targets = tiny_clip.encode_images(images[:count])
    every = {o: mean_cosine(" ".join(texts[k] for k in o), targets, tiny_clip) for o in permutations(range(count))}
    best = max(every, key=every.get)
    assert joined.order == list(best) and joined.prompt == " ".join(texts[k] for k in best)
    assert joined.score == pytest.approx(every[best], abs=1e-6)
    assert joined.scores == pez_fast.score(images[:count], [joined.prompt], tiny_clip)[:, 0].tolist()
    assert {tuple(order): pytest.approx(score, abs=1e-6) for order, score in joined.tried} == every
    assert joined.parts == texts and joined.cut == [[]] * count and joined.note == ""
    assert joined.tokens == len(tiny_clip.vocabulary.encode(joined.prompt)) and joined.limit == 75


def test_many_prompts_are_placed_one_by_one(tiny_clip, images):
    texts = ["cat", "sea", "boat", "music", "rain", "apple", "city"]
    joined, targets = pez_fast.concatenate(texts, tiny_clip, images[:3]), tiny_clip.encode_images(images[:3])
    order: list[int] = []
    for k in range(len(texts)):
        tried = [[*order[:at], k, *order[at:]] for at in range(len(order) + 1)]
        order = max(tried, key=lambda o: mean_cosine(" ".join(texts[j] for j in o), targets, tiny_clip))
    given = mean_cosine(" ".join(texts), targets, tiny_clip)
    expected = mean_cosine(" ".join(texts[j] for j in order), targets, tiny_clip)
    assert joined.score == pytest.approx(max(given, expected), abs=1e-6) and len(joined.tried) == 2


def test_one_word_too_many_is_the_one_that_costs_least(tiny_clip, images):
    rng = torch.Generator().manual_seed(0)
    words = ["cat", "sea", "boat", "music", "rain", "apple", "city", "red", "house", "king"]
    texts = [" ".join(words[i] for i in torch.randint(10, (38,), generator=rng)) for _ in range(2)]
    joined, targets = pez_fast.concatenate(texts, tiny_clip, images[:2]), tiny_clip.encode_images(images[:2])
    costs = {}
    for k, text in enumerate(texts):
        row = text.split()
        for at in range(38):
            shorter = " ".join(row[:at] + row[at + 1 :])
            costs[k, at] = mean_cosine(text, targets[k : k + 1], tiny_clip) - mean_cosine(
                shorter, targets[k : k + 1], tiny_clip
            )
    (k, at), least = min(costs.items(), key=lambda item: item[1])
    assert joined.tokens == 75 and sum(map(len, joined.cut)) == 1 and joined.cut[1 - k] == []
    row = texts[k].split()
    del row[at]
    assert mean_cosine(joined.parts[k], targets[k : k + 1], tiny_clip) == pytest.approx(
        mean_cosine(" ".join(row), targets[k : k + 1], tiny_clip), abs=1e-6
    )
    assert joined.note == f"the model reads 75 tokens, so 1 word was cut: {joined.cut[k][0]}"


def test_prompts_far_too_long_are_cut_to_the_context(tiny_clip, images):
    texts = ["cat sea boat " * 60, "rain apple", "日本語" * 60, "😀 " * 90]
    joined = pez_fast.concatenate(texts, tiny_clip, images[:2])
    assert joined.tokens <= 75 and all(joined.parts) and "words were cut" in joined.note
    assert len(tiny_clip.vocabulary.encode(joined.prompt)) == joined.tokens
    for text, part, cut in zip(texts, joined.parts, joined.cut, strict=True):
        assert sorted("".join([part, *cut]).replace(" ", "")) == sorted(text.replace(" ", ""))
    with pytest.raises(ValueError, match="prompts must fit into the 75 tokens that the model reads; got 80 of them"):
        pez_fast.concatenate(["a"] * 80, tiny_clip)


def test_without_images_the_prompts_themselves_are_the_targets(tiny_clip):
    texts = ["a red cat", "the sea"]
    joined, targets = pez_fast.concatenate(texts, tiny_clip), tiny_clip.encode_texts(texts)
    both = [mean_cosine(text, targets, tiny_clip) for text in ("a red cat the sea", "the sea a red cat")]
    assert joined.score == pytest.approx(max(both), abs=1e-6)
    assert json.loads(joined.to_json())["prompt"] == str(joined) == joined.prompt


def test_a_result_without_a_prompt_is_left_out_with_its_image(tiny_clip, images):
    given = [PromptResult(prompt="a red cat"), PromptResult(error="no image"), "the sea"]
    joined = pez_fast.concatenate(given, tiny_clip, [images[0], "missing.png", images[1]])
    other = pez_fast.concatenate(["a red cat", "the sea"], tiny_clip, images[:2])
    assert joined.prompt == other.prompt and joined.scores == other.scores
    assert joined.parts == ["a red cat", "", "the sea"] and joined.order == [2 * k for k in other.order]
    assert joined.note == "1 of 3 results had no prompt and was left out"


def test_mix_is_invert_batch_invert_and_concatenate(tiny_clip, images):
    sources = [images[0], b"no image", images[1], images[0]]
    found = pez_fast.mix(sources, tiny_clip, **QUICK)
    each = pez_fast.invert_batch(sources, tiny_clip, **QUICK)
    assert [r.ids for r in found.each] == [r.ids for r in each] and found.each[1].error == each[1].error
    good = [images[0], images[1], images[0]]
    assert found.shared.ids == pez_fast.invert(good, tiny_clip, **QUICK).ids and found.images == [0, 2, 3]
    joined = pez_fast.concatenate(each, tiny_clip, sources)
    assert found.joined == joined and sorted(joined.order) == [0, 2, 3]
    prompts = [each[0].prompt, found.shared.prompt]
    assert [found.each_scores[0], found.shared_scores] == pez_fast.score(good, prompts, tiny_clip).T.tolist()
    assert found.each_scores[1] == [] and json.loads(found.to_json())["each"][1]["text_score"] is None
    one = pez_fast.mix(images[:1], tiny_clip, **QUICK)
    assert one.joined.prompt == one.shared.prompt == one.each[0].prompt


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: pez_fast.invert(None, c), "images must hold at least one image, or texts one text; got neither"),
        (lambda c: pez_fast.invert([], c, texts=[]), "images must hold at least one image, or texts one text"),
        (lambda c: pez_fast.invert(None, c, texts=" "), "texts must not be empty; got ' '"),
        (lambda c: pez_fast.invert(None, c, texts=["a", 3]), "texts must hold texts alone; got 3"),
        (lambda c: pez_fast.invert(None, c, texts=3), "texts must be a text or a list of texts; got 3"),
        (lambda c: pez_fast.invert(None, c, texts="a", weights=[1, 2]), "each of the 1 targets; got 2"),
        (lambda c: pez_fast.invert(None, c, texts=["a", "b"], weights=[0, 0]), "finite and not all zero; got "),
        (lambda c: pez_fast.invert(None, c, texts="a", weights=[float("nan")]), "finite and not all zero; got "),
        (lambda c: pez_fast.invert(None, c, texts="a", weights=1), "weights must be a list of numbers; got 1"),
        (lambda c: pez_fast.invert(None, c, texts="a", weights="1"), "weights must be a list of numbers; got '1'"),
        (lambda c: pez_fast.invert(None, c.model, texts="a"), "model must come from load_clip"),
        (lambda c: pez_fast.concatenate([], c), "prompts must hold at least one prompt"),
        (lambda c: pez_fast.concatenate("a", c), "prompts must be a list of texts or results; got str"),
        (lambda c: pez_fast.concatenate(["a", " "], c), "prompts must not be empty; got ' '"),
        (lambda c: pez_fast.concatenate(["a", 3], c), "prompts must hold texts alone; got 3"),
        (lambda c: pez_fast.concatenate([PromptResult(error="gone")], c), "the first has the error 'gone'"),
        (lambda c: pez_fast.concatenate(["a"], c, []), "images must hold at least one image"),
        (lambda c: pez_fast.concatenate(["a"], c, "none.png"), "image none.png does not exist"),
        (lambda c: pez_fast.concatenate(["a"], c.model), "model must come from load_clip"),
        (lambda c: pez_fast.mix([], c), "images must hold at least one image"),
        (lambda c: pez_fast.mix("a.png", c), "images must be a list of images; got str"),
        (lambda c: pez_fast.mix([b""], c), "images must hold at least one image that can be read: image the given"),
        (lambda c: pez_fast.mix([b""], c, steps=0), "steps must be a positive integer; got 0"),
    ],
)
def test_bad_calls_are_one_sentence(tiny_clip, call, sentence):
    with pytest.raises((ValueError, TypeError)) as caught:
        call(tiny_clip)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("tiny")
def test_mix_shows_both_ways_side_by_side(tiny_clip, tmp_path):
    arguments = ("mix", "a.png", "b.png", "--prompt-len", 4, "--steps", 12, "--refine", 0)
    found = pez_fast.mix(["a.png", "b.png"], tiny_clip, **QUICK)
    shown = run(*arguments, "--sheet", "mix.png")
    value = json.loads(run(*arguments, "--json").stdout)
    assert value["joined"] == json.loads(found.joined.to_json()) and "history" not in value["shared"]
    assert [row["image"] for row in value["each"]] == ["a.png", "b.png"]
    assert value["shared"]["prompt"] == found.shared.prompt and value["shared_scores"] == found.shared_scores
    for name, scores in (("joined (", found.joined.scores), ("one for both", found.shared_scores)):
        (line,) = [line for line in shown.stdout.splitlines() if line.lstrip().startswith(name)]
        assert all(f"{score:.3f}" in line for score in [*scores, sum(scores) / 2])
    assert "the joined prompt has 8 tokens, the one for all 4 learned ones" in shown.stderr
    assert shown.stderr.splitlines()[-1] == "sheet written to mix.png"
    with pytest.raises(ValueError, match="is no sheet of pez_fast"):
        check_writable(tmp_path / "a.png")


@pytest.mark.usefixtures("tiny")
def test_mix_goes_on_after_an_unreadable_image():
    arguments = ("mix", "a.png", "broken.png", "b.png", "--prompt-len", 2, "--steps", 3, "--refine", 0)
    shown = run(*arguments, "--sheet", "mix.png", code=1)
    assert "damaged" in shown.stdout and "1 of 3 results" not in shown.stdout and "joined (" in shown.stdout
    assert complaint("mix", "broken.png").startswith("images must hold at least one image that can be read")
    many = run("mix", *["a.png"] * 6, "--prompt-len", 2, "--steps", 1, "--refine", 0)
    assert "lowest" in many.stdout and "one for all" in many.stdout


@pytest.mark.usefixtures("tiny")
def test_invert_takes_texts_and_weights_on_the_command_line(tiny_clip):
    flags = ("--prompt-len", 4, "--steps", 12, "--refine", 0)
    out = run("invert", "a.png", "--text", "a cat", "--weight", 1, "--weight", -0.5, *flags, "--sheet", "s.png").stdout
    assert out == pez_fast.invert("a.png", tiny_clip, texts="a cat", weights=[1, -0.5], **QUICK).prompt + "\n"
    assert (
        run("invert", "--text", "a cat", *flags).stdout == pez_fast.distill("a cat", tiny_clip, **QUICK).prompt + "\n"
    )
    for arguments, sentence in (
        ([], "Missing argument 'IMAGE'; give at least one image, or a text with --text"),
        (["--text", " "], "--text must not be empty; got ' '"),
        (["--text", "a", "--each", "a.png"], "--text and --each exclude each other"),
        (
            ["a.png", "--text", "a", "--weight", "1"],
            "--weight must be given once for each of the 1 images and the 1 texts; got 1",
        ),
        (["--text", "a", "--weight", "0"], "weights must be finite and not all zero; got [0.0]"),
    ):
        assert complaint("invert", *arguments) == sentence


def test_a_mix_without_any_prompt_is_shown(capsys, tmp_path):
    lost = PromptResult(error="lost", model="m")
    none = pez_fast.Mix([lost], pez_fast.Concatenation(error="lost"), lost, [0], [[]], [])
    mixing.show_mix(["[a].png"], none, as_json=False)
    assert capsys.readouterr().out.count("lost") == 3 and not mixing.write_mix(tmp_path / "x.png", ["a"], [[]], none)
