"""PEZ: AdamW on the soft prompts with the gradient at their nearest tokens."""

from __future__ import annotations

import io

import pytest
import torch
from inputs import each_impl, normal, refused, seeded
from tolerances import ADAMW64, assert_as_good_as_torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from pez_fast import PEZ, TokenTable, reference

STEPS = 30
KINDS = {"default": {}, "unfused": {"fused": False}, "foreach": {"foreach": True}}


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Returns prompts, a table, and a point that draws the tokens."""
    g = seeded("problem")
    return normal(g, 3, 4, 8).to(dtype), normal(g, 200, 8).to(dtype), normal(g, 3, 4, 8).to(dtype)


def step(opt: PEZ, target: Tensor) -> Tensor:
    hard, ids = opt.project()
    (hard - target).square().sum().backward()
    opt.step()
    opt.zero_grad()
    return ids


@each_impl
@pytest.mark.parametrize(
    ("kind", "lr", "weight_decay"),
    [*((kind, 0.1, 0.1) for kind in KINDS), ("default", 0.03, 0.0), ("default", 0.5, 0.4)],
)
def test_as_the_reference(kind, lr, weight_decay, impl, device):
    """Every step has the reference's tokens, and the prompts differ only by rounding."""
    prompts, weight, target = problem()
    expected, state = prompts.clone(), {}
    opt = PEZ(
        prompts.to(device), TokenTable(weight.to(device)), lr=lr, weight_decay=weight_decay, impl=impl, **KINDS[kind]
    )
    seen = set()
    for _ in range(STEPS):
        hard, expected_ids = reference.project(expected, weight)
        ids = step(opt, target.to(device))
        assert torch.equal(ids.cpu(), expected_ids)
        expected = reference.adamw_step(expected, 2 * (hard - target), state, lr, weight_decay)
        torch.testing.assert_close(opt.prompts.detach().cpu(), expected, rtol=ADAMW64, atol=ADAMW64)
        seen.add(tuple(ids.flatten().tolist()))
    assert len(seen) > 3, "prompts that stay where they were test nothing"


@each_impl
def test_defaults_and_betas(impl, device):
    """The defaults are the paper's lr and weight decay; betas and eps are passed on."""
    prompts, weight, target = problem()
    table = TokenTable(weight.to(device))
    group = PEZ(prompts.to(device, copy=True), table, impl=impl).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (0.1, 0.1, (0.9, 0.999), 1e-8)
    opt = PEZ(prompts.to(device, copy=True), table, betas=(0.5, 0.7), eps=1e-2, impl=impl)
    expected, state = prompts.clone(), {}
    for _ in range(10):
        hard, _ = reference.project(expected, weight)
        step(opt, target.to(device))
        expected = reference.adamw_step(expected, 2 * (hard - target), state, 0.1, 0.1, betas=(0.5, 0.7), eps=1e-2)
    torch.testing.assert_close(opt.prompts.detach().cpu(), expected, rtol=ADAMW64, atol=ADAMW64)


@each_impl
def test_float32_as_good_as_torch(impl, device):
    """The gradients are given, so no token changes sides and only the update is rounded."""
    prompts, weight, _ = problem(torch.float32)
    gradients = normal(seeded("gradients"), STEPS, *prompts.shape)
    torch_prompts = prompts.clone().requires_grad_()
    torch_adamw = torch.optim.AdamW([torch_prompts], lr=0.1, weight_decay=0.1, foreach=False, fused=False)
    opt = PEZ(prompts.to(device, copy=True), TokenTable(weight.to(device)), impl=impl)
    expected, state = prompts.double(), {}
    for gradient in gradients:
        torch_prompts.grad = gradient
        torch_adamw.step()
        hard, _ = opt.project()
        hard.backward(gradient.to(device))
        opt.step()
        opt.zero_grad()
        expected = reference.adamw_step(expected, gradient.double(), state, 0.1, 0.1)
    assert_as_good_as_torch(opt.prompts.detach().cpu(), torch_prompts.detach(), expected)


def test_the_prompts_are_the_callers_tensor():
    prompts, weight, target = problem()
    before = prompts.clone()
    opt = PEZ(prompts, TokenTable(weight))
    assert opt.prompts is prompts and prompts.requires_grad
    step(opt, target)
    assert not torch.equal(prompts, before) and prompts.grad is None


@pytest.mark.parametrize("table_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_table(table_dtype):
    """The prompts stay wide, so a step smaller than the table's precision is not lost."""
    prompts, weight, target = problem(torch.float32)
    opt = PEZ(prompts, TokenTable(weight.to(table_dtype)), lr=1e-5, weight_decay=0)
    before = prompts.detach().clone()
    hard, _ = opt.project()
    assert hard.dtype == table_dtype
    (hard.float() - target).square().sum().backward()
    opt.step()
    assert prompts.dtype == torch.float32
    torch.testing.assert_close((prompts - before).abs(), torch.full_like(before, 1e-5), rtol=0, atol=2e-7)


SCHEDULES = {
    "cosine": lambda opt: CosineAnnealingLR(opt, T_max=STEPS),
    "one cycle": lambda opt: OneCycleLR(opt, max_lr=0.3, total_steps=STEPS + 1),
    "lambda": lambda opt: LambdaLR(opt, lambda t: 0.9**t),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule):
    """Every step uses the rate (and, of one cycle, the beta) that the schedule has just set."""
    prompts, weight, target = problem()
    opt = PEZ(prompts.clone(), TokenTable(weight))
    schedule_ = SCHEDULES[schedule](opt)
    expected, state, rates = prompts.clone(), {}, []
    for t in range(STEPS):
        group = opt.param_groups[0]
        rates.append(group["lr"])
        hard, _ = reference.project(expected, weight)
        expected = reference.adamw_step(
            expected, 2 * (hard - target), state, group["lr"], group["weight_decay"], group["betas"]
        )
        step(opt, target)
        schedule_.step()
        if schedule == "lambda":
            assert rates[t] == pytest.approx(0.1 * 0.9**t)
    assert len(set(rates)) == STEPS and max(rates) > 3 * min(rates)
    torch.testing.assert_close(opt.prompts.detach(), expected, rtol=ADAMW64, atol=ADAMW64)


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_as_if_never_stopped(kind):
    prompts, weight, target = problem(torch.float32)
    table = TokenTable(weight)

    def fresh(start: Tensor) -> tuple[PEZ, LambdaLR]:
        opt = PEZ(start, table, **KINDS[kind])
        return opt, LambdaLR(opt, lambda t: 0.97**t)

    def run(opt: PEZ, schedule: LambdaLR, steps: int) -> list[Tensor]:
        ids = []
        for _ in range(steps):
            ids.append(step(opt, target))
            schedule.step()
        return ids

    opt, schedule = fresh(prompts.clone())
    run(opt, schedule, 20)
    file = io.BytesIO()
    torch.save({"opt": opt.state_dict(), "schedule": schedule.state_dict(), "prompts": opt.prompts.detach()}, file)
    ids = run(opt, schedule, 20)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, schedule_again = fresh(saved["prompts"])
    again.load_state_dict(saved["opt"])
    schedule_again.load_state_dict(saved["schedule"])
    assert torch.equal(torch.stack(run(again, schedule_again, 20)), torch.stack(ids))
    assert torch.equal(again.prompts, opt.prompts)


@each_impl
def test_banned_tokens_are_never_projected_to(impl, device):
    prompts, weight, target = problem()
    opt = PEZ(prompts.to(device), TokenTable(weight.to(device), range(0, 200, 2)), impl=impl)
    found = torch.stack([step(opt, target.to(device)) for _ in range(STEPS)])
    assert (found % 2 == 1).all() and len(found.unique()) > 12


TABLE = TokenTable(torch.eye(3))
BAD = {
    "list": ({"prompts": [[[0.0]]]}, TypeError, "prompts must be a float32 or float64 tensor; got list"),
    "ids": ({"prompts": torch.zeros(1, 2, 3).long()}, TypeError, "prompts must be .*; got torch.int64"),
    "float16": ({"prompts": torch.zeros(1, 2, 3).half()}, TypeError, "prompts must be .*; got torch.float16"),
    "two dimensions": ({"prompts": torch.zeros(2, 3)}, ValueError, r"prompts must be \(R, L, 3\) .*; got \(2, 3\)"),
    "width": ({"prompts": torch.zeros(1, 2, 4)}, ValueError, r"prompts must be \(R, L, 3\) .*; got \(1, 2, 4\)"),
    "no leaf": (
        {"prompts": torch.zeros(1, 2, 3, requires_grad=True) * 2},
        ValueError,
        "prompts must be a leaf .* grad_fn",
    ),
    "device": (
        {"prompts": torch.zeros(1, 2, 3, device="meta")},
        ValueError,
        "prompts must be on cpu as the table is; got meta",
    ),
    "table: weight": ({"table": torch.eye(3)}, TypeError, "table must be a TokenTable; got torch.float32 tensor"),
    "table: None": ({"table": None}, TypeError, "table must be a TokenTable; got NoneType"),
    "lr": ({"lr": -0.1}, ValueError, "(?i)learning rate: -0.1"),
    "weight_decay": ({"weight_decay": -0.1}, ValueError, "(?i)weight_decay.*: -0.1"),
    "impl": ({"impl": "numpy"}, ValueError, "impl must be one of auto, torch, .*; got 'numpy'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad):
    changed, kind, match = BAD[bad]
    with refused(kind, match):
        PEZ(**{"prompts": torch.ones(1, 2, 3), "table": TABLE, **changed}).project()


def test_a_diverged_prompt_is_named():
    opt = PEZ(torch.ones(2, 2, 3), TABLE)
    hard, _ = opt.project()
    hard.backward(torch.ones(2, 2, 3).index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(torch.inf)))
    opt.step()
    with refused(ValueError, "must be finite; row 2 is not"):
        opt.project()
