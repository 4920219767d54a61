"""Language models give for many prompts at once what a plain loop gives for one prompt and one example at a time."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers")
from languages import (  # noqa: E402
    CAUSAL,
    CLASSES,
    MODELS,
    ROWS,
    SENTENCES,
    SEQ2SEQ,
    build,
    embedded,
    label_model,
    language,
    plain_nll,
    plain_scores,
    some_ids,
)

from pez_fast.engine import BatchLimit, Evaluator  # noqa: E402
from pez_fast.labelled import draws  # noqa: E402
from pez_fast.models.fingerprint import weights_digest  # noqa: E402
from pez_fast.models.language import LanguageModel  # noqa: E402
from pez_fast.objectives import LabelLoss, TextLoss  # noqa: E402

FRONT, MIDDLE = "{prompt}{text} It was {label}", "{text} {prompt} It was {label}"
FIXED, COLUMNS = "Is it so? {prompt} {text} It was {label}", "{other}: {text} {prompt} It was {label}"
SHORT, LONG, THREE = ("cat", "dog"), ("cat", "the red dog"), ("not the cat", "dog", "blue")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
EXACT = ("gpt2", "opt", "opt, narrow table")  # the others take norms in float32 whatever their own dtype is
TASKS = {  # name: (template, words, calibrate, fluency)
    "one token": (FRONT, SHORT, False, 0.0),
    "several tokens": (FRONT, LONG, False, 0.0),
    "calibrated": (FRONT, SHORT, True, 0.0),
    "calibrated, several tokens": (FIXED, THREE, True, 0.0),
    "fluency": (FRONT, SHORT, False, 0.25),
    "fluency, in the middle": (MIDDLE, LONG, False, 0.25),
    "in the middle": (MIDDLE, SHORT, False, 0.0),
    "columns before it": (COLUMNS, THREE, True, 0.0),
    "text before it": (FIXED, SHORT, False, 0.0),
    "no text behind it": ("{text} {prompt} {label}", LONG, False, 0.0),
}
PAIRS = [(name, task) for task in TASKS for name in MODELS if name not in SEQ2SEQ or not task.startswith("fluency")]
LENGTH, PROMPTS = 3, 2


def bound_to(lm, task, dtype=None, **settings):
    template, words, calibrate, fluency = TASKS[task]
    model = label_model(lm, template, words, calibrate=calibrate, fluency=fluency > 0, **settings)
    return model.bind(LENGTH, dtype=dtype), LabelLoss([fluency] * 99)


def evaluated(call, objective, lm, ids, gradient=True, limit=99, dtype=None):
    """Loss, score and gradient of prompts; `objective` has as many rows as there are prompts, or more."""
    found = Evaluator(lm.table(), call, objective.select(torch.arange(len(ids))), BatchLimit(limit, limit))(
        ids, gradient, embeds=embedded(lm, ids, dtype)
    )
    return [found.loss, found.score, *([found.gradient] if gradient else [])]


def plainly(lm, task, bound, ids):
    """Scores (B, C), loss, accuracy (most and least) and gradient of one prompt."""
    template, words, calibrate, fluency = TASKS[task]
    embeds = embedded(lm, ids).detach().requires_grad_()
    scores = plain_scores(lm, template, words, ROWS, bound.text(ids), ids, embeds, calibrate)
    classes = torch.tensor(CLASSES)
    loss = (1 - fluency) * torch.nn.functional.cross_entropy(scores, classes)
    loss = loss + fluency * plain_nll(lm, ids, embeds) if fluency else loss
    true = scores.gather(-1, classes[:, None])[:, 0]
    lead = true - scores.scatter(-1, classes[:, None], -torch.inf).amax(-1)
    right = tuple((lead > limit).to(loss.dtype).mean() for limit in (-1e-5, 1e-5))  # the second without near ties
    return scores, loss, right, torch.autograd.grad(loss, embeds)[0]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_plain_loop_gives_the_same(name, task, dtype):
    lm = language(name, dtype)
    tolerance = TOLERANCE[dtype] if dtype == torch.float32 or name in EXACT else 2e-6
    if (name, dtype) == ("t5, gated", torch.float32):  # its logits are not scaled, and so large that they round more
        tolerance = 3e-4
    near = dict.fromkeys(("rtol", "atol"), tolerance)
    (bound, objective), ids = bound_to(lm, task), some_ids(lm, PROMPTS, LENGTH)
    of_sums = {"rtol": tolerance, "atol": tolerance * bound.labeller.longest}  # a score adds up a label's tokens
    outputs = bound.held_out(embedded(lm, ids), ids)
    loss, score, gradient = evaluated(bound.held_out, objective, lm, ids)
    for k, prompt in enumerate(ids.tolist()):
        scores, expected, (most, least), by_embeds = plainly(lm, task, bound, prompt)
        found = outputs["label_scores"][k]
        if max(map(len, bound.labeller.labels)) == 1:  # such scores are right but for a number of each example's
            scores, found = scores.log_softmax(-1), found.log_softmax(-1)
        torch.testing.assert_close(found, scores, **of_sums)
        torch.testing.assert_close(loss[k], expected, **near)
        torch.testing.assert_close(gradient[k], by_embeds, **near)
        assert 0 <= float(most - score[k]) and float(least - score[k]) < 0.5 / len(ROWS)
    assert outputs["classes"].tolist() == [CLASSES] * PROMPTS and gradient.abs().amax((1, 2)).min() > 1e-4
    assert (loss[0] - loss[1]).abs() > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("task", ["one token", "calibrated, several tokens", "fluency"])
def test_what_stands_first_is_read_once_and_changes_nothing(name, task):
    lm = language(name)
    plain = LanguageModel(lm.model, lm.tokenizer)
    assert lm.runner().caches
    plain.runner().caches = False
    ids, found = some_ids(lm, PROMPTS, LENGTH), []
    for one in (lm, plain):
        bound, objective = bound_to(one, task)
        calls = []
        runner, inner = one.runner(), one.runner().beginning
        runner.beginning = lambda *given, calls=calls, inner=inner: calls.append(1) or inner(*given)
        found.append(evaluated(bound.held_out, objective, one, ids))
        del runner.beginning
        assert len(calls) == (one is lm)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_models_whose_cache_is_not_exact_do_without(monkeypatch):
    from pez_fast.models.language import runner

    inner = runner.Runner.going_on
    monkeypatch.setattr(runner.Runner, "going_on", lambda *given: inner(*given) + 0.1)
    assert not build("gpt2").runner().caches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("task", ["one token", "calibrated, several tokens", "in the middle", "fluency"])
def test_a_prompt_does_not_depend_on_the_others(name, task, dtype):
    if name in SEQ2SEQ and task == "fluency":
        task = "several tokens"
    lm = language(name, dtype if dtype == torch.float64 else torch.float32)
    (bound, objective), ids = bound_to(lm, task, dtype), some_ids(lm, 5, LENGTH)
    together = evaluated(bound.held_out, objective, lm, ids, dtype=dtype)
    assert all(part.isfinite().all() for part in together)
    for limit in (1, 3):
        for whole, chunks in zip(
            together, evaluated(bound.held_out, objective, lm, ids, True, limit, dtype), strict=True
        ):
            assert torch.equal(whole, chunks), f"{limit} at once"
    unlearned = evaluated(bound.held_out, objective, lm, ids, gradient=False, dtype=dtype)
    assert all(map(torch.equal, unlearned, together[:2]))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", ["gpt2", "llama", *SEQ2SEQ])
@pytest.mark.parametrize("template", [FRONT, MIDDLE])
def test_nor_with_few_examples(name, template, count):
    lm = language(name)
    rows = [ROWS[k % len(ROWS)] for k in range(count)]
    bound, ids = label_model(lm, template, LONG, rows).bind(LENGTH), some_ids(lm, 9, LENGTH)
    together = evaluated(bound.held_out, LabelLoss([0] * 9), lm, ids)
    for limit in (1, 2):
        alone = evaluated(bound.held_out, LabelLoss([0] * 9), lm, ids, True, limit)
        assert all(map(torch.equal, together, alone))


@pytest.mark.parametrize("name", ["gpt2", "t5, tied", "gemma2"])
def test_texts_of_many_lengths_run_in_groups_and_change_nothing(name, monkeypatch):
    lm, texts = language(name), [" ".join(SENTENCES[0].split()[:1] * k) for k in range(1, 25)]
    rows = [ROWS[0] | {"text": text} for text in texts]
    model, ids = label_model(lm, FRONT, SHORT, rows), some_ids(lm, 3, LENGTH)
    found = []
    for overhead in (0, 10**9):
        monkeypatch.setattr(lm.runner(), "overhead", overhead)
        sizes = [len(members) for members, _ in lm.runner().groups(range(1, 25), 3)]
        assert sum(sizes) == 24 and (len(sizes) > 3 if overhead == 0 else sizes == [24])
        found.append(evaluated(model.bind(LENGTH).held_out, LabelLoss([0] * 3), lm, ids))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert's tokens", "t5, gated"])
def test_how_a_user_pads_does_not_matter(name):
    lm, found = language(name), []
    for side in ("left", "right"):
        for pad in (True, False):
            tokenizer = copy.deepcopy(lm.tokenizer)
            tokenizer.padding_side = tokenizer.truncation_side = side
            tokenizer.pad_token = (tokenizer.pad_token or tokenizer.eos_token) if pad else None
            tokenizer(list(SENTENCES), padding=pad, truncation=True, max_length=3)
            other = LanguageModel(lm.model, tokenizer)
            (bound, objective), ids = bound_to(other, "calibrated, several tokens"), some_ids(lm, 2, LENGTH)
            found.append(evaluated(bound.held_out, objective, other, ids))
    assert all(torch.equal(one, part) for others in found[1:] for one, part in zip(found[0], others, strict=True))


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "t5, tied"])
def test_rows_of_other_draws_share_a_call(name):
    lm = language(name)
    bound, objective = bound_to(lm, "calibrated, several tokens", minibatch=2)
    ids, drawn = some_ids(lm, 5, LENGTH), torch.tensor([[0, 0], [0, 1], [0, 0], [7, 0], [0, 3]])
    together = bound(embedded(lm, ids), ids, drawn)
    for k in range(5):
        alone = bound(embedded(lm, ids[k : k + 1]), ids[k : k + 1], drawn[k : k + 1])
        assert all(torch.equal(together[part][k], alone[part][0]) for part in alone)
        seed, step = drawn[k].tolist()
        assert alone["classes"][0].tolist() == [CLASSES[n] for n in draws(seed, step, 2, len(ROWS))]
        held = bound.held_out(embedded(lm, ids[k : k + 1]), ids[k : k + 1])["label_scores"][0]
        near = held[draws(seed, step, 2, len(ROWS))]
        torch.testing.assert_close(alone["label_scores"][0], near, rtol=0, atol=1e-5)
    assert objective.select(torch.arange(5))(together, ids)[0].unique().numel() == 5


def test_shots_are_the_seeds_own():
    lm = language("gpt2")
    rows = [ROWS[0] | {"text": f"a red {k}", "label": k % 2} for k in range(12)]
    bound = label_model(lm, FRONT, SHORT, rows, shots=2, minibatch=99).bind(LENGTH)
    seen = {seed: bound._examples(seed, 5) for seed in range(6)}
    assert all(sorted(k % 2 for k in chosen) == [0, 0, 1, 1] for chosen in seen.values())
    assert len({tuple(chosen) for chosen in seen.values()}) > 2 and seen[3] == bound._examples(3, 0)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_not_changed(name):
    lm = build(name)
    before, modules, size = weights_digest(lm.model), repr(lm.model), len(lm.tokenizer)
    head, rows = lm.model.get_output_embeddings(), lm.embedding.weight.shape[0]
    tied = head.weight is lm.embedding.weight
    assert tied == (name not in ("llama", "qwen2, padded table"))
    for dtype in (torch.float32, torch.bfloat16):
        bound, objective = bound_to(lm, "several tokens", dtype)
        evaluated(bound.held_out, objective, lm, some_ids(lm, 2, LENGTH), dtype=dtype)
        bound.from_text(["the cat"])
    kept = lm.model.get_output_embeddings()
    assert kept is head and (kept.weight is lm.model.get_input_embeddings().weight) == tied
    assert lm.embedding.weight.shape[0] == kept.weight.shape[0] == rows and len(lm.tokenizer) == size
    assert weights_digest(lm.model) == before and repr(lm.model) == modules
    assert all(weight.grad is None and not weight.requires_grad for weight in lm.model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_near(name):
    lm = language(name)
    bound, objective = bound_to(lm, "one token")
    ids, half = some_ids(lm, 3, LENGTH), bound_to(lm, "one token", torch.bfloat16)[0]
    exact = evaluated(bound.held_out, objective, lm, ids)
    found = evaluated(half.held_out, objective, lm, ids, dtype=torch.bfloat16)
    assert half.runner.embedding.weight.dtype == torch.bfloat16 and found[0].dtype == torch.float32
    assert not torch.equal(found[0], exact[0])
    torch.testing.assert_close(found[0], exact[0], rtol=0, atol=0.15)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5, gated"])
def test_a_text_behind_a_prompt_is_scored_by_its_tokens(name):
    from pez_fast.labelled import Template
    from pez_fast.models.language import Examples, LabelModel, LabelTask

    lm, target = language(name, torch.float64), "the red dogs, not a cat"
    one = Examples([{}], [0])
    model = LabelModel(lm, LabelTask(Template.parse("{prompt} {target}", "target"), [target], one, one))
    bound, ids = model.bind(LENGTH), some_ids(lm, 2, LENGTH)
    length, near = len(model.labeller.labels[0]), dict.fromkeys(("rtol", "atol"), 1e-10 if name in EXACT else 2e-6)
    loss, score, gradient = evaluated(bound.held_out, TextLoss([length] * 9), lm, ids)
    for k, prompt in enumerate(ids.tolist()):
        embeds = embedded(lm, prompt).detach().requires_grad_()
        (logp,) = plain_scores(lm, "{prompt} {label}", [target], [{}], bound.text(prompt), prompt, embeds)[0]
        torch.testing.assert_close(loss[k], -logp / length, **near)
        torch.testing.assert_close(gradient[k], torch.autograd.grad(-logp / length, embeds)[0], **near)
    assert torch.equal(score, -loss) and length > 3


@pytest.mark.parametrize("name", CAUSAL)
def test_perplexity_is_that_of_a_plain_loop(name):
    lm = language(name, torch.float64)
    found = lm.perplexity(["the cat of the house", "", "cat"])
    ids = lm.vocabulary.encode("the cat of the house")
    assert found[0] == pytest.approx(
        float(plain_nll(lm, ids, embedded(lm, ids)).exp()), rel=1e-10 if name in EXACT else 1e-6
    )
    assert found[1] != found[1] and len(found) == 3
