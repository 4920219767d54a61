"""The commands `pez-fast classify` and `pez-fast demo --language` on the bundled language model."""

from __future__ import annotations

import csv
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import complaint, run
from typer.main import get_command

import pez_fast
from pez_fast.cli import app, classify_work
from pez_fast.cli.classify_options import LEARNED, SWEPT
from pez_fast.config import SearchConfig, explanation
from pez_fast.labelled import LEARNING, LabelConfig
from pez_fast.result import ClassifierResult

COMMANDS = ("learn", "sweep", "evaluate", "transfer")
FEW = ("--limit", 40, "--steps", 3)
LEARN = ("classify", "learn", "reviews", *FEW, "--prompt-len", 3)
TEMPLATE = "{prompt}{text} It was {label}"


@pytest.fixture(scope="module")
def lm():
    return pez_fast.load_lm("reviews", "cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lm) -> Path:
    """A folder, made the current one, with examples in files; the bundled model is loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pez_fast.models.language.load_lm", load_one(lm))
    rows = [(f"the {noun} was {word}", label) for noun in "film plot cast song".split() for word, label in WORDS]
    with open("own.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "mark"), *rows])
    return tmp_path


WORDS = (("lovely", 1), ("great", 1), ("dull", 0), ("weak", 0))
OWN = ("own.csv", "--template", TEMPLATE, "--labels", "0=negative,1=positive", "--label-column", "mark")


def load_one(lm):
    def load(name, device=None):
        if name not in ("reviews", "other"):
            raise ValueError(f"name={name!r} could not be downloaded or read")
        return lm

    return load


def refuse(*_, **__):
    pytest.fail("loaded")


def test_help_imports_no_model_library():
    code = "import sys, pez_fast.cli as c\nsys.argv[1:] = ['classify', {!r}, '--help']\ntry:\n    c.main()\nfinally:\n"
    code += "    assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)"
    for name in ("learn", "sweep"):
        command = [sys.executable, "-c", code.replace("{!r}", repr(name))]
        shown = subprocess.run(command, capture_output=True, check=True, text=True, encoding="utf-8").stdout
        assert f"pez-fast classify {name}" in shown
    for name in COMMANDS:
        assert f"Usage: pez-fast classify {name}" in run("classify", name, "--help").stdout
    assert all(name in run("classify", "--help").stdout for name in COMMANDS)


@pytest.mark.parametrize(("command", "names"), [("learn", LEARNED), ("sweep", SWEPT)])
def test_options_have_the_defaults_and_explanations_of_the_library(command, names):
    defaults = {p.name: p.default for p in inspect.signature(pez_fast.learn_classifier).parameters.values()}
    options = {option.name: option for option in get_command(app).commands["classify"].commands[command].params}
    for name in names:
        config = LabelConfig if name in LabelConfig.__dataclass_fields__ else SearchConfig
        default = options[name].default
        assert getattr(default, "value", default) == defaults[name], name
        assert options[name].help == explanation(name, config)
    assert {name: defaults[name] for name in LEARNING} == LEARNING
    assert [o.opts[0] for o in options.values() if o.name in ("verbalizer", "label")] == ["--labels", "--label-column"]


@pytest.mark.usefixtures("here")
def test_learn_prints_the_prompt_alone_and_the_numbers_beside(lm):
    result = run(*LEARN, "--seed", 1)
    expected = pez_fast.learn_classifier("reviews", lm, prompt_len=3, steps=3, seed=1, limit=40)
    assert result.stdout == expected.prompt + "\n"
    after, before = (pez_fast.evaluate_classifier(p, lm, "reviews", limit=40) for p in (expected.prompt, ""))
    lines = result.stderr.splitlines()
    assert lines[0] == "loading the model reviews"
    assert lines[1].startswith(f"step 0/3  best {expected.curve[0][1]:.2f}  ")
    assert lines[-3].startswith(f"held-out accuracy {expected.accuracy:.4f}, loss {expected.loss:.4f}, perplexity")
    assert lines[-3].endswith(f" ({expected.held_out} examples)")
    test = f"test accuracy {after.accuracy:.4f}; {before.accuracy:.4f} with the template alone (40 examples)"
    assert lines[-2] == test and lines[-1].startswith("3 steps in ")


@pytest.mark.usefixtures("here")
def test_learn_as_json_has_result_test_and_transfer(lm):
    arguments = (*LEARN, "--top", 2, "--transfer", "other", "--json")
    value, whole = (json.loads(run(*arguments, *more).stdout) for more in ((), ("--history",)))
    expected = pez_fast.learn_classifier("reviews", lm, prompt_len=3, steps=3, limit=40, top_k=2).to_dict()
    expected = json.loads(json.dumps(expected)) | {"seconds": 0}
    assert len(whole["result"]["history"]) == 4 and len(expected.pop("history")) == 4
    assert value["result"] | {"seconds": 0} == expected and len(expected["top"]) == 2
    scores = pez_fast.evaluate_classifier(expected["prompt"], lm, "reviews", limit=40)
    assert value["test"]["prompt"]["confusion"] == scores.confusion and "predictions" not in value["test"]["prompt"]
    assert value["test"]["template_alone"]["prompt"] == ""
    (other,) = value["transfer"]
    assert other["model"] == "other" and other["error"] is None
    assert other["prompt"]["prompt"] == expected["prompt"].strip() and other["template_alone"]["prompt"] == ""


@pytest.mark.usefixtures("here")
def test_learn_from_a_file_with_another_to_test_on():
    value = json.loads(run("classify", "learn", *OWN, "--model", "reviews", *FEW, "--held-out", 0.5, "--json").stdout)
    assert value["test"] is None and value["result"]["held_out"] == 8
    assert value["result"]["verbalizer"] == {"0": "negative", "1": "positive"} and len(value["result"]["ids"]) == 10
    more = ("--model", "reviews", "--test", "own.csv", "--held-out", 4, "--shots", 2, "--json")
    value = json.loads(run("classify", "learn", *OWN, *FEW, *more).stdout)
    assert (value["result"]["held_out"], value["result"]["examples"]) == (4, 4)
    assert sum(map(sum, value["test"]["prompt"]["confusion"])) == 16
    assert value["test"]["prompt"]["labels"] == ["0", "1"]


@pytest.mark.usefixtures("here")
def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch):
    seen: dict = {}

    def record(examples, lm, **options):
        seen.update(options)
        return ClassifierResult(prompt="x", stop_reason="interrupt")

    monkeypatch.setattr(classify_work, "learn_classifier", record)
    given = {
        "prompt_len": 5,
        "steps": 7,
        "seed": 9,
        "lr": 0.3,
        "weight_decay": 0.01,
        "restarts": 2,
        "refine": 3,
        "init": "c",
        "patience": 6,
        "vocabulary": "full",
        "dtype": "float32",
        "fluency": 0.25,
        "minibatch": 3,
        "shots": 2,
        "held_out": 4,
        "limit": 30,
    }
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    run("classify", "learn", "reviews", *flags, "--ban", "cat", "--calibrate", code=130)
    assert {name: seen[name] for name in given} == given and "stages" not in seen
    assert (seen["banned"], seen["calibrate"], seen["label"], seen["template"]) == (("cat",), True, "label", TEMPLATE)


@pytest.mark.parametrize(
    ("flags", "stages"),
    [
        (["autoprompt"], "[(AutoPromptMethod(top_k=10), 4)]"),
        (["autoprompt-sgd", "--lr", 3], "[(AutoPromptSGDMethod(lr=3.0, impl='auto'), 4)]"),
        (["fluentprompt"], "[(FluentPromptMethod(steps=4, lr=10.0, beta_start=1.0, beta_end=0.0001, impl='auto'), 4)]"),
        (["soft", "--weight-decay", 0.5], "[(SoftPromptMethod(lr=0.03, weight_decay=0.5, impl='auto'), 4)]"),
        (["gcg", "--refine", 2], "[(GCGMethod(search_width=32, top_k=128, momentum=0.0), 4), (GCGMethod("),
    ],
)
@pytest.mark.usefixtures("here")
def test_methods_become_stages(monkeypatch: pytest.MonkeyPatch, flags, stages):
    seen: dict = {}

    def record(examples, lm, **options):
        seen.update(options)
        return ClassifierResult(prompt="x", stop_reason="interrupt")

    monkeypatch.setattr(classify_work, "learn_classifier", record)
    run("classify", "learn", "reviews", "--steps", 4, "--method", *flags, code=130)
    shown = repr(seen["stages"])
    assert shown.startswith(stages) and shown.endswith(", 2)]" if "--refine" in flags else ", 4)]")


@pytest.mark.usefixtures("here")
def test_every_method_learns():
    for method in ("autoprompt", "autoprompt-sgd", "fluentprompt", "gcg"):
        assert run(*LEARN, "--method", method).stdout.strip()
    result = run(*LEARN, "--method", "soft", "--save-soft", "soft", "--json")
    soft = json.loads(result.stdout)["test"]["soft_prompt_accuracy"]
    assert f"test accuracy {soft:.4f} of the soft prompt as it is, without projection" in result.stderr.splitlines()
    assert json.loads(Path("soft/adapter_config.json").read_text())["num_virtual_tokens"] >= 3


BAD = [
    (["learn", "none.csv"], "examples none.csv does not exist"),
    (["learn", "own.csv"], "template must be given"),
    (["learn", *OWN, "--labels", "0:a"], "verbalizer '0:a' must be as"),
    (["learn", *OWN[:-2]], "row 1 has no column 'label' of labels"),
    (["learn", "reviews", "--template", "{label}"], "template '{label}' must have {prompt} exactly once"),
    (["learn", "reviews", "--held-out", "some"], "--held-out must be a number; got 'some'"),
    (["learn", "reviews", "--held-out", "400"], "held_out=400 leaves too few"),
    (["learn", "reviews", "--shots", "999"], "shots=999 is more than class"),
    (["learn", "reviews", "--fluency", "2"], "fluency must be from 0 to 1; got 2.0"),
    (["learn", "reviews", "--minibatch", "0"], "minibatch must be a positive integer; got 0"),
    (["learn", "reviews", "--limit", "0"], "limit must be a positive integer; got 0"),
    (["learn", "reviews", "--steps", "0"], "steps must be a positive integer; got 0"),
    (["learn", "reviews", "--top", "0"], "top_k must be a positive integer; got 0"),
    (["learn", "reviews", "--device", "toaster"], "device must be a device of torch"),
    (["learn", "reviews", "--method", "magic"], "Invalid value for '--method'"),
    (["learn", "reviews", "--method", "gcg", "--lr", "1"], "--lr has no effect with --method gcg; got 1.0"),
    (["learn", "reviews", "--method", "fluentprompt", "--lr", "-1"], "lr must be a finite number, not negative"),
    (["learn", "reviews", "--method", "gcg", "--weight-decay", "1"], "--weight-decay has no effect with --method gcg"),
    (["learn", "reviews", "--method", "autoprompt", "--impl", "torch"], "--impl has no effect with --method autopro"),
    (["learn", "reviews", "--save-soft", "d"], "--save-soft has an effect only with --method soft; got --method pez"),
    (["learn", "reviews", "--method", "soft", "--save-soft", "own.csv"], "the folder own.csv cannot be written"),
    (["learn", "reviews", "--sheet", "s.jpg"], "the sheet must be a .png file"),
    (["learn", "reviews", "--history"], "--history has an effect only with --json"),
    (["learn", "reviews", "--tensorboard", "own.csv"], "the folder own.csv cannot be written"),
    (["learn", "reviews", "--test", "none.csv"], "examples none.csv does not exist"),
    (["learn", *OWN, "--transfer", "other"], "--transfer needs examples to test on; --test SOURCE names them"),
    (["sweep", "reviews"], "Missing option '--out'"),
    (["sweep", "reviews", "--out", "own.csv"], "the folder own.csv cannot be written"),
    (["sweep", "reviews", "--out", "o", "--seeds", "0-x"], "--seeds must be values with commas between, such as"),
    (["sweep", "reviews", "--out", "o", "--seeds", "3-1"], "--seeds must be values with commas between, such as"),
    (["sweep", "reviews", "--out", "o", "--shots", "1,few"], "--shots must be values with commas between, such as 1,4"),
    (["sweep", "reviews", "--out", "o", "--shots", "1,999"], "shots=999 is more than class"),
    (["sweep", "reviews", "--out", "o", "--fluencies", "0,3"], "fluency must be from 0 to 1; got 3.0"),
    (["sweep", "reviews", "--out", "o", "--prompt-lens", "0"], "prompt_len must be a positive integer; got 0"),
    (["sweep", "reviews", "--out", "o", "--method", "soft"], "--method soft has no effect on a sweep"),
    (["evaluate", *OWN, "--predictions", "p.txt"], "the table must be a .csv file"),
    (["evaluate", *OWN, "--predictions", "own.csv"], "the table own.csv would be written over a file that it is made"),
    (["evaluate", "reviews", "--predictions", "own.csv"], "the file own.csv is no table of pez_fast"),
    (["transfer", "reviews", "--prompt", "a"], "Missing option '--model'"),
    (["transfer", "reviews", "--model", "reviews"], "--prompt TEXT or --from FILE.json must be given"),
    (["transfer", "reviews", "--model", "reviews", "--from", "no.json"], "the file no.json cannot be read: No such"),
    (["transfer", "reviews", "--model", "reviews", "--from", "own.csv"], "the file own.csv is no JSON: "),
    (["transfer", "reviews", "--model", "reviews", "--from", "empty.json"], "the file empty.json holds no prompt"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
@pytest.mark.usefixtures("here")
def test_wrong_usage_is_one_sentence_before_any_model_is_loaded(monkeypatch, arguments, sentence):
    monkeypatch.setattr("pez_fast.models.language.load_lm", refuse)
    Path("empty.json").write_text('{"result": {"top": [3]}}')
    before = Path("own.csv").read_bytes()
    assert complaint("classify", *arguments).startswith(sentence)
    assert Path("own.csv").read_bytes() == before and not Path("s.jpg").exists()


@pytest.mark.usefixtures("here")
def test_models_that_cannot_be_had_are_refused_before_the_search(monkeypatch: pytest.MonkeyPatch, lm):
    monkeypatch.setattr(classify_work, "learn_classifier", refuse)
    for arguments in (("learn", "reviews", "--transfer", "none"), ("learn", *OWN, "--model", "none")):
        result = run("classify", *arguments, code=2)
        assert result.stderr.splitlines()[-1] == "pez-fast: error: name='none' could not be downloaded or read"
    assert "loading the model gpt2-large" in run("classify", "learn", *OWN, code=2).stderr.splitlines()
    result = run("classify", "transfer", "reviews", "--prompt", "a", "--model", "reviews", "--model", "none", code=2)
    assert "accuracy" not in result.stderr and result.stdout == ""


def test_without_transformers_the_installation_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    last = run("classify", "evaluate", "reviews", "--limit", 4, code=2).stderr.splitlines()[-1]
    assert last.startswith("pez-fast: error: transformers cannot be imported (") and "[lm]" in last


@pytest.mark.usefixtures("here")
def test_a_model_that_fails_at_the_end_loses_nothing(monkeypatch: pytest.MonkeyPatch, lm):
    loaded: list[str] = []

    def load(name, device=None):
        loaded.append(name)
        if name == "other" and loaded.count("other") == 2:
            raise RuntimeError("no\nmemory")
        return lm

    monkeypatch.setattr("pez_fast.models.language.load_lm", load)
    more = ("--transfer", "other", "--transfer", "last", "--sheet", "s.png", "--json")
    value = json.loads(run(*LEARN, *more, code=1).stdout)
    assert value["result"]["prompt"] and [t["error"] for t in value["transfer"]] == ["no memory", None]
    assert loaded == ["other", "last", "reviews", "other", "last"] and Path("s.png").exists()
