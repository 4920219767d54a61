"""Soft prompts as checkpoints of prompt tuning, which the library peft reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pez_fast.labelled import Template
from pez_fast.models.language import LanguageModel
from pez_fast.result import ClassifierResult
from pez_fast.tasks.classify import check_lm


def save_soft_prompt(result: ClassifierResult, folder: str | Path, lm: LanguageModel) -> Path:
    """Writes a learned soft prompt as a checkpoint of prompt tuning (Lester et al. 2021).

    `peft.PeftModel.from_pretrained(model, folder)` reads it. peft puts the virtual tokens before all others, so they
    begin with what the model reads before the prompt: special tokens, and fixed text of the template. Tokenise the text
    behind it with `add_special_tokens=False`, and begin it with the space that stands between prompt and text.

    Args:
        result: from `learn_classifier` with `stages=[(SoftPromptMethod(...), steps)]`.
        folder: it is made if it is not there; a checkpoint in it is replaced.
        lm: the model that the prompt was learned for.

    Returns:
        The folder.

    Raises:
        ValueError: the result holds no soft prompt, or the template has a column before the prompt.
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    check_lm(lm)
    soft = getattr(result, "soft_prompt", None)
    if soft is None:
        raise ValueError("result holds no soft prompt; learn it with stages=[(SoftPromptMethod(), steps)]")
    template = Template.parse(result.template)
    check_template(template)
    before = lm.tokenize([template.before_prompt({})])[0]
    before = before[: len(before) - len(lm.tail)]
    fixed = lm.embedding(torch.tensor(before, dtype=torch.int64, device=lm.device)).detach()
    virtual = torch.cat([fixed.float().cpu(), soft.float().cpu()]).contiguous()
    config = lm.model.config.get_text_config()
    settings = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_2_SEQ_LM" if lm.is_encoder_decoder else "CAUSAL_LM",
        "base_model_name_or_path": lm.name,
        "inference_mode": True,
        "num_virtual_tokens": len(virtual),
        "token_dim": virtual.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": getattr(config, "num_attention_heads", 1),
        "num_layers": getattr(config, "num_hidden_layers", 1),
        "prompt_tuning_init": "RANDOM",
    }
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_file({"prompt_embeddings": virtual}, place / "adapter_model.safetensors")
    return place


def check_template(template: Template) -> None:
    """Raises ValueError if a soft prompt of a template cannot be saved."""
    if not template.prompt_is_first:
        raise ValueError(f"template {template.text!r} has a column before {{prompt}}, where peft puts nothing")
