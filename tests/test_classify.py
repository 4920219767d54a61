"""Prompts for classification and for a text, as a user learns them, on tiny language models with random weights."""

from __future__ import annotations

import json
import math

import pytest
import torch

pytest.importorskip("transformers")
from inputs import refused  # noqa: E402
from languages import language, plain_nll, plain_scores  # noqa: E402

import pez_fast  # noqa: E402
from pez_fast import continuation, evaluate_classifier, learn_classifier, transfer  # noqa: E402

FRONT, VERBALIZER = "{prompt}{text} It was {label}", "0=cat,1=dog"
WORDS = "the cat of house a red dog do not blue dogs".split()
ROWS = [{"text": f"{WORDS[k % 11]} {WORDS[k * 7 % 11]} {WORDS[k * 3 % 5]}", "label": k % 2} for k in range(24)]
QUICK = {"prompt_len": 3, "steps": 6, "held_out": 6, "minibatch": 4, "held_out_every": 2, "lr": 0.5}
NAMES = ("gpt2", "t5, tied")


def learned(name="gpt2", rows=ROWS, template=FRONT, verbalizer=VERBALIZER, **options):
    return learn_classifier(rows, language(name), template, verbalizer, **{**QUICK, **options})


def plain(result):
    return {**json.loads(result.to_json()), "seconds": 0}  # where NaN is None, which equals itself


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_learned(name):
    result, lm = learned(name, seed=3), language(name)
    assert result.error is None and result.stop_reason == "steps" and result.steps == 6 and result.seed == 3
    assert lm.vocabulary.encode(result.prompt) == result.ids and len(result.ids) == 3
    assert [math.isnan(score) for score in result.history] == [False, True] * 3 + [False]
    assert [step for step, *_ in result.curve] == [0, 2, 4, 6]
    assert result.text_score == pytest.approx(max(s for s in result.history if s == s), abs=1e-6)
    assert (result.examples, result.held_out, result.model) == (18, 6, name)
    assert (result.template, result.verbalizer, result.fluency) == (FRONT, {"0": "cat", "1": "dog"}, 0)
    best = max(result.curve, key=lambda point: (point[1], -point[2]))
    assert best[1:] == pytest.approx((result.accuracy, result.loss), abs=1e-4)
    assert (result.perplexity is None) == lm.is_encoder_decoder
    values = json.loads(result.to_json())
    assert values["history"][1] is None and values["curve"][0] == [0, *result.curve[0][1:]]
    assert values["accuracy"] == result.accuracy


@pytest.mark.parametrize(
    "options",
    [
        {"shots": 3, "held_out": None},
        {"shots": 2, "held_out": 4},
        {"held_out": 0.25},
        {"held_out": None},
        {"calibrate": True},
        {"fluency": 0.3},
        {"fluency": 0.3, "template": "{text} {prompt} It was {label}"},
        {"minibatch": 99},
        {"minibatch": 1},
        {"restarts": 3, "top_k": 3},
        {"refine": 2},
        {"held_out_every": 1},
        {"verbalizer": {0: "cat", 1: "the red dog"}, "calibrate": True},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_options(name, options):
    if name != "gpt2" and "fluency" in options:
        with refused(ValueError, "fluency must be 0 for the encoder-decoder t5, tied"):
            learned(name, **options)
        return
    result = learned(name, **options)
    again = learned(name, **options, batch_size=1 if "restarts" not in options else 2)
    assert result.error is None and plain(result) == plain(again)
    assert plain(result) != plain(learned(name, **options, seed=1))
    if "dtype" not in options:
        assert result.text_score == pytest.approx(result.ids_score, abs=1e-5)
    every = options.get("held_out_every", 2)
    assert [step for step, *_ in result.curve] == list(range(0, 7, every))
    assert len(result.top) == options.get("top_k", 1) == len({found.prompt for found in result.top})
    assert all(a.text_score >= b.text_score for a, b in zip(result.top, result.top[1:], strict=False))
    held = {"shots": 3, "held_out": None} == options and 6 or 4 if None in options.values() or "shots" in options else 6
    assert result.held_out == held and (result.examples == 2 * options["shots"] if "shots" in options else True)
    json.loads(result.to_json())


def test_the_loss_of_a_result_holds_its_fluency():
    result, lm = learned(fluency=0.3, held_out_every=1), language("gpt2")
    held = [point for step, *point in result.curve]
    best = max(held, key=lambda point: (point[0], -point[1]))
    assert result.loss == pytest.approx(best[1], abs=1e-4)
    nll = float(plain_nll(lm, result.ids, lm.table().weight[result.ids]))
    assert result.perplexity == pytest.approx(math.exp(nll), rel=1e-5)


def test_patience_ends_a_search():
    result = learned(steps=60, patience=8, lr=0.0)
    assert result.stop_reason == "patience" and 8 <= result.steps < 20
    assert [step for step, *_ in result.curve] == list(range(0, result.steps + 1, 2))


def test_a_callback_sees_progress_and_ends_a_search():
    seen = []

    def callback(progress):
        seen.append((progress.step, progress.prompts[0], progress.scores[0]))
        return progress.step >= 4

    result = learned(callback=callback, every=2, steps=50)
    assert result.stop_reason == "callback" and [step for step, *_ in seen] == [0, 2, 4] and result.steps == 4
    assert all(prompt and score == score for _, prompt, score in seen)
    assert result.prompt == seen[-1][1] and result.accuracy >= 0


def test_ctrl_c_returns_the_best_so_far():
    def interrupt(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    result, whole = learned(callback=interrupt, every=4, steps=50), learned(steps=4)
    assert result.stop_reason == "interrupt" and result.steps == 4 and result.error is None
    assert (result.prompt, result.curve) == (whole.prompt, whole.curve)


@pytest.mark.parametrize("prompt", ["", " the red cat", "déjà vu"])
@pytest.mark.parametrize(("words", "calibrate"), [(("cat", "dog"), False), (("cat", "the red dog"), True)])
@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_is_that_of_a_plain_loop(name, words, calibrate, prompt):
    lm = language(name)
    found = evaluate_classifier(prompt, lm, ROWS, FRONT, list(words), calibrate=calibrate)
    scores, classes = plain_scores(lm, FRONT, words, ROWS, prompt, calibrate=calibrate), [r["label"] for r in ROWS]
    best = scores.argmax(-1).tolist()
    assert found.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(scores, torch.tensor(classes))), abs=1e-5
    )
    assert found.predictions == [str(k) for k in best] and found.labels == ["0", "1"]
    pairs = list(zip(classes, best, strict=True))
    assert found.confusion == [[pairs.count((true, given)) for given in (0, 1)] for true in (0, 1)]
    assert found.accuracy == sum(true == given for true, given in pairs) / len(ROWS)
    assert (found.perplexity is None) == (not prompt or lm.is_encoder_decoder) and json.loads(found.to_json())


def test_empty_texts_behind_an_empty_prompt():
    rows = [row | {"text": ""} for row in ROWS[:2]] + ROWS[:4]
    with refused(ValueError, r"template '.*' leaves no text to read: row 1 is empty"):
        evaluate_classifier("", language("gpt2"), rows, "{prompt}{text} {label}", VERBALIZER)
    found = evaluate_classifier("", language("llama"), rows, "{prompt}{text} {label}", VERBALIZER)
    scores = plain_scores(language("llama"), "{prompt}{text} {label}", ("cat", "dog"), rows, "")
    assert found.predictions == [str(k) for k in scores.argmax(-1).tolist()]


def test_prompts_are_scored_by_other_models():
    lms, result = [language(name) for name in NAMES], learned(top_k=2)
    found = transfer([result, "a cat "], lms, ROWS, FRONT, VERBALIZER)
    prompts = [*(candidate.prompt.strip() for candidate in result.top), "a cat"]
    assert [(one.model, one.prompt) for one in found] == [(name, prompt) for name in NAMES for prompt in prompts]
    for lm, part in zip(lms, (found[: len(prompts)], found[len(prompts) :]), strict=True):
        for one in part:
            alone = evaluate_classifier(one.prompt, lm, ROWS, FRONT, VERBALIZER)
            assert {**alone.to_dict(), "seconds": 0} == {**one.to_dict(), "seconds": 0}
    assert transfer("a cat", lms[0], ROWS, FRONT, VERBALIZER)[0].loss == found[len(prompts) - 1].loss


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_made_likelier(name):
    lm, target = language(name), "the red dogs and the cat"
    result = continuation(target, lm, prompt_len=3, steps=30, refine=0)
    assert result.error is None and result.history[0] < result.ids_score and len(result.history) == 31
    (logp,) = plain_scores(lm, "{prompt} {label}", [target], [{}], result.prompt)[0]
    count = len(lm.vocabulary.encode(" " + target))
    assert result.text_score == pytest.approx(float(logp) / count, abs=1e-5)
    assert result.text_score == pytest.approx(max(result.history), abs=1e-5)


BAD = [
    ({"lm": 3}, TypeError, "lm must come from load_lm, or be a LanguageModel; got int"),
    ({"examples": "nowhere.csv"}, ValueError, "examples nowhere.csv does not exist"),
    ({"examples": []}, ValueError, "holds no rows"),
    ({"examples": 3}, TypeError, "examples must be a path"),
    ({"template": None}, ValueError, "template must be given"),
    ({"template": 3}, TypeError, "template must be a text; got int"),
    ({"template": "{text} {label}"}, ValueError, r"must have \{prompt\} exactly once"),
    ({"template": "{prompt}{words} {label}"}, ValueError, "needs the column 'words'; row 1 has the columns 'text'"),
    ({"template": "{prompt}" + " the cat" * 40 + " {label}"}, ValueError, "must leave room for the prompt"),
    ({"verbalizer": 3}, TypeError, "verbalizer must be a dict, a list of words or a text; got int"),
    ({"verbalizer": "0=cat"}, ValueError, "verbalizer must have two classes or more"),
    ({"verbalizer": "0=cat,2=dog"}, ValueError, "row 2: label 1 is unknown; the labels are '0', '2'"),
    ({"verbalizer": "0=cat,1=dog,2=red"}, ValueError, "examples must hold every label; none has '2'"),
    ({"verbalizer": {0: "cat", 1: "cat "}}, ValueError, "verbalizer has the word 'cat' for the labels 0 and 1"),
    ({"label": "class"}, ValueError, "row 1 has no column 'class' of labels"),
    ({"prompt_len": 0}, ValueError, "prompt_len must be a positive integer; got 0"),
    ({"prompt_len": 63}, ValueError, "prompt_len must be at most 5[0-9]: the context of gpt2"),
    ({"prompt_len": 1, "fluency": 0.1}, ValueError, "prompt_len must be at least 2 for fluency"),
    ({"steps": 0}, ValueError, "steps must be a positive integer; got 0"),
    ({"held_out": 0}, ValueError, "held_out must leave rows that choose the prompt; got 0"),
    ({"held_out": 1.5}, ValueError, "held_out as a fraction must be less than 1.0"),
    ({"held_out": True}, ValueError, "held_out must be a number of rows or a fraction"),
    ({"held_out": 23}, ValueError, "held_out=23 leaves too few of 24 rows"),
    ({"shots": 0}, ValueError, "shots must be a positive integer; got 0"),
    ({"shots": 0, "held_out": None}, ValueError, "shots must be a positive integer; got 0"),
    ({"shots": 11}, ValueError, "shots=11 is more than class '[01]' has: 9 of 18 rows"),
    ({"fluency": 1.5}, ValueError, "fluency must be from 0 to 1; got 1.5"),
    ({"fluency": "a"}, ValueError, "fluency must be from 0 to 1; got 'a'"),
    ({"minibatch": 0}, ValueError, "minibatch must be a positive integer; got 0"),
    ({"held_out_every": 2.5}, ValueError, "held_out_every must be a positive integer; got 2.5"),
    ({"split_seed": "x"}, ValueError, "split_seed must be an integer, not negative; got 'x'"),
    ({"calibrate": "no"}, ValueError, "calibrate must be True or False; got 'no'"),
    ({"limit": 0}, ValueError, "limit must be a positive integer; got 0"),
    ({"split": "train"}, ValueError, "split 'train' can be given for a DatasetDict"),
    ({"prefix": "a"}, ValueError, "prefix has no place beside a template"),
    ({"compile": True}, ValueError, "compile=True is not for models that run over examples"),
    ({"pace": 3}, TypeError, "'pace' is not an option"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_refusals_name_what_is_wrong(change, kind, sentence):
    given = {"examples": ROWS, "lm": language("gpt2"), "template": FRONT, "verbalizer": VERBALIZER, **QUICK, **change}
    with pytest.raises(kind, match=sentence) as caught:
        learn_classifier(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda lm: evaluate_classifier(3, lm, ROWS, FRONT), ValueError, "prompt must be a text; got 3"),
        (lambda lm: transfer([], lm, ROWS, FRONT), ValueError, "prompts must hold at least one prompt"),
        (lambda lm: transfer(3, lm, ROWS, FRONT), ValueError, "prompt must be a text; got 3"),
        (lambda lm: transfer("a", [], ROWS, FRONT), ValueError, "lms must hold at least one language model"),
        (lambda lm: transfer("a", 3, ROWS, FRONT), TypeError, "lms? must"),
        (lambda lm: transfer("a", [lm, 3], ROWS, FRONT), TypeError, "lm must come from load_lm"),
        (lambda lm: continuation(" ", lm), ValueError, "target_text must not be empty"),
        (lambda lm: continuation("a", 3), TypeError, "lm must come from load_lm"),
        (lambda lm: continuation("a", lm, "{prompt} {text} {target}"), ValueError, "alone; it has {text}"),
        (lambda lm: continuation("the cat " * 40, lm), ValueError, "must leave room for the prompt"),
    ],
)  # fmt: skip
def test_other_refusals(call, kind, sentence):
    with pytest.raises(kind, match=sentence) as caught:
        call(language("gpt2"))
    assert "\n" not in str(caught.value)


def test_labels_that_are_read_alike_are_refused():
    with refused(ValueError, "verbalizer's words 'Cat' and 'cat' are read as the same tokens"):
        learned("bert's tokens", verbalizer={0: "Cat", 1: "cat"})
    with refused(ValueError, "joins the text before it into other tokens"):
        learned("gpt2", template="{prompt}{text} d{label}", verbalizer={0: "cat", 1: "o"})


@pytest.mark.parametrize("name", NAMES)
def test_texts_longer_than_the_context_are_cut_and_said(name):
    rows = [*ROWS, *({"text": "the cat 🙂" * 30, "label": k} for k in (0, 1))]
    with pytest.warns(UserWarning, match="texts are longer than the model's context; their ends are cut"):
        result = learned(name, rows)
    assert result.error is None and result.accuracy == result.accuracy
    with pytest.warns(UserWarning, match="2 of 26 texts are longer than the model's context"):
        assert evaluate_classifier(result.prompt, language(name), rows, FRONT, VERBALIZER).accuracy >= 0


def test_the_models_and_presets_of_the_package_can_be_named():
    assert pez_fast.learn_classifier is learn_classifier and pez_fast.transfer is transfer
    with refused(TypeError, "lm must come from load_lm"):
        learn_classifier("reviews", None)
