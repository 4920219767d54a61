"""Learned tokens stand in a template as themselves, with every family of tokenizers and every text beside them."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("transformers")
from inputs import refused  # noqa: E402
from languages import MODELS, ROWS, embedded, label_model, language, read, some_ids  # noqa: E402

from pez_fast.engine import BatchLimit, Evaluator  # noqa: E402
from pez_fast.labelled import Template  # noqa: E402
from pez_fast.models.language.texts import closed_texts, fitted, open_texts, written  # noqa: E402
from pez_fast.objectives import LabelLoss  # noqa: E402

FAMILIES = ["gpt2", "llama", "bert's tokens", "qwen2, padded table", "gemma", "t5, tied"]
FRONT = "{prompt}{text} It was {label}"
TEMPLATES = (
    FRONT,
    "{text} {prompt} It was {label}",
    "Is it so? {prompt}\n\n{text} It was {label}",
    "({prompt}) {label}",
)
REAL = (
    "",
    "the cat of the house",
    "'s it, don't!",
    '...!? -- (and) "so"',
    "1,234.5% of 2026",
    "naïve café über ß ﬁ ½",
    "日本語 のテキスト",
    "🙂👍🏽 é",
    "a\nb\t c\r\n  d",
    "The Cat'S DOGS n't s 't",
    "<br />the &amp; {prompt} [x]",
    "\u0301a \u200b b",
    "covid blue house xyz",
    "x" * 40,
)


def rows():
    return [ROWS[0] | {"text": text} for text in REAL]


@pytest.mark.parametrize("text", TEMPLATES)
@pytest.mark.parametrize("name", FAMILIES)
def test_learned_tokens_stand_in_a_text_as_themselves(name, text):
    lm, template, draw = language(name), Template.parse(text), random.Random(name + text)
    stable = lm.table("stable").allowed.nonzero()[:, 0].tolist()
    assert stable == lm.vocabulary.stable() and len(stable) > 60
    every = draw.sample(stable, len(stable))  # each token at least once
    prompts = [every[k : k + 20] for k in range(0, len(every), 20)]
    prompts += [draw.choices(stable, k=draw.choice([1, 2, 5, 9])) for _ in range(40)]
    for ids in prompts:
        row, prompt = ROWS[0] | {"text": draw.choice(REAL)}, written(lm, template, ids)
        opened = open_texts(lm, template, [row], len(ids))
        assert opened.before[0] + ids + opened.after[0] == read(lm, template.render(prompt, row)), (prompt, row["text"])


@pytest.mark.parametrize("name", FAMILIES)
def test_closed_texts_are_what_the_tokenizer_reads(name):
    lm = language(name)
    for text in TEMPLATES:
        template = Template.parse(text)
        for prompt in ("", "the cat", " the cat ", "déjà-vu!", written(lm, template, some_ids(lm, 1, 4)[0].tolist())):
            closed = closed_texts(lm, template, rows(), prompt)
            whole = [read(lm, template.render(prompt, row)) for row in rows()]
            assert [b + a for b, a in zip(closed.before, closed.after, strict=True)] == whole
            assert all(closed.after) and closed.shared is not None


@pytest.mark.parametrize("fluency", [0.0, 0.3])
@pytest.mark.parametrize("text", TEMPLATES[:3])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_of_a_prompt_scores_as_its_ids(name, text, fluency):
    lm = language(name)
    if lm.is_encoder_decoder and fluency:
        pytest.skip("an encoder-decoder has no fluency")
    bound = label_model(lm, text, ("cat", "the red dog"), rows(), calibrate=True, fluency=fluency > 0).bind(4)
    ids, objective = some_ids(lm, 5, 4), LabelLoss([fluency] * 5)
    found = Evaluator(lm.table(), bound.held_out, objective, BatchLimit(9, 9))(ids)
    loss, score = objective(bound.from_text([bound.text(row) for row in ids.tolist()]), ids)
    torch.testing.assert_close(loss, found.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(score, found.score, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_special_tokens_and_rows_without_a_token_are_never_learned(name):
    lm = language(name)
    special = {*lm.tokenizer.all_special_ids, *lm.head, *lm.tail}
    special |= {i for i, token in lm.tokenizer.added_tokens_decoder.items() if token.special}
    named = {
        i
        for i, token in enumerate(lm.tokenizer.convert_ids_to_tokens(range(len(lm.tokenizer))))
        if token[1:6] == "extra"
    }
    assert special and (len(named) == 2) == lm.is_encoder_decoder
    for vocabulary in ("stable", "full"):
        allowed = lm.table(vocabulary).allowed
        assert len(allowed) == lm.embedding.weight.shape[0] and not allowed[list(special | named)].any()
        assert not allowed[len(lm.tokenizer) :].any()
    assert (~lm.table("full").allowed).sum() == len(allowed) - len(lm.tokenizer) + len(special)
    assert not (lm.table("stable").allowed & ~lm.table("full").allowed).any()


def test_added_words_may_be_learned_and_are_read_as_themselves():
    lm = language("qwen2, padded table")
    ids = lm.tokenizer.convert_tokens_to_ids(["covid", "<|im_start|>"])
    assert lm.table("full").allowed[ids].tolist() == [True, False]
    assert 1205 == len(lm.tokenizer) < lm.embedding.weight.shape[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_long_texts_are_cut_at_their_ends(name):
    lm = language(name)
    template, long = Template.parse("{prompt}{text} and {other} It was {label}"), " the cat" * 99
    texts = [long, "🙂" * 99, "a red dog", "x" * 300, "日本" * 60]
    given = [ROWS[0] | {"text": text} for text in texts]
    fixed = len(lm.tokenize([template.render("", ROWS[0] | {"text": ""})])[0])
    for room in range(fixed + 6, fixed + 12):
        with pytest.warns(
            UserWarning, match=r"[1-5] of 5 texts are longer than the model's context; their ends are cut"
        ):
            cut = fitted(lm, template, given, room)
        assert cut[0]["other"] == "a 0" and long.strip().startswith(cut[0]["text"])
        assert max(map(len, lm.tokenize([template.render("", row) for row in cut]))) <= room
        assert given[0]["text"] == long
    assert fitted(lm, template, given[2:3], 40) == given[2:3]
    with refused(ValueError, "takes [0-9]+ tokens, and 3 are free beside the prompt"):
        fitted(lm, template, given, 3)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("word", ["Sata", "houses", "doglu", "xyz", "(", "'s"])
def test_a_cut_text_and_its_prompt_fit_the_context(name, word):
    """A text's first token may be another one behind a prompt than at the beginning."""
    lm = language(name)
    for count in (18, 19, 20):
        bound = label_model(lm, FRONT, ("cat", "dog"), [ROWS[0] | {"text": word + " the cat" * 40}] * 2).bind(count)
        texts = bound.chosen_texts
        assert len(texts.before[0]) + count + len(texts.after[0]) <= lm.context_length
        ids = some_ids(lm, 1, count)
        assert bound.held_out(embedded(lm, ids), ids)["label_scores"].isfinite().all()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bert's tokens"])
def test_a_line_break_that_changes_the_prompts_tokens_is_refused(name):
    """Words carry the space before them, and none carries a line break."""
    with pytest.raises(
        ValueError,
        match=r"template 'So\\n\{prompt\} \{label\}' changes the tokens of a prompt; a space around .*row 1 is",
    ):
        label_model(language(name), "So\n{prompt} {label}", ("cat", "dog")).bind(3)
