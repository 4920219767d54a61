"""The TensorBoard callback: the contents of its event files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")
from inputs import refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import complaint, here, run, tiny  # noqa: F401

import pez_fast
from pez_fast.config import Progress
from pez_fast.report.tensorboard import MAX_CURVES, TensorBoard

NAN = float("nan")


class Record:
    """A callback that keeps the states that it sees, and returns an answer."""

    every = 7

    def __init__(self, answer: object = None) -> None:
        self.states: list[Progress] = []
        self.answer = answer

    def __call__(self, state: Progress) -> object:
        self.states.append(state)
        return self.answer


class Read:
    """The scalars and texts of a folder by tag, as {step: value}."""

    def __init__(self, folder: Path) -> None:
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()
        found = events.Tags()
        self.scalars = {tag: self._steps(events.Scalars(tag), lambda e: e.value) for tag in found["scalars"]}
        texts = {
            tag: self._steps(events.Tensors(tag), lambda e: e.tensor_proto.string_val[0].decode())
            for tag in found["tensors"]
        }
        self.texts = {tag.removesuffix("/text_summary"): values for tag, values in texts.items()}

    @staticmethod
    def _steps(events, value) -> dict:
        steps = [event.step for event in events]
        assert steps == sorted(set(steps)), "one value for each step, in their order"
        return {event.step: value(event) for event in events}


def close(values: dict):
    return pytest.approx(values, abs=1e-6)  # float32


def test_one_target(tmp_path: Path):
    with TensorBoard(tmp_path / "a" / "b") as log:
        for step, refined, prompt, score in (
            (0, 0, "x", -0.2),
            (10, 0, "y *z*", 0.3),
            (20, 0, "y *z*", 0.4),
            (20, 1, "w\n<b>\udc80", 0.5),
        ):
            assert log(Progress(step, 20, [prompt], [score], refined)) is None
    read = Read(tmp_path / "a" / "b")
    assert read.scalars == {"cosine": close({0: -0.2, 10: 0.3, 20: 0.4, 21: 0.5})}
    assert read.texts == {"prompt": {0: "    x", 10: "    y *z*", 21: "    w\\n<b>\\udc80"}}


def test_several_targets_some_of_which_wait(tmp_path: Path):
    with TensorBoard(tmp_path, ["b", "a b.png", "a b.png"]) as log:
        log(Progress(0, 20, ["", "", ""], [NAN] * 3))
        log(Progress(5, 20, ["x", "", ""], [0.5, NAN, float("-inf")]))
        log(Progress(15, 20, ["x", "y", ""], [0.5, 0.25, NAN], 3))
        log(Progress(20, 20, ["x", "y", "z"], [0.5, 0.25, 0.9], 3))
    read = Read(tmp_path)
    assert read.scalars == {
        "cosine/b": close({5: 0.5, 18: 0.5, 23: 0.5}),
        "cosine/a_b.png": close({18: 0.25, 23: 0.25}),
        "cosine/a_b.png_2": close({23: 0.9}),
        "cosine_of_all/mean": close({5: 0.5, 18: 0.375, 23: 0.55}),
        "cosine_of_all/best": close({5: 0.5, 18: 0.5, 23: 0.9}),
    }
    assert read.texts == {"prompt/b": {5: "    x"}, "prompt/a_b.png": {18: "    y"}, "prompt/a_b.png_2": {23: "    z"}}


def test_only_the_first_of_many_have_curves_but_all_count(tmp_path: Path):
    count = MAX_CURVES + 4
    with TensorBoard(tmp_path) as log:
        log(Progress(1, 2, ["p"] * count, [k / count for k in range(count)]))
    read = Read(tmp_path)
    assert read.scalars.keys() == {f"cosine/{k}" for k in range(MAX_CURVES)} | {
        "cosine_of_all/mean",
        "cosine_of_all/best",
    }
    assert read.scalars["cosine_of_all/best"] == close({1: (count - 1) / count})
    assert read.scalars["cosine_of_all/mean"] == close({1: (count - 1) / 2 / count})


def test_names_must_fit(tmp_path: Path):
    with TensorBoard(tmp_path, ["a"]) as log, refused(ValueError, "names must name each of the 2 targets; got 1"):
        log(Progress(0, 1, ["x", "y"], [0.1, 0.2]))


def test_written_at_once_and_again_after_it_was_closed(tmp_path: Path):
    log = TensorBoard(tmp_path)
    for step in range(9):
        log(Progress(step, 10, ["x"], [step / 10]))
        assert Read(tmp_path).scalars == {"cosine": close({k: k / 10 for k in range(step + 1)})}
    with log:
        log(Progress(9, 10, ["x"], [0.9]))
    log(Progress(10, 10, ["x"], [1.0]))
    assert len(list(tmp_path.iterdir())) == 2
    log.__exit__()
    log.__exit__()


def test_the_log_holds_what_another_callback_sees(tmp_path: Path, tiny_clip, images):
    seen = Record()
    with TensorBoard(tmp_path, ["a", "b"], also=seen) as log:
        assert log.every == 7 and TensorBoard(tmp_path).every == 50
        options = {"prompt_len": 3, "steps": 20, "refine": 4}
        with_log = pez_fast.invert_batch(images[:2], tiny_clip, **options, callback=log, every=log.every)
    without = pez_fast.invert_batch(images[:2], tiny_clip, **options)
    assert [(r.ids, r.history) for r in with_log] == [(r.ids, r.history) for r in without]
    read, at = Read(tmp_path), [state.step + state.refined for state in seen.states]
    assert at[-1] == 24 and len(at) >= 7
    for k, name in enumerate("ab"):
        assert read.scalars[f"cosine/{name}"] == close(
            {s: state.scores[k] for s, state in zip(at, seen.states, strict=True)}
        )
        prompts: dict[int, str] = {}
        for s, state in zip(at, seen.states, strict=True):
            if state.prompts[k] not in list(prompts.values())[-1:]:
                prompts[s] = state.prompts[k]
        assert read.texts[f"prompt/{name}"] == {s: f"    {prompt}" for s, prompt in prompts.items()}


def test_targets_in_several_batches(tmp_path: Path, tiny_clip, images):
    with TensorBoard(tmp_path) as log:
        options = {"prompt_len": 2, "steps": 10, "refine": 2, "batch_size": 1, "every": 2}
        results = pez_fast.invert_batch(images[:3], tiny_clip, **options, callback=log)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert (
        events.Scalars("cosine/0")[0].step
        == 0
        < events.Scalars("cosine/1")[0].step
        < events.Scalars("cosine/2")[0].step
    )
    for k, result in enumerate(results):
        steps, values = zip(*((e.step, e.value) for e in events.Scalars(f"cosine/{k}")), strict=True)
        assert list(steps) == sorted(steps) and list(values) == sorted(values) and steps[-1] <= 12
        assert values[-1] == pytest.approx(result.ids_score, abs=1e-2)  # the dtype of the search


def test_the_answer_of_the_other_callback_ends_the_search(tmp_path: Path, tiny_clip):
    seen = Record(answer=True)
    with TensorBoard(tmp_path, also=seen) as log:
        result = pez_fast.distill("a red bird", tiny_clip, prompt_len=2, steps=20, callback=log, every=2)
    assert result.stop_reason == "callback" and len(seen.states) == 1
    assert list(Read(tmp_path).scalars["cosine"]) == [seen.states[0].step]


def test_without_the_package_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with refused(ImportError, r"tensorboard, which cannot be imported; pip install .*\[tensorboard\]"):
        TensorBoard(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_command_invert(tiny, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    arguments = ("invert", "a.png", "--steps", 12, "--prompt-len", 2, "--refine", 3, "--tensorboard", "runs/1")
    lines = run(*arguments).stderr.splitlines()
    assert any(line.startswith("step 12/12  best ") for line in lines)  # the lines of progress go on
    read = Read(Path("runs/1"))
    assert read.scalars.keys() == {"cosine"} and read.scalars["cosine"].keys() == set(range(16))
    rows = json.loads(
        run("invert", "--each", "a.png", "broken.png", "b.png", *arguments[2:-1], "runs/2", "--json", code=1).stdout
    )
    read = Read(Path("runs/2"))
    assert read.scalars.keys() == {"cosine/a.png", "cosine/b.png", "cosine_of_all/mean", "cosine_of_all/best"}
    for row in (rows[0], rows[2]):
        assert row["ids_score"] >= list(read.scalars[f"cosine/{row['image']}"].values())[-1] - 1e-6


def test_command_distill(tiny):  # noqa: F811
    value = json.loads(
        run("distill", "a red bird over/the sea", "--steps", 4, "--refine", 2, "--tensorboard", "log", "--json").stdout
    )
    read = Read(Path("log"))
    assert read.scalars.keys() == {"cosine"} and list(read.scalars["cosine"]) == [0, 1, 2, 3, 4, 5, 6]
    assert list(read.texts["prompt"].values())[-1] == f"    {value['prompt']}"


@pytest.mark.parametrize("command", [["invert", "a.png"], ["distill", "a text"]])
def test_a_folder_that_cannot_be_is_one_sentence_before_any_model_is_loaded(monkeypatch, here, command: list[str]):  # noqa: F811
    monkeypatch.setattr("pez_fast.models.load_clip", lambda *_: pytest.fail("loaded"))
    assert complaint(*command, "--tensorboard", "b.png") == "the folder b.png cannot be written: it is a file"
    assert (
        complaint(*command, "--tensorboard", "b.png/runs") == "the folder b.png/runs cannot be written: Not a directory"
    )
