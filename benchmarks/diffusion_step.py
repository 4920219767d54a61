"""Time of one step of prompt learning through a diffusion model beside a plain loop over diffusers, in one run.

    python benchmarks/diffusion_step.py --shape sd15 --device cuda --out benchmarks/results/diffusion_step_cuda.json

Both learn prompts of 8 tokens for one image with a pipeline of Stable Diffusion 1.5's shapes (random weights) and 4
noises a step. The plain loop puts the embeddings in through a hook, normalises the table at every projection, and
learns one prompt after the other. Parity is checked first, in float32: from the same start both must find the same ids,
and the same losses to 1e-4, for five steps.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from in_turn import compared, times_in_turn
from PIL import Image
from provenance import write
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from pez_fast.engine import BatchLimit, Request, Scheduler, Stage
from pez_fast.methods import PEZMethod
from pez_fast.models.diffusion import DiffusionModel, NoiseTask
from pez_fast.models.diffusion.model import BoundDiffusion
from pez_fast.objectives import NoiseLoss
from pez_fast.table import TokenTable

LENGTH, NOISES, CONTEXT, TOKENS = 8, 4, 77, 49_408
PLAIN_STEPS = 2  # steps of the plain loop that are timed together
# Width, layers and heads of the text encoder; widths of the unet's blocks and the VAE's; side of the latents.
SHAPES = {
    "tiny": (32, 2, 2, (16, 32), (8, 16), 8),
    "sd15": (768, 12, 12, (320, 640, 1280, 1280), (128, 256, 512, 512), 64),
}


def build(shape: str, device: str) -> StableDiffusionPipeline:
    """Returns a pipeline with random weights, and a tokenizer whose tokens are the words w0, w1, …"""
    width, layers, heads, blocks, vae_blocks, side = SHAPES[shape]
    torch.manual_seed(0)
    tokens = {f"w{k}": k for k in range(TOKENS - 2)} | {"<s>": TOKENS - 2, "</s>": TOKENS - 1}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [("<s>", TOKENS - 2), ("</s>", TOKENS - 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "</s>"}
    text = CLIPTextConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    text.bos_token_id, text.eos_token_id = TOKENS - 2, TOKENS - 1
    count, groups = len(blocks), 8 if shape == "tiny" else 32
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=vae_blocks,
            down_block_types=("DownEncoderBlock2D",) * len(vae_blocks),
            up_block_types=("UpDecoderBlock2D",) * len(vae_blocks),
            layers_per_block=1 if shape == "tiny" else 2,
            norm_num_groups=groups,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **names),
        unet=UNet2DConditionModel(
            sample_size=side,
            block_out_channels=blocks,
            down_block_types=("CrossAttnDownBlock2D",) * (count - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (count - 1),
            layers_per_block=1 if shape == "tiny" else 2,
            cross_attention_dim=width,
            norm_num_groups=groups,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline.to(device)


class PlainLoop:
    """The plain loop: one prompt, a hook on the embeddings, a table that is normalised at every step."""

    def __init__(self, model: DiffusionModel, init_ids: torch.Tensor) -> None:
        self.model, self.pipeline, self.weight = model, model.pipeline, model.table().weight
        self.allowed, self.latents = model.table().allowed, model.latents
        self.prompt = self.weight[init_ids].clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.prompt], lr=0.1, weight_decay=0.1)
        self.ids: list[torch.Tensor] = []
        self.losses: list[float] = []

    def step(self, seed: int, number: int) -> None:
        samples = self.model.drawn(f"{seed}, {number}", NOISES)  # the same noises as pez_fast
        cosine = F.normalize(self.prompt.detach(), dim=-1) @ F.normalize(self.weight, dim=-1).T
        ids = cosine.masked_fill(~self.allowed, -torch.inf).argmax(-1)
        hard = self.weight[ids].detach().requires_grad_()
        encoder = self.pipeline.text_encoder
        text = torch.full((1, CONTEXT), TOKENS - 1, device=hard.device)
        text[0, 0], text[0, 1 : LENGTH + 1] = TOKENS - 2, ids

        def feed(module: object, args: tuple, output: torch.Tensor) -> torch.Tensor:
            return torch.cat([output[:, :1], hard[None], output[:, LENGTH + 1 :]], 1)

        handle = encoder.get_input_embeddings().register_forward_hook(feed)
        hidden = encoder(text)[0]
        handle.remove()
        kept = self.pipeline.scheduler.alphas_cumprod.to(hard.device)[samples.timesteps][:, None, None, None]
        noisy = kept.sqrt() * self.latents + (1 - kept).sqrt() * samples.noise
        told = self.pipeline.unet(noisy, samples.timesteps, hidden.expand(NOISES, -1, -1)).sample
        loss = F.mse_loss(told, samples.noise)
        (self.prompt.grad,) = torch.autograd.grad(loss, hard)
        self.optimizer.step()
        self.ids.append(ids)
        self.losses.append(float(loss.detach()))


class Recorded(NoiseLoss):
    """A `NoiseLoss` that records the ids and losses that it sees."""

    def __init__(self, rows: int = 1, seen: list | None = None) -> None:
        super().__init__(rows)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = [] if seen is None else seen

    def __call__(self, outputs, ids):
        loss, score = super().__call__(outputs, ids)
        if loss.requires_grad:
            self.seen.append((ids, loss.detach()))
        return loss, score

    def select(self, rows):
        return Recorded(len(rows), self.seen)


def run(bound: BoundDiffusion, table: TokenTable, init_ids: torch.Tensor, steps: int, objective=None) -> None:
    """Runs what a task runs, except the final scoring of the texts."""
    rows = len(init_ids)
    requests = [Request(tuple(range(rows)), init_ids, objective or NoiseLoss(rows))]
    stages, limit = [Stage(PEZMethod(), steps, top_k=4)], BatchLimit(rows, rows)
    next(iter(Scheduler(table, bound, lambda room: requests.pop() if requests else None, stages, limit).run()))


def check_parity(model: DiffusionModel, init_ids: torch.Tensor, steps: int = 5) -> None:
    """Checks that pez_fast finds the ids and the losses of the plain loop."""
    plain, objective = PlainLoop(model, init_ids[0]), Recorded()
    run(model.bind(LENGTH), model.table(), init_ids[:1], steps, objective)
    for k in range(steps):
        plain.step(0, k)
        ids, loss = objective.seen[k]
        assert torch.equal(ids[0], plain.ids[k]), f"other ids at step {k}"
        assert abs(float(loss[0]) - plain.losses[k]) < 1e-4, f"another loss at step {k}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=6, help="of a search of pez_fast")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="dtypes of pez_fast")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    image = Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    task = NoiseTask([image], minibatch=NOISES, held_out=NOISES, held_out_every=10**6)
    model = DiffusionModel(build(args.shape, args.device), task)
    generator = torch.Generator().manual_seed(1)
    init_ids = torch.randint(TOKENS - 2, (max(args.prompts), LENGTH), generator=generator).to(args.device)
    check_parity(model, init_ids)
    print(f"{args.shape}, random weights, {args.device}, {torch.get_num_threads()} threads; parity holds")
    times = measure(args, model, init_ids)
    rows = compared(times, ("plain loop", 1, "float32"), model=args.shape, noises=NOISES)
    if args.out:
        write(args.out, rows)


def measure(args: argparse.Namespace, model: DiffusionModel, init_ids: torch.Tensor) -> dict:
    """Returns the times of the plain loop and of pez_fast, taken in turn so that all see the same machine."""
    loop, steps, table = PlainLoop(model, init_ids[0]), iter(range(10**6)), model.table()

    def plain() -> None:
        for _ in range(PLAIN_STEPS):
            loop.step(0, next(steps))

    works: dict = {("plain loop", 1, "float32"): (plain, PLAIN_STEPS)}
    for dtype, count in itertools.product(args.dtypes, args.prompts):
        bound = model.bind(LENGTH, dtype=getattr(torch, dtype))
        work = partial(run, bound, table, init_ids[:count], args.steps)
        works["pez_fast", count, dtype] = work, args.steps * count
    return times_in_turn(works, args.repeats)


if __name__ == "__main__":
    main()
