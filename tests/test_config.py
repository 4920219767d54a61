"""`SearchConfig` is the only home of the options; signatures, docstrings, command line and docs agree with it."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from inputs import refused
from typer.main import get_command

import pez_fast
from pez_fast.cli import app
from pez_fast.cli.options import SHARED
from pez_fast.config import POSITIONAL, SearchConfig, SearchOptions, config_from, explanation

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
NAMES = [f.name for f in fields(SearchConfig)]
TASKS = [pez_fast.invert, pez_fast.invert_batch, pez_fast.distill, pez_fast.distill_study]


def shown(value: object) -> str:
    return "" if value is None or value == () or value == "" else f"`{value}`"


def test_the_table_of_options():
    lines = [f"| `{f.name}` | {shown(f.default)} | {f.metadata['help']} |" for f in fields(SearchConfig)]
    table = "\n".join(["| option | default | |", "|---|---|---|", *lines])
    assert table in PAGE.read_text(encoding="utf-8"), f"docs/options.md needs this table:\n{table}"


def test_type_checkers_see_the_same_options():
    assert get_type_hints(SearchOptions) == get_type_hints(SearchConfig)


@pytest.mark.parametrize("task", TASKS)
def test_tasks_show_their_options(task):
    parameters = inspect.signature(task).parameters
    assert set(NAMES) <= parameters.keys() and "options" not in parameters
    own = {"prompt_len"} if task in (pez_fast.distill, pez_fast.distill_study) else set()
    for f in fields(SearchConfig):
        if f.name not in own:
            assert parameters[f.name].default == f.default
            assert f"{f.name}: {f.metadata['help']}" in inspect.getdoc(task)
    assert [name for name in parameters if name in POSITIONAL][: len(POSITIONAL)] == list(POSITIONAL)


@pytest.mark.parametrize("name", ["invert", "batch", "distill"])
def test_commands_show_the_same_options(name):
    options = {parameter.name: parameter for parameter in get_command(app).commands[name].params}
    for option in SHARED:
        assert options[option].help == explanation(option)
        default = options[option].default
        assert getattr(default, "value", default) == getattr(SearchConfig, option)


def test_no_such_option(tiny_clip, images):
    with pytest.raises(TypeError, match="'speed' is not an option; the options are prompt_len, steps, "):
        config_from({"speed": 3})
    with pytest.raises(TypeError, match="'speed' is not an option; the options are prompt_len, steps, "):
        pez_fast.invert(images[0], tiny_clip, speed=3)


def test_by_position(tiny_clip, images):
    by_name = pez_fast.invert(images[0], tiny_clip, prompt_len=3, steps=4, seed=5, refine=0)
    by_position = pez_fast.invert(images[0], tiny_clip, 3, 4, 5, refine=0)
    assert by_position.ids == by_name.ids and by_position.seed == 5 and len(by_position.ids) == 3


BAD = [
    ("init", [1, 2], "init must be a text; got [1, 2]"),
    ("prefix", None, "prefix must be a text; got None"),
    ("banned", [None], "banned must hold words and ids; got None"),
    ("banned", "cat", "banned must be a list of words and ids; got 'cat'"),
    ("banned", 3, "banned must be a list of words and ids; got 3"),
    ("banned", [True], "banned must hold words and ids; got True"),
    ("callback", 3, "callback must be a function, or None; got 3"),
    (
        "vocabulary",
        "half",
        "a list of words or a file of them; 'half' cannot be read: No such file",
    ),
    ("dtype", "int8", "dtype must be one of float32, bfloat16, float16, float64, or None; got 'int8'"),
    ("dtype", 32, "dtype must be one of float32, bfloat16, float16, float64, or None; got '32'"),
    ("compile", "yes", "compile must be True or False; got 'yes'"),
    ("lr", "fast", "lr must be a finite number, not negative; got 'fast'"),
    ("lr", True, "lr must be a finite number, not negative; got True"),
    ("weight_decay", float("inf"), "weight_decay must be a finite number, not negative; got inf"),
    ("seed", -1, "seed must be an integer from 0 to 2**63 - 1; got -1"),
    ("seed", 2**63, f"seed must be an integer from 0 to 2**63 - 1; got {2**63}"),
    ("seed", 1.5, "seed must be an integer from 0 to 2**63 - 1; got 1.5"),
    ("steps", np.int64(0), f"steps must be a positive integer; got {np.int64(0)!r}"),
    ("steps", 3.0, "steps must be a positive integer; got 3.0"),
    ("patience", 0, "patience must be a positive integer; got 0"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), BAD)
def test_bad_values_are_one_sentence(name, value, sentence):
    with refused(ValueError, re.escape(sentence)):
        SearchConfig(**{name: value})


def test_integers_of_numpy_and_dtypes_of_torch_are_plain_values():
    config = SearchConfig(steps=np.int64(7), seed=np.uint8(3), banned=[np.int32(5), "cat"], lr=np.float32(0.5))
    assert (config.steps, config.seed, config.banned, config.lr) == (7, 3, (5, "cat"), 0.5)
    assert [type(v) for v in (config.steps, config.seed, config.banned[0], config.lr)] == [int, int, int, float]
    assert SearchConfig(dtype=torch.bfloat16) == SearchConfig(dtype="bfloat16")


def test_float64_is_a_dtype_of_the_search(tiny_clip, images):
    result = pez_fast.invert(images[0], tiny_clip, prompt_len=3, steps=4, refine=1, dtype="float64")
    plain = pez_fast.invert(images[0], tiny_clip, prompt_len=3, steps=4, refine=1)
    assert result.history[0] == pytest.approx(plain.history[0], abs=1e-6) and len(result.ids) == 3


def test_a_start_that_holds_what_is_banned_is_refused(tiny_clip, images):
    for banned in (["RED"], [tiny_clip.vocabulary.encode("red")[0]]):
        with refused(ValueError, re.escape(f"init holds {banned[0]!r}, which is banned; got 'a red cat'")):
            pez_fast.invert(images[0], tiny_clip, prompt_len=3, init="a red cat", banned=banned)


def test_a_result_fits_on_a_screen(tiny_clip, images):
    result = pez_fast.invert(images[0], tiny_clip, prompt_len=4, steps=30, refine=0, top_k=5)
    assert len(repr(result)) < 500 and result.prompt in repr(result) and len(result.history) == 31


def test_a_search_that_diverges_says_when(tiny_clip, images):
    with pytest.raises(ValueError, match=r"diverged with lr=1e\+30 .*: soft prompts are not finite after \d"):
        pez_fast.invert(images[0], tiny_clip, prompt_len=3, steps=20, lr=1e30)
