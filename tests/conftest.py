"""Fixtures: a tiny CLIP on disk, as a user's local-dir model, and images."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # tests must not wait for a network

import numpy as np
import pytest
import torch
from interpreter import hasten
from PIL import Image

if not torch.cuda.is_available():  # without a GPU, the Triton kernels run in the interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if find_spec("triton"):
        hasten()

pytest.register_assert_rewrite("inputs", "tolerances")

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept in the user's folder of caches."""
    os.environ["PEZ_FAST_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder that open_clip loads as `local-dir:`, with random weights and the real tokenizer."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny-clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    with torch.no_grad():  # spread like a trained table, so that prompts differ
        model.token_embedding.weight.mul_(20)
        model.positional_embedding.mul_(5)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {"size": 32}}))
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_dir: Path):
    """Returns that model as a float32 encoder on the CPU; the tests share it and must not change it."""
    import pez_fast

    return pez_fast.load_clip(f"local-dir:{tiny_clip_dir}", device="cpu")


@pytest.fixture(scope="session")
def tiny_clip64(tiny_clip_dir: Path):
    """Returns the same model in float64, so that rounding does not part two ways of computing the same thing."""
    import pez_fast

    return pez_fast.load_clip(f"local-dir:{tiny_clip_dir}", device="cpu", dtype=torch.float64)


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Returns eight different images."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(c).resize((48, 40), Image.Resampling.BICUBIC) for c in coarse]


@pytest.fixture
def medium_precision():
    """Lets torch multiply float32 in bfloat16 or TF32."""
    from inputs import product_precision

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    medium = product_precision()
    assert medium == ("bf16", "tf32")
    yield
    after = product_precision()
    torch.set_float32_matmul_precision(before)
    assert after == medium, "a search must leave torch's settings as they were"
