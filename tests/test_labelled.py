"""Labelled examples: reading them, the presets, and choices of rows by a seed."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from pez_fast.labelled import PRESETS, Verbalizer, draws, few_shot, read_examples, sampling, split_rows

STRANGE = [
    {"text": 'He said "no", twice.', "class": "0"},
    {"text": "two\nlines\r\nand \u2028 one", "class": "1"},
    {"text": " ß🙂\ufeff{prompt} {{ ", "class": "not spam"},
    {"text": "", "class": "tab\there"},
    {"text": "x" * 200_000, "class": "NA"},
]


class Part:
    """Stands for a Dataset of the package datasets."""

    def __init__(self, rows, column_names=("a",)):
        self.rows, self.column_names = rows, column_names

    def __iter__(self):
        return iter(self.rows)


def written(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def refused(source, said: str, kind: type[Exception] = ValueError, **more) -> None:
    """Holds that a source is refused in one sentence that begins with the given words."""
    with pytest.raises(kind, match="^" + re.escape(said)) as caught:
        read_examples(source, **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("name", "delimiter", "quoting"), [("a.csv", ",", 0), ("b.TSV", "\t", 0), ("c.csv", ",", 1)])
def test_tables_of_text(tmp_path, encoding, name, delimiter, quoting):
    with open(tmp_path / name, "w", newline="", encoding=encoding) as file:
        table = csv.writer(file, delimiter=delimiter, quoting=quoting)
        table.writerows([STRANGE[0], *(row.values() for row in STRANGE)])
    limit = csv.field_size_limit()
    assert read_examples(tmp_path / name) == read_examples(str(tmp_path / name)) == STRANGE
    assert read_examples(tmp_path / name, limit=2) == STRANGE[:2] and csv.field_size_limit() == limit


def test_ends_of_lines_and_empty_lines(tmp_path):
    rows = [{"text": "a", "label": "1"}, {"text": " b ", "label": ""}]
    for end in ("\n", "\r\n", "\r"):
        assert read_examples(written(tmp_path, "a.csv", end.join(["", "text,label", "a,1", "", '" b ",']))) == rows
        if end != "\r":
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            assert read_examples(written(tmp_path, "a.ndjson", end.join(["", *lines, " ", ""]))) == rows
    assert read_examples(written(tmp_path, "a.csv", 'text\n""\nx\n')) == [{"text": ""}, {"text": "x"}]


@pytest.mark.parametrize("ascii", [True, False])
def test_json(tmp_path, ascii):
    rows = [row | {"n": k, "flag": k > 1, "none": None} for k, row in enumerate(STRANGE)]
    whole = json.dumps(rows, ensure_ascii=ascii, indent=1)
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    for name, data in (("a.json", whole), ("a.jsonl", lines), ("b.JSONL", "\ufeff" + lines)):
        assert read_examples(written(tmp_path, name, data)) == rows
    assert read_examples(written(tmp_path, "a.jsonl", lines + "\n{broken"), limit=5) == rows


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [row | {"n": k} for k, row in enumerate(STRANGE)] * 500
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    assert read_examples(tmp_path / "a.parquet") == rows and read_examples(tmp_path / "a.parquet", 3) == rows[:3]
    parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", f"source {tmp_path / 'b.parquet'} has the column 'a' twice")
    parquet.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "c.parquet")
    refused(tmp_path / "c.parquet", f"source {tmp_path / 'c.parquet'} holds no rows")
    broken = written(tmp_path, "d.parquet", "PAR1 and nothing else")
    refused(broken, f"source {broken} is damaged or no Parquet file: ")


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.csv", "", " is empty"),
        ("a.jsonl", b"\xef\xbb\xbf \n", " is empty"),
        ("a.csv", "text,label\n", " holds no rows"),
        ("a.json", "[]", " holds no rows"),
        ("a.csv", "a,b,a\n1,2,3\n", " has the column 'a' twice"),
        ("a.csv", 'a,b\n"1\n1",2\n3\n', ": the row on line 4 has 1 values, while the header names 2 columns: 'a', 'b'"),
        ("a.csv", "a,b\n1,2,3\n", ": the row on line 2 has 3 values"),
        ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n7,8\n', " cannot be read from line 3 on: unexpected end of data"),
        ("a.csv", 'a,b\n"1"1,2\n', " cannot be read from line 2 on: ',' expected after '\"'"),
        ("a.csv", "text,label\nok,1\ncaf\xe9,2\n".encode("latin-1"), " is not in UTF-8: byte 0xe9 on line 3; save it"),
        ("a.csv", b"\xef\xbb\xbfa,b\nx\xff,1\n", " is not in UTF-8: byte 0xff on line 2; save it as UTF-8"),
        ("a.tsv", "a\tb\n1\t2\n".encode("utf-16"), " is in UTF-16; save it as UTF-8"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 1,}\n', " is no JSON on line 3: "),
        ("a.jsonl", '{"a": 1}\n[1]\n', ": line 2 must be an object such as {...}; it is a list"),
        ("a.jsonl", "null\n", ": line 1 must be an object such as {...}; it is null or None"),
        ("a.jsonl", '{"a": 1, "a": 2}', " is no JSON on line 1: an object has the key 'a' twice"),
        ("a.jsonl", '{"a": 1}\n{"b": 1}\n', ": row 2 has the columns 'b', while row 1 has 'a'"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 1}\n', ": row 2 has the columns 'a', 'b', while row 1 has 'a'"),
        ("a.json", '[{"a": 1},\n {"a": 2}', " is no JSON on line 2: "),
        ("a.json", '{"a": 1}', " must be a list of objects; it is an object (one object a line is read from .jsonl)"),
        ("a.json", '{"a": 1}\n{"a": 2}', " is no JSON on line 2: Extra data; one object a line is read from .jsonl"),
        ("a.json", '[{"a": 1}, "b"]', ": row 2 must be a dict of columns; it is a text"),
        ("a.json", "[{}]", ": row 1 must have texts as names of columns; got none"),
        ("a.json", "[" * 200_000, " is no JSON: maximum recursion depth"),
        ("a.json", "[" + "1" * 5000 + "]", " is no JSON: Exceeds the limit"),
        ("a.txt", "a", " must end with one of .csv, .tsv, .jsonl, .ndjson, .json, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, name, data, complaint):
    path = written(tmp_path, name, data)
    refused(path, f"source {path}{complaint}")


def test_what_is_no_file(tmp_path):
    refused("", "source '' does not exist")
    refused(tmp_path / "no.csv", f"source {tmp_path / 'no.csv'} does not exist")
    refused("a\0b.csv", "source 'a\\x00b.csv' does not exist")
    (tmp_path / "f.csv").mkdir()
    refused(tmp_path / "f.csv", f"source {tmp_path / 'f.csv'} is a folder, not a file")
    refused("a" * 5000 + ".csv", "source " + "a" * 5000 + ".csv ")
    for source in (None, 3, b"a.csv", (row for row in STRANGE), {"text": ["a"]}):
        refused(source, "source must be a path, 'hf:owner/name', a list of dicts, or a data set", TypeError)


def test_lists_of_dicts():
    given = [{"a": 1, "b": None}, {"b": [2], "a": "x"}]
    read = read_examples(given)
    assert read == given and read[0] is not given[0] and read_examples(tuple(given), 1) == given[:1]
    refused([], "source (the given list) holds no rows")
    refused([{"a": 1}, 7], "source (the given list): row 2 must be a dict of columns; it is of type int")
    refused([{1: 2}], "source (the given list): row 1 must have texts as names of columns; got 1")
    refused(
        [{"a": 1}, {"a": 1, "b": 2}], "source (the given list): row 2 has the columns 'a', 'b', while row 1 has 'a'"
    )
    for limit in (0, -1, True, 1.0, "3"):
        refused(given, f"limit must be a positive integer or None; got {limit!r}", limit=limit)


def test_data_sets_in_memory():
    rows = [{"a": 1}, {"a": 2}]
    parts = {"train": Part(rows), "test": Part(rows[:1])}
    assert read_examples(Part(rows)) == read_examples(parts, split="train") == read_examples(Part(rows, None)) == rows
    assert read_examples(parts, split="test") == read_examples(Part(rows), limit=1) == rows[:1]
    refused(parts, "source (the given DatasetDict): split is needed; there are 'train', 'test'")
    refused(parts, "source (the given DatasetDict): split 'dev' does not exist; there are", split="dev")
    refused({"a": Part([])}, "source (split 'a' of the given DatasetDict) holds no rows", split="a")
    for source in (rows, Part(rows), "a.csv"):
        refused(source, "split 'train' can be given for a DatasetDict or 'hf:owner/name'", split="train")


def test_the_package_datasets():
    datasets = pytest.importorskip("datasets")
    rows = [{"text": row["text"], "label": k % 2} for k, row in enumerate(STRANGE)]
    whole = datasets.Dataset.from_list(rows)
    assert read_examples(whole) == read_examples(whole.to_iterable_dataset()) == rows
    assert read_examples(datasets.DatasetDict(train=whole), split="train", limit=2) == rows[:2]


def test_the_hub(monkeypatch):
    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        if split == "dev":
            raise ConnectionError("no network\nat all")
        return Part([{"a": 1}])

    module = ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)
    refused("hf:o/n", "source hf:o/n is loaded by the package datasets, which cannot be imported", ImportError)
    module.load_dataset = load_dataset
    assert read_examples("hf:o/n") == read_examples("hf:o/n/c", split="test") == [{"a": 1}]
    assert PRESETS["sst2"].read(PRESETS["sst2"].test) == [{"a": 1}]
    assert asked == [("o/n", "train"), ("o/n", "c", "test"), ("stanfordnlp/sst2", "validation")]
    refused("hf:o/n", "source hf:o/n cannot be loaded (split 'dev'): no network", split="dev")
    for name in ("hf:", "hf:n", "hf:o/", "hf:o//c", "hf:o/n/c/d", "hf:o /n"):
        refused(name, f"source {name!r} must be 'hf:owner/name' or 'hf:owner/name/config'")


def test_presets():
    assert {(p.name == name, p.label, p.train) for name, p in PRESETS.items()} == {(True, "label", "train")}
    assert [p.test for p in PRESETS.values()] == ["validation", "test", "test", "test", "test"]
    assert [p.source for p in PRESETS.values()][1:3] == ["hf:fancyzhx/ag_news", "hf:fancyzhx/amazon_polarity"]
    assert PRESETS["sst2"].verbalizer([]) == PRESETS["amazon"].verbalizer([]) == Verbalizer(["negative", "positive"])
    assert PRESETS["agnews"].verbalizer([]).words == ("politics", "sports", "business", "technology")
    for name in ("reviews", "headlines"):
        preset = PRESETS[name]
        assert Path(preset.source).name == f"{name}_{{split}}.csv"
        with pytest.raises(ValueError, match=rf"^source .*{name}_none.csv does not exist"):
            preset.read("none")
        assert preset.verbalizer([{"label": "good"}, {"label": "bad"}]).words == ("bad", "good")
        if Path(preset.source.replace("{split}", "train")).is_file():
            rows = preset.read("train")
            preset.parsed_template().check(rows)
            assert len(preset.verbalizer(rows).classes(preset.read("test"), preset.label)) > 1


def test_nothing_heavy_is_imported():
    code = "import sys, pez_fast.labelled; print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize(
    ("sizes", "held_out", "counts"),
    [
        ((20, 20, 20), 0, (0, 0, 0)),
        ((20, 20, 20), 0.25, (5, 5, 5)),
        ((20, 20, 20), 7, (3, 2, 2)),
        ((50, 7, 3), 2, (2, 0, 0)),  # too few for one of each
        ((50, 7, 3), 6, (4, 1, 1)),
        ((50, 7, 3), 0.5, (25, 4, 1)),
        ((50, 7, 3), 57, (49, 6, 2)),  # one of each stays
        ((1, 30, 29), 6, (0, 3, 3)),
        ((60, 0, 0), 0.5, (30, 0, 0)),
    ],
)
def test_held_out_rows_are_of_all_classes(sizes, held_out, counts):
    classes = [name for k in range(60) for name, size in zip("abc", sizes, strict=True) if k < size]
    rows = list(range(60))
    train, test = split_rows(rows, classes, held_out, seed=3)
    assert sorted(train + test) == rows and train == sorted(train) and test == sorted(test)
    assert tuple([classes[k] for k in test].count(name) for name in "abc") == counts
    assert split_rows(rows, classes, held_out, seed=3) == (train, test)
    assert not test or any(split_rows(rows, classes, held_out, seed) != (train, test) for seed in range(5))


@pytest.mark.parametrize("held_out", [-1, 1.0, 2.0, -0.1, True, "3", None, float("nan"), 3, 0.9])
def test_rows_that_cannot_be_held_out(held_out):
    with pytest.raises(ValueError, match=rf"^held_out.*{held_out!r}"):
        split_rows(["w", "x", "y", "z"], [0, 0, 1, 1], held_out, 0)


def test_few_shots():
    rows = [{"n": k, "text": "same"} for k in range(30)]
    classes = [k % 3 for k in range(30)]
    chosen = few_shot(rows, classes, 4, seed=1, known=range(3))
    assert Counter(row["n"] % 3 for row in chosen) == {0: 4, 1: 4, 2: 4} and chosen == sorted(chosen, key=rows.index)
    assert all(any(row is given for given in rows) for row in chosen)
    assert chosen == few_shot([dict(reversed(row.items())) for row in rows], classes, 4, seed=1)
    assert len({str(few_shot(rows, classes, 4, seed)) for seed in (1, -1, 2, 3)}) == 4
    assert few_shot(rows, classes, 10, seed=1) == rows
    for shots, names, said in [
        (11, classes, "shots=11 is more than class 0 has: 10 of 30 rows"),
        (1, classes[:-1] + [7], "shots=1 is more than class 9 has: 0 of 30 rows"),
        (0, classes, "shots must be a whole number from 1 on; got 0"),
        (True, classes, "shots must be a whole number from 1 on; got True"),
        (1, classes[1:], "rows and classes must be equally many, one or more; got 30 and 29"),
    ]:
        with pytest.raises(ValueError, match=re.escape(said)):
            few_shot(rows, names, shots, seed=1, known=[9] if 7 in names else [1])


def test_choices_are_the_same_in_every_process():
    """Also where Python's hashes of texts differ; these values are to stay as they are."""
    code = "from pez_fast.labelled import *; c = list('ab' * 9); print(draws(5, 3, 4, 9), few_shot(range(18), c, 2, 5))"
    code += "; print(split_rows(range(18), c, 4, 5)[1])"
    for env in (os.environ | {"PYTHONHASHSEED": "1"}, os.environ | {"PYTHONHASHSEED": "2"}):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        assert done.stdout == "[1, 8, 2, 3] [7, 11, 12, 14]\n[0, 5, 8, 9]\n"


@pytest.mark.parametrize(("count", "size"), [(4, 12), (5, 12), (7, 12), (11, 12), (1, 3), (1, 2)])
def test_minibatches_go_through_all_rows_again_and_again(monkeypatch, count, size):
    stream = [k for step in range(size * 3) for k in draws(9, step, count, size)]
    epochs = [tuple(stream[k : k + size]) for k in range(0, len(stream), size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len(set(epochs)) > 1 and all(len(draws(9, step, count, size)) == count for step in range(20))
    monkeypatch.setattr(sampling, "_MOST_ORDERS", 2)
    assert draws(9, size, count, size) == stream[size * count : (size + 1) * count]  # no step before it was asked for
    assert len({str([draws(seed, step, count, size) for step in range(9)]) for seed in (9, -9, 10)}) == 3
    assert len(sampling._orders) == 2


def test_a_minibatch_of_all_rows():
    assert all(draws(0, 10**9, count, 5) == [0, 1, 2, 3, 4] for count in (5, 6, 10**9))
    assert len(draws(0, 10**12, 3, 7)) == 3 and len(draws(0, 0, 8, 9)) == 8 and max(draws(0, 0, 2, 3)) < 3
    for name in ("seed", "step", "count", "size"):
        for bad in (1.5, True, None) if name == "seed" else (-1, 1.5, True):
            with pytest.raises(ValueError, match=f"^{name} must be a whole number.*; got {bad!r}$"):
                draws(**({"seed": 0, "step": 0, "count": 2, "size": 5} | {name: bad}))
