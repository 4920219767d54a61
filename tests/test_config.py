"""`SearchConfig` is the only home of the options; signatures, docstrings, command line and README agree with it."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.main import get_command

import pez_fast
from pez_fast.cli.commands import app
from pez_fast.cli.options import SHARED
from pez_fast.config import POSITIONAL, SearchConfig, SearchOptions, config_from, explanation

README = Path(__file__).parents[1] / "README.md"
NAMES = [f.name for f in fields(SearchConfig)]
TASKS = [pez_fast.invert, pez_fast.invert_batch, pez_fast.distill]


def shown(value: object) -> str:
    return "" if value is None or value == () or value == "" else f"`{value}`"


def test_the_table_of_options_in_the_readme():
    lines = [f"| `{f.name}` | {shown(f.default)} | {f.metadata['help']} |" for f in fields(SearchConfig)]
    table = "\n".join(["| option | default | |", "|---|---|---|", *lines])
    assert table in README.read_text(encoding="utf-8"), f"README needs this table:\n{table}"


def test_type_checkers_see_the_same_options():
    assert get_type_hints(SearchOptions) == get_type_hints(SearchConfig)


@pytest.mark.parametrize("task", TASKS)
def test_tasks_show_their_options(task):
    parameters = inspect.signature(task).parameters
    assert set(NAMES) <= parameters.keys() and "options" not in parameters
    own = {"prompt_len"} if task is pez_fast.distill else set()
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
