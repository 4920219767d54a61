"""Templates and verbalizers: what is read, what is refused, and that all ways to write a text agree."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import product

import numpy as np
import pytest

from pez_fast.labelled import PRESETS, Template, Verbalizer, separator

IT_WAS = "{prompt}{sentence} It was {label}"


@pytest.mark.parametrize(
    ("text", "columns", "first", "lead", "rest"),
    [
        (IT_WAS, ("sentence",), True, " ", ""),
        ("Q: {a} {prompt}\n{b}, {a}\n\nA:{label}.", ("a", "b"), False, "", "."),
        ("{{}} {prompt} {label} {{x}} {note}", (), True, " ", " {{x}} {note}"),
        ("{prompt}{class}{label}", ("class",), True, "", ""),
        ("{prompt}{two words}\t\n{label}", ("two words",), True, "\t\n", ""),
        ("{prompt}{a.b[0]}\u00a0{label}", ("a.b[0]",), True, "\u00a0", ""),
        ("{prompt} {text} {label}{text}", ("text",), True, " ", "{text}"),
        ("Ein Fäßchen 🙂 {prompt} {label}", (), True, " ", ""),
        ("{prompt}{label}", (), True, " ", ""),
    ],
)
def test_what_a_template_says_of_itself(text, columns, first, lead, rest):
    template = Template.parse(text)
    assert (template.text, template.target) == (text, "label")
    assert (template.columns, template.prompt_is_first) == (columns, first)
    assert (template.label_lead, template.after_label) == (lead, rest)
    assert template == Template.parse(text) and hash(template) == hash(Template.parse(text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{text} {label}", "must have {prompt} exactly once; it has it 0 times"),
        ("{prompt}{prompt} {label}", "must have {prompt} exactly once; it has it 2 times"),
        ("{prompt} {text}", "must have {label} exactly once; it has it 0 times"),
        ("{prompt} {label} {label}", "must have {label} exactly once; it has it 2 times"),
        ("{prompt} {{label}}", "must have {label} exactly once; it has it 0 times"),
        ("{label} {prompt}", "must have {prompt} before {label}"),
        ("{prompt} {} {label}", "must name its columns; {} names none"),
        ("{prompt} {0} {label}", "must name its columns; {0} names none"),
        ("{prompt} {text!r} {label}", "must have names alone in braces; {text} has a format"),
        ("{prompt} {text:>9} {label}", "must have names alone in braces; {text} has a format"),
        ("{prompt} } {label}", "has braces that do not fit (Single '}' encountered in format string)"),
        ("{prompt} {label", "has braces that do not fit (expected '}' before end of string)"),
        ("{prompt} {a{b}} {label}", "has braces that do not fit"),
        ("", "must have {prompt} exactly once; it has it 0 times"),
    ],
)
def test_what_is_no_template(text, complaint):
    with pytest.raises(ValueError, match=re.escape(f"template {text!r} {complaint}")) as caught:
        Template.parse(text)
    assert "\n" not in str(caught.value)


def test_a_template_is_a_text_and_a_target_a_name():
    with pytest.raises(TypeError, match="template must be a text; got NoneType"):
        Template.parse(None)
    for name in ("", "prompt"):
        with pytest.raises(ValueError, match=f"target must be the name of a column, and not 'prompt'; got '{name}'"):
            Template.parse("{prompt} {label}", target=name)


def test_another_target():
    template = Template.parse("{prompt} {label}: {text}\n{summary} END", target="summary")
    row = {"label": 3, "text": "t", "summary": "s"}
    assert (template.target, template.columns) == ("summary", ("label", "text"))
    assert (template.label_lead, template.after_label) == ("\n", " END")
    assert template.render("p", row, "s") == "p 3: t\ns"
    template.check([row])
    with pytest.raises(ValueError, match="needs the column 'summary'; row 2 has the columns 'label', 'text'"):
        template.check([row, {"label": 3, "text": "t"}])
    with pytest.raises(ValueError, match=r"must have \{summary\} exactly once; it has it 0 times"):
        Template.parse("{prompt} {label}", target="summary")


def test_no_white_space_ends_what_is_before_the_label():
    """The original scored the word after a trailing space, which its model had never seen."""
    template = Template.parse(IT_WAS)
    row = {"sentence": "hide new secretions from the parental units "}
    assert template.before_prompt(row) == ""
    assert template.after_prompt(row) == "hide new secretions from the parental units It was"
    whole = "good film hide new secretions from the parental units It was negative"
    assert template.render("good film", row, "negative") == whole
    assert template.render("good film", row) == whole.removesuffix(" negative")
    for text in ("{prompt} {a}\n{label}", "{prompt}\n {a} \n{label}", "{prompt} \n{label}", "{prompt} {a} {b} {label}"):
        for a, b in product(["", "x", " x\n", "\u2003"], repeat=2):
            after = Template.parse(text).after_prompt({"a": a, "b": b})
            assert after == after.rstrip()


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("{prompt}{text}", "good", "good T w"),
        ("{prompt} {text}", "good", "good T w"),
        ("{prompt}\n{text}", "good", "good\nT w"),
        ("{text}{prompt}", "good", "T good w"),
        ("<{prompt}>", "good", "< good > w"),
        ("{prompt}", "good", "good w"),
        ("{text}{prompt}{text}", "good", "T good T w"),
        ("{prompt}{text}", " good ", " good T w"),
        ("{text}{prompt}", "\tgood", "T\tgood w"),
        ("{prompt}{text}", "", "T w"),
        ("{prompt} {text}", "", "T w"),
        ("A {prompt} {text}", "", "A T w"),
        ("A{prompt}{text}", "", "A T w"),
        ("A\n{prompt} {text}", "", "A\nT w"),
        ("A {prompt}\n\n{text}", "", "A\n\nT w"),
        ("A\n{prompt}   {text}", "", "A\nT w"),
        ("A {prompt}", "", "A w"),
        ("A {prompt}{text}", "", "A T w"),
        ("A{prompt}  {text}", "", "A  T w"),
        ("{{{prompt}}}", "", "{ } w"),
        ("{prompt}", "{label}", "{label} w"),
    ],
)
def test_render(text, prompt, expected):
    assert Template.parse(text + " {label}").render(prompt, {"text": "T"}, "w") == expected


PARTS = ["", "x", " x", "x ", "x\n", "{a}", " {a}", "{a} ", "\n{a}\n", "{{ {a}", "{a}{b} "]


def test_all_ways_to_write_a_text_agree():
    values = ["", "v", " v \n w ", 0, True, "{a}", "ß\u2028🙂", '"']
    for before, between, lead in product(PARTS, PARTS, ["", " ", "\n"]):
        template = Template.parse(f"{before}{{prompt}}{between}{lead}{{label}}. {{c}}")
        for k, a in enumerate(values):
            row = {"a": a, "b": values[-k], "label": "no", "prompt": "no"}
            left, right = template.before_prompt(row), template.after_prompt(row)
            for p in ("p", " p", "p q\n", " ", "{b}"):
                whole = template.render(p, row)
                assert whole == left + separator(left, p) + p + separator(p, right) + right
                assert template.render(p, row, "word") == whole + template.label_lead + "word"
            bare = template.render("", row)
            assert bare.split() == (left + " " + right).split()
            assert bare == bare.rstrip() and (bare[:1].split() or not left or left[0].isspace() or not bare)


@pytest.mark.parametrize(
    ("left", "right", "space"), [("a", "b", " "), ("a ", "b", ""), ("a", "\nb", ""), ("", "b", ""), ("a", "", "")]
)
def test_separator(left, right, space):
    assert separator(left, right) == space


def test_values_are_written_without_the_white_space_at_their_ends():
    template = Template.parse("{prompt} [{text}] {label}")
    for value, written in [
        (" a \n b\r\n", "a \n b"),
        ("", ""),
        (0, "0"),
        (1.5, "1.5"),
        (False, "False"),
        (Decimal("1.10"), "1.10"),
        (np.int64(7), "7"),
        (np.str_("x"), "x"),
        ("{prompt} {{", "{prompt} {{"),
    ]:
        template.check([{"text": value}])
        assert template.after_prompt({"text": value}) == f" [{written}]"


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, b"bytes", float("nan"), np.array([1])])
def test_a_value_that_is_no_text(value):
    template = Template.parse(IT_WAS)
    said = f"template {IT_WAS!r} needs a text, number or bool in the column 'sentence'; row 2 has {value!r}"
    with pytest.raises(ValueError, match=re.escape(said)):
        template.check([{"sentence": ""}, {"sentence": value}])
    with pytest.raises(ValueError, match="the row has"):
        template.after_prompt({"sentence": value})


def test_half_a_character_is_refused():
    """JSON can hold one, and no tokenizer reads it."""
    with pytest.raises(ValueError, match=r"row 1 has half a character \(a surrogate\): '\\ud83d'"):
        Template.parse(IT_WAS).check([{"sentence": "\ud83d"}])


def test_a_missing_column():
    template, row = Template.parse(IT_WAS), {"text": "a", "label": 1}
    said = f"template {IT_WAS!r} needs the column 'sentence'; row 1 has the columns 'text', 'label'"
    with pytest.raises(ValueError, match=re.escape(said)):
        template.check([row])
    for write in (template.after_prompt, lambda row: template.render("p", row)):
        with pytest.raises(ValueError, match="the row has the columns 'text', 'label'"):
            write(row)
    Template.parse("{prompt} {label} {gone}").check([row])  # what stands after the label is not written


def test_the_templates_of_the_presets():
    for preset in PRESETS.values():
        template = preset.parsed_template()
        assert template.columns == preset.columns and template.prompt_is_first
        assert (template.label_lead, template.after_label) == (" ", "")
    row = {"sentence": "a dull film ", "text": "Oil falls", "content": "Broke."}
    written = {name: preset.parsed_template().render("p", row, "w") for name, preset in PRESETS.items()}
    assert written == {
        "sst2": "p a dull film It was w",
        "agnews": "p Oil falls It was about w",
        "amazon": "p Broke. It was w",
        "reviews": "p Oil falls It was w",
        "headlines": "p Oil falls It was about w",
    }


@pytest.mark.parametrize(
    ("given", "labels", "words"),
    [
        ({0: "negative", 1: "positive"}, (0, 1), ("negative", "positive")),
        ({True: " yes ", False: "no"}, (True, False), ("yes", "no")),
        ({"not spam": "ham", "spam": "spam"}, ("not spam", "spam"), ("ham", "spam")),
        (["a", "b", "c"], (0, 1, 2), ("a", "b", "c")),
        (("Good", "good"), (0, 1), ("Good", "good")),
        (" 0 = negative ,1=positive", ("0", "1"), ("negative", "positive")),
        ("a=x=y,ß=🙂 {prompt}", ("a", "ß"), ("x=y", "🙂 {prompt}")),
    ],
)
def test_labels_and_words(given, labels, words):
    verbalizer = Verbalizer(given)
    assert (verbalizer.labels, verbalizer.words, len(verbalizer)) == (labels, words, len(words))
    assert [verbalizer.index(label) for label in labels] == list(range(len(labels)))
    assert [verbalizer.index(f" {label} ") for label in labels] == list(range(len(labels)))
    assert verbalizer == Verbalizer(dict(zip(labels, words, strict=True))) != Verbalizer(["p", "q"])
    assert len({verbalizer, Verbalizer(given)}) == 1 and verbalizer != words
    assert verbalizer != Verbalizer({f"x{k}": word for k, word in enumerate(words)})
    assert repr(verbalizer) == f"Verbalizer({dict(zip(labels, words, strict=True))})"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([], "verbalizer must have two classes or more; got 0 ([])"),
        ({1: "one"}, "verbalizer must have two classes or more; got 1 ({1: 'one'})"),
        (["a", " a "], "verbalizer has the word 'a' for the labels 0 and 1"),
        (["a", " "], "verbalizer: the word for label 1 must be a text, and not empty; got ' '"),
        ({0: "a", 1: 3}, "verbalizer: the word for label 1 must be a text, and not empty; got 3"),
        ({0: "a", "0": "b"}, "verbalizer has the label '0' twice"),
        ("0=a,1=b,0=c", "verbalizer has the label '0' twice"),
        ({0.5: "a", 1: "b"}, "verbalizer: a label must be a text, whole number or bool; got 0.5"),
        ({None: "a", 1: "b"}, "verbalizer: a label must be a text, whole number or bool; got None"),
        ("0=a,b", "verbalizer '0=a,b' must be as '0=negative,1=positive'; 'b' is no label=word"),
        ("=a,1=b", "verbalizer '=a,1=b' must be as '0=negative,1=positive'; '=a' is no label=word"),
        ("0=,1=b", "verbalizer: the word for label '0' must be a text, and not empty; got ''"),
        ("", "verbalizer '' must be as '0=negative,1=positive'; '' is no label=word"),
    ],
)
def test_what_is_no_verbalizer(given, complaint):
    with pytest.raises(ValueError, match="^" + re.escape(complaint) + "$"):
        Verbalizer(given)
    with pytest.raises(TypeError, match="verbalizer must be a dict, a list of words or a text; got int"):
        Verbalizer(3)


def test_labels_of_rows():
    verbalizer = Verbalizer(["a", "b"])
    assert [verbalizer.index(value) for value in (0, "0", 1, "1", " 1\n", 1.0, True, np.int64(1), np.str_("0"))] == [
        *(0, 0, 1, 1, 1, 1, 1, 1, 0)
    ]
    for value in (2, "a", "", None, "01", 0.5, [0], float("nan")):
        with pytest.raises(ValueError, match="^" + re.escape(f"label {value!r} is unknown; the labels are 0, 1") + "$"):
            verbalizer.index(value)
    assert verbalizer.classes([{"class": "1"}, {"class": 0}], "class") == [1, 0]
    with pytest.raises(ValueError, match="^row 2: label -1 is unknown"):
        verbalizer.classes([{"class": "1"}, {"class": -1}], "class")
    with pytest.raises(ValueError, match="^row 1 has no column 'label' of labels; its columns are 'class', 'b'$"):
        verbalizer.classes([{"class": "1", "b": 1}], "label")


def test_a_verbalizer_of_rows():
    def of(*labels):
        return Verbalizer.from_rows([{"class": label} for label in labels], "class")

    assert of("b", "a", " b", "a\n") == Verbalizer({"a": "a", "b": "b"})
    assert of("10", "9", "-1").words == of(10, 9, "9", -1).words == ("-1", "9", "10")
    assert of("10", "9", "x").words == ("10", "9", "x") and of(True, False).words == ("False", "True")
    assert of("not spam", "{x}").index("not spam") == 0 and len(of(*range(50))) == 50
    for labels, said in [
        (range(51), "column 'class' has more than 50 labels, such as '50'"),
        (["a", " a"], "column 'class' must have two labels or more; it has 'a'"),
        ([], "column 'class' must have two labels or more; it has none"),
        (["a", " "], "row 2 has ' ' in the column 'class'; a label must be a text that is not empty"),
        (["a", None], "row 2 has None in the column 'class'"),
        ([1.5], "row 1 has 1.5 in the column 'class'"),
    ]:
        with pytest.raises(ValueError, match="^" + re.escape(said)):
            of(*labels)
    with pytest.raises(ValueError, match="^row 1 has no column 'label' of labels; its columns are 'class'$"):
        Verbalizer.from_rows([{"class": 1}], "label")
