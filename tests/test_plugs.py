"""A model, an objective and a method from outside the package, in the search that users run.

A user who brings their own writes no more than these three classes; the package is neither edited nor patched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import pez_fast
from pez_fast.engine import TensorState
from pez_fast.methods import GCGMethod, PEZMethod
from pez_fast.objectives import Similarity, WeightedSum

WORDS = [c * n for n in range(1, 6) for c in "abcdefghij"]


class Recurrent:
    """A toy model, a GRU over words with features for texts and images; it is its own vocabulary and template."""

    name, device, dtype, context_length, bytes_per_prompt = "recurrent", torch.device("cpu"), torch.float32, 32, 4096

    def __init__(self, max_rows=None):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.words = torch.nn.Embedding(len(WORDS), 8).requires_grad_(False)
            self.cell = torch.nn.GRU(8, 12, batch_first=True).requires_grad_(False)
        self.max_rows, self.vocabulary, self.sizes = max_rows, self, []

    def encode(self, text):
        return [WORDS.index(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(WORDS[i] for i in ids)

    def table(self, vocabulary="stable", banned=()):
        return pez_fast.TokenTable(self.words, [WORDS.index(word) for word in banned])

    def bind(self, prompt_len, prefix="", suffix="", dtype=None):
        return self

    def __call__(self, embeds, ids):
        self.sizes.append(len(embeds))
        if self.max_rows is not None and len(embeds) > self.max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {
            "features": torch.nn.functional.normalize(
                torch.stack([self.cell(e[None])[1][0, 0] for e in embeds]), dim=-1
            )
        }

    def text(self, ids):
        return self.decode(ids)

    def from_text(self, texts):
        ids = [torch.tensor(self.encode(text)) for text in texts]
        return {
            "features": torch.cat([Recurrent.__call__(Recurrent(), self.words(i)[None], i)["features"] for i in ids])
        }

    def encode_texts(self, texts):
        return self.from_text(texts)["features"]

    def preprocess(self, image):
        return torch.from_numpy(np.asarray(image.resize((4, 1)), dtype=np.float32)).flatten() - 128

    def encode_pixels(self, pixels):
        return torch.nn.functional.normalize(torch.stack(list(pixels)), dim=-1)

    def fingerprint(self):
        return {"words": float(self.words.weight.sum())}


@dataclass(frozen=True)
class ShortWords:
    """An objective that prefers short words; it uses ids alone and is the same for every target."""

    def __call__(self, outputs, ids):
        letters = torch.tensor([float(len(word)) for word in WORDS])[ids].sum(-1)
        return letters, -letters

    def select(self, rows):
        return self


@dataclass(frozen=True)
class RandomSearch:
    """A method without gradients: each step tries another token in one place.

    The draws depend on the seed and the row's step.
    """

    def init(self, ids, table, seed):
        return TensorState(ids=ids, best=torch.full((len(ids),), -torch.inf), step=torch.full((len(ids),), seed * 1000))

    def step(self, state, evaluate, update):
        trial = state["ids"].clone()
        for row, step in enumerate(state["step"].tolist()):
            if step % 1000:
                draws = torch.Generator().manual_seed(step)
                place = torch.randint(trial.shape[1], (), generator=draws)
                trial[row, place] = evaluate.table.ids[torch.randint(len(evaluate.table.ids), (), generator=draws)]
        found = evaluate(trial)
        better = found.score > state["best"]
        state["ids"] = torch.where(better[:, None], trial, state["ids"])
        state["best"], state["step"] = torch.maximum(found.score, state["best"]), state["step"] + 1
        return found


STAGES = [(RandomSearch(), 40)]
OPTIONS = {"prompt_len": 3, "stages": STAGES, "restarts": 2, "seed": 5}
TEXTS = ["a bb ccc", "dddd e ff", "j i h", "aaaaa bbbbb ccccc", "g g g", "hh ii jj", "c d e"]


def targets(model, count=7):
    return Similarity(model.encode_texts(TEXTS[:count]))


def outcomes(results):
    """Returns what must be equal of the results."""
    return [(r.prompt, r.ids, r.ids_score, r.text_score, r.steps, r.history, r.restart, r.stop_reason) for r in results]


@pytest.fixture(scope="module")
def whole():
    model = Recurrent()
    return pez_fast.search(targets(model), model, **OPTIONS)


def test_it_finds_prompts(whole):
    assert sum(r.text_score - r.history[0] for r in whole) > 7 * 0.2
    for r in whole:
        assert len(r.history) == 41 and r.text_score == pytest.approx(r.ids_score) == pytest.approx(max(r.history))


@pytest.mark.parametrize("batch_size", [2, 5, 6])
def test_batches(whole, batch_size):
    model = Recurrent()
    assert outcomes(pez_fast.search(targets(model), model, **OPTIONS, batch_size=batch_size)) == outcomes(whole)
    assert max(model.sizes) <= batch_size


@pytest.mark.parametrize("stages", [STAGES, [(PEZMethod(), 10), (GCGMethod(8, 8), 3)], [*STAGES, (GCGMethod(8, 8), 3)]])
def test_memory_runs_out(stages):
    """In every stage and at every place, the results equal those of a machine with enough memory."""
    options = {**OPTIONS, "stages": stages}
    model, small = Recurrent(), Recurrent(max_rows=3)
    enough = pez_fast.search(targets(model), model, **options)
    assert outcomes(pez_fast.search(targets(small), small, **options)) == outcomes(enough)
    assert 0 < sum(size > 3 for size in small.sizes) <= 6
    with pytest.raises(torch.OutOfMemoryError):
        pez_fast.search(targets(model), Recurrent(max_rows=0), **options)


def test_patience_frees_places_for_waiting_targets(whole):
    model, options = Recurrent(), {**OPTIONS, "patience": 6}
    single = [pez_fast.search(targets(model).select(torch.tensor([k])), model, **options)[0] for k in range(7)]
    assert outcomes(pez_fast.search(targets(model), model, **options, batch_size=4)) == outcomes(single)
    assert {r.stop_reason for r in single} >= {"patience"} and len({r.steps for r in single}) > 1


def test_callbacks_see_it_and_end_it(whole):
    model, seen, options = Recurrent(), [], {**OPTIONS, "restarts": 1, "every": 10}
    assert outcomes(pez_fast.search(targets(model), model, **OPTIONS, callback=lambda p: None)) == outcomes(whole)
    found = pez_fast.search(targets(model), model, **options, callback=seen.append)
    assert [p.step for p in seen] == [0, 10, 20, 30, 40] and {p.steps for p in seen} == {40}
    assert seen[-1].prompts == [r.prompt for r in found]
    ended = pez_fast.search(targets(model), model, **options, callback=lambda p: p.step >= 10)
    assert [(r.stop_reason, r.history) for r in ended] == [("callback", r.history[:11]) for r in found]


def test_ctrl_c_gives_the_best_so_far():
    def interrupt(progress):
        if progress.step == 20:
            raise KeyboardInterrupt

    model, options = Recurrent(), {**OPTIONS, "restarts": 1, "every": 10}
    found = pez_fast.search(targets(model), model, **options, callback=interrupt)
    whole = pez_fast.search(targets(model), model, **options)
    assert [(r.stop_reason, r.history) for r in found] == [("interrupt", r.history[:21]) for r in whole]


def test_objectives_add_up(whole):
    model, plain = Recurrent(), [len(r.prompt) for r in whole]
    added = pez_fast.search(targets(model), model, **OPTIONS, terms=[(0.5, ShortWords())])
    summed = pez_fast.search(WeightedSum([(1.0, targets(model)), (0.5, ShortWords())]), model, **OPTIONS)
    assert outcomes(added) == outcomes(summed) and len(summed) == 7
    assert sum(len(r.prompt) for r in added) < sum(plain) - 7
    (shortest,) = pez_fast.search(ShortWords(), model, **{**OPTIONS, "stages": [(RandomSearch(), 300)]})
    assert shortest.text_score == -3 and len(shortest.prompt) == 5
    with pytest.raises(ValueError, match="the loss of ShortWords does not depend on the embeddings"):
        pez_fast.search(ShortWords(), model, steps=3)


def test_init_and_banned_words(whole):
    model = Recurrent()
    options = {**OPTIONS, "stages": [(RandomSearch(), 1)], "restarts": 1}
    (found,) = pez_fast.search(targets(model, 1), model, **options, init="a bb ccc")
    assert found.prompt == "a bb ccc" and found.text_score == pytest.approx(1)
    used = {word for r in whole for word in r.prompt.split()}
    without = pez_fast.search(targets(model), model, **OPTIONS, banned=sorted(used)[:5])
    assert not used & set(sorted(used)[:5]) & {word for r in without for word in r.prompt.split()}


def test_tasks_take_it():
    model = Recurrent()
    short = pez_fast.distill(TEXTS[:2], model, prompt_len=2, weights=[1, -1], stages=STAGES, refine=0)
    close, far = (model.encode_texts([short.prompt]) @ model.encode_texts(TEXTS[:2]).T)[0].tolist()
    assert len(short.ids) == 2 and close > far
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    batch = pez_fast.invert_batch([images[0], b"broken", *images[1:]], model, **OPTIONS)
    assert [bool(r.error) for r in batch] == [False, True, False, False]
    assert outcomes([batch[2]]) == outcomes([pez_fast.invert_batch(images[1:2], model, **OPTIONS)[0]])
    with pytest.raises(TypeError, match="model must come from load_clip, or have encode_images; got Recurrent"):
        pez_fast.invert(images[0], model)


def test_a_data_set_is_resumed(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    from pez_fast.dataset import Job, invert_dataset

    (tmp_path / "images").mkdir()
    for k in range(6):
        Image.new("RGB", (8, 8), (40 * k, 255 - 40 * k, 7 * k)).save(tmp_path / "images" / f"{k}.png")
    options = {**OPTIONS, "terms": [(0.01, ShortWords())], "batch_size": 4}
    model = Recurrent()

    class Ends(Recurrent):
        def __call__(self, embeds, ids):
            if len(self.sizes) > 60:  # in the second batch
                raise KeyboardInterrupt
            return super().__call__(embeds, ids)

    ended = invert_dataset(tmp_path / "images", tmp_path / "out", Ends(), **options)
    assert ended.interrupted and 0 < ended.finished < 6
    resumed = invert_dataset(tmp_path / "images", tmp_path / "out", model, **options)
    assert not resumed.interrupted and resumed.finished == 6
    whole = invert_dataset(tmp_path / "images", tmp_path / "whole", Recurrent(), **{**options, "batch_size": None})
    assert whole.finished == 6 and rows(tmp_path / "out") == rows(tmp_path / "whole")
    for changed in ({"stages": [(RandomSearch(), 41)]}, {"terms": ()}):
        with pytest.raises(ValueError, match="holds results of another configuration"):
            Job(tmp_path / "images", tmp_path / "out", {**options, **changed})


def rows(folder):
    from pyarrow import parquet

    return {row["id"]: row for row in parquet.read_table(folder, partitioning=None).to_pylist()}
