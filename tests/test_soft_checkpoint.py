"""Soft prompts of a classification, and their checkpoints as the library peft reads them."""

from __future__ import annotations

import copy

import pytest
import torch

from pez_fast import learn_classifier, load_lm
from pez_fast.methods import SoftPromptMethod
from pez_fast.tasks import save_soft_prompt

OPTIONS = {"prompt_len": 3, "limit": 60, "stages": [(SoftPromptMethod(lr=0.02), 12)], "held_out_every": 6}


@pytest.fixture(scope="module")
def lm():
    return load_lm("reviews")


@pytest.fixture(scope="module")
def learned(lm):
    return learn_classifier("reviews", lm, template="Review :{prompt} {text} It was {label}", **OPTIONS)


def test_the_result_holds_the_soft_prompt_and_its_projection_as_text(learned, lm):
    assert learned.soft_prompt.shape == (3, lm.embedding.weight.shape[1])
    assert len(learned.ids) == 3 and learned.accuracy == learned.accuracy
    assert not torch.isin(learned.soft_prompt.flatten(), lm.embedding.weight.flatten()).all()
    assert "soft_prompt" not in learned.to_dict()


def test_peft_reads_the_checkpoint_and_gives_the_same_logits(learned, lm, tmp_path):
    peft = pytest.importorskip("peft")
    folder = save_soft_prompt(learned, tmp_path / "soft", lm)
    before = lm.tokenize(["Review :"])[0]
    behind = lm.tokenizer(" the soup was cold It was", add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = lm.embedding(torch.tensor([before]))
    embeds = torch.cat([start, learned.soft_prompt[None], lm.embedding(behind)], 1)
    with torch.no_grad():
        expected = lm.model(inputs_embeds=embeds).logits[:, -1]
        tuned = peft.PeftModel.from_pretrained(copy.deepcopy(lm.model), folder)
        found = tuned(input_ids=behind).logits[:, -1]
        bare = lm.model(input_ids=behind).logits[:, -1]
    assert (found - expected).abs().max() < 1e-5
    assert (bare - expected).abs().max() > 1e-3


def test_what_cannot_be_saved_is_said(learned, lm, tmp_path):
    hard = learn_classifier("reviews", lm, prompt_len=2, steps=1, limit=40)
    with pytest.raises(ValueError, match="result holds no soft prompt"):
        save_soft_prompt(hard, tmp_path, lm)
    behind = copy.copy(learned)
    behind.template = "{text} {prompt} It was {label}"
    with pytest.raises(ValueError, match="has a column before"):
        save_soft_prompt(behind, tmp_path, lm)
