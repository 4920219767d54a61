"""Many classification prompts in a folder: combinations in shared batches, kept one by one, continued, never mixed."""

from __future__ import annotations

import json

import pytest

from pez_fast import learn_classifier, load_lm
from pez_fast.dataset import classifiers, learn_classifiers, read_classifiers
from pez_fast.dataset.locks import exclusive_lock

TASK = {"examples": "reviews", "limit": 60, "steps": 6, "held_out_every": 3, "minibatch": 4}
MANY = {"seeds": [0, 3], "fluencies": [0, 0.25], "prompt_lens": [2, 3], "shots": [None, 4]}


@pytest.fixture(scope="module")
def lm():
    return load_lm("reviews")


def learn(lm, out, **more):
    return learn_classifiers(lm=lm, out=out, **{**TASK, **more})


def values(result):
    """Returns what must be equal, which is all but the time."""
    return json.dumps({**result.to_dict(), "seconds": 0}, default=str).replace("NaN", "null")


def test_each_combination_is_what_it_is_alone(lm, tmp_path):
    found = learn(lm, tmp_path, **MANY)
    assert [(len(r.ids), r.examples, r.fluency, r.seed) for r in found] == [
        (length, shots, fluency, seed)
        for length in (2, 3)
        for shots in (48, 8)
        for fluency in (0, 0.25)
        for seed in (0, 3)
    ]
    for number, given in (
        (5, {"shots": 4, "seed": 3}),
        (2, {"fluency": 0.25}),
        (15, {"shots": 4, "fluency": 0.25, "seed": 3}),
    ):
        alone = learn_classifier(lm=lm, prompt_len=len(found[number].ids), **TASK, **given)
        assert values(alone) == values(found[number])
    assert len({r.prompt for r in found}) > 4
    assert sorted(values(r) for r in read_classifiers(tmp_path)) == sorted(map(values, kept(found)))


def kept(results):
    """Returns results as JSON gives them back."""
    for result in results:
        result.history = [None if score != score else score for score in result.history]
        result.curve = [list(point) for point in result.curve]
    return results


def test_what_is_finished_is_not_learned_again(lm, tmp_path, monkeypatch):
    first = learn(lm, tmp_path, seeds=[0, 1], prompt_lens=[2])
    files = {path.name: path.read_bytes() for path in tmp_path.glob("run-*.json")}
    (tmp_path / "run-len2-shotsall-fluency0-seed1.json").write_text('{"prompt": ')
    seen = []
    search = classifiers.PromptSearch

    class Watched(search):
        def stream(self, targets, *more):
            targets = list(targets)
            seen.append([seed for _, _, seed in targets])
            return super().stream(targets, *more)

    monkeypatch.setattr(classifiers, "PromptSearch", Watched)
    again = learn(lm, tmp_path, seeds=[0, 1, 2], prompt_lens=[2])
    assert seen == [[1, 2]]
    assert [r.prompt for r in again[:2]] == [r.prompt for r in first]
    assert (tmp_path / "run-len2-shotsall-fluency0-seed0.json").read_bytes() == files[
        "run-len2-shotsall-fluency0-seed0.json"
    ]


@pytest.mark.parametrize("ending", ["callback", "interrupt"])
def test_a_run_that_is_ended_keeps_what_was_finished(lm, tmp_path, ending):
    def stop(progress):
        if progress.step >= 4:  # of 6, counted over both runs, which come one after the other
            if ending == "interrupt":
                raise KeyboardInterrupt
            return True

    given = {"seeds": [0, 1], "prompt_lens": [2], "batch_size": 1}
    found = learn(lm, tmp_path, **given, callback=stop, every=1)
    assert len(found) < 2 and len(list(tmp_path.glob("run-*.json"))) == len(found)
    whole = learn(lm, tmp_path / "other", **given)
    continued = learn(lm, tmp_path, **given)
    assert [(r.prompt, r.text_score, r.seed) for r in continued] == [(r.prompt, r.text_score, r.seed) for r in whole]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 7}, "steps 6 there, 7 here"),
        ({"minibatch": 5}, "minibatch 4 there, 5 here"),
        ({"limit": 59}, "examples"),
        ({"split_seed": 1}, "split_seed 0 there, 1 here"),
        ({"template": "{text} {prompt} It was {label}"}, "examples"),
    ],
)
def test_a_folder_of_another_configuration_is_refused(lm, tmp_path, change, named):
    learn(lm, tmp_path, prompt_lens=[2])
    with pytest.raises(ValueError, match="holds results of another configuration") as caught:
        learn(lm, tmp_path, prompt_lens=[2], **change)
    assert named in str(caught.value)


def test_two_runs_at_once_are_kept_apart(lm, tmp_path):
    with exclusive_lock(tmp_path, "classifiers"), pytest.raises(ValueError, match="another run is writing"):
        learn(lm, tmp_path, prompt_lens=[2])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"seeds": []}, "seeds must be a list of at least one value; got \\[\\]"),
        ({"seeds": 3}, "seeds must be a list"),
        ({"seeds": [-1]}, "seed must be an integer from 0"),
        ({"fluencies": [2]}, "fluency must be from 0 to 1; got 2"),
        ({"shots": [0]}, "shots must be a positive integer; got 0"),
        ({"prompt_lens": [0]}, "prompt_len must be a positive integer; got 0"),
        ({"prompt_lens": "2"}, "prompt_lens must be a list"),
    ],
)
def test_bad_values_are_one_sentence(lm, tmp_path, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        learn(lm, tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()
