"""How long a model of the catalogue takes here: measured with random weights, or guessed from one product of matrices.

Neither downloads anything.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from pez_fast._shared.catalog import Entry

if TYPE_CHECKING:
    from pez_fast.config import Progress
    from pez_fast.models import ClipEncoder

PROMPT_LEN = 16
REFINE_COST = 13  # steps of PEZ that take as long as one of GCG, as GCGMethod.relative_cost
# A step takes about _SHARE * (_FIXED + multiply-adds of the tower) / (numpy's multiply-adds a second): fitted to towers
# of width 128, 512 and 1024 by hand; see benchmarks/results/pez_step_cpu*.json.
_FIXED, _SHARE = 1.33e9, 0.44
_VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}  # takes no part in a search


def guessed_seconds(entry: Entry, steps: int, refine: int, speed: float) -> float:
    """Returns about how many seconds a search for one image takes on a CPU of so many multiply-adds a second."""
    places = entry.context or PROMPT_LEN + 2
    forward = 12 * entry.width**2 * entry.layers * places
    step = _SHARE * (_FIXED + 2 * forward) / speed  # the gradient takes as many again
    return (steps + REFINE_COST * refine) * step


def matmul_speed() -> float:
    """Returns how many multiply-adds a second numpy makes here, for a few rows and weights too large for the caches."""
    import numpy as np

    rows, width, count = 16, 1024, 8
    weights = np.full((count, width, 4 * width), 0.5, dtype=np.float32)
    x, fastest = np.full((rows, width), 0.5, dtype=np.float32), float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for weight in weights:
            x @ weight
        fastest = min(fastest, time.perf_counter() - start)
    return count * rows * 4 * width * width / fastest


def measured_seconds(entry: Entry, steps: int, refine: int, device: str | None = None) -> float:
    """Returns about how many seconds a search for one image takes here, from a few steps of each of its stages."""
    import torch

    from pez_fast.objectives import Similarity
    from pez_fast.prompt_search import search

    clip = random_clip(entry, device)
    times: list[tuple[int, float]] = []

    def note(state: Progress) -> None:
        times.append((state.refined, time.perf_counter()))

    target = torch.nn.functional.normalize(clip.encode_texts(["a photograph of a boat"]), dim=-1)
    search(Similarity(target), clip, prompt_len=PROMPT_LEN, steps=8, refine=3, callback=note, every=1)
    first: list[float] = []
    second: list[float] = []
    for (_, before), (refined, after) in zip(times, times[1:], strict=False):
        (second if refined > 1 else first if refined == 0 else []).append(after - before)
    return steps * median(first[2:]) + refine * median(second)


def random_clip(entry: Entry, device: str | None = None) -> ClipEncoder:
    """Returns an encoder with a model's text tower, random weights, and hardly any image tower.

    The tokenizer is open_clip's own, also where the model has another one, which would have to be downloaded.
    """
    import torch

    from pez_fast.models.arguments import checked_device, quiet
    from pez_fast.models.clip import ClipEncoder
    from pez_fast.models.loading import BUNDLED, import_open_clip, load_clip

    place = checked_device(device)
    if entry.name in BUNDLED:
        return load_clip(entry.name, device=place)  # type: ignore[return-value]  # it is one of open_clip
    open_clip = import_open_clip()
    config = open_clip.get_model_config(entry.model)
    text = {k: v for k, v in config["text_cfg"].items() if not k.startswith(("hf_", "tokenizer_"))}
    text["vocab_size"] = 49408
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    with quiet(), torch.device("meta"):
        model = kind(embed_dim=config["embed_dim"], vision_cfg=_VISION, text_cfg=text)
    model = _filled(model.to_empty(device=place))
    tokenizer = open_clip.SimpleTokenizer(context_length=text["context_length"])
    return ClipEncoder(model, tokenizer, None, f"{entry.name} with random weights")


def _filled(model: Any) -> Any:
    """Gives values to the parameters of a model that was made without memory, and to the mask of its text tower."""
    import torch

    tower = getattr(model, "text", model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.uniform_(-0.02, 0.02)
        mask = getattr(tower, "attn_mask", None)
        if mask is not None:
            mask.fill_(-torch.inf).triu_(1)
    return model
