"""Splice: a bit-exact copy of the prompts forward, the sum over the rows that carry a prompt backward."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from inputs import DTYPES, each_impl, integers, normal, poisoned, refused, seeded
from tolerances import assert_as_good_as_torch
from torch import Tensor

from pez_fast import ops, reference, splice

SHAPES = {  # B, S, d, R, L
    "round": (8, 32, 64, 8, 16),
    "ragged": (7, 31, 60, 5, 13),
    "raggeder": (7, 31, 59, 5, 13),
    "broadcast": (9, 20, 12, 1, 4),
    "one of everything": (1, 1, 1, 1, 1),
    "every position": (3, 6, 5, 3, 6),
    "no slots": (3, 6, 5, 3, 0),
    "no rows": (0, 6, 5, 2, 3),
    "no rows, no prompts": (0, 6, 5, 0, 3),
    "no positions": (2, 0, 5, 2, 0),
    "many rows": (300, 5, 7, 3, 2),
}
OWNERS = ("default", "random", "reversed", "all one")


def arguments(
    shape: str, owner: str = "default", dtypes=(torch.float32, torch.float32)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, s, d, r, n = SHAPES[shape]
    g = seeded(shape)
    template, hard = normal(g, b, s, d).to(dtypes[0]), normal(g, r, n, d).to(dtypes[1])
    slots = torch.randperm(s, generator=g)[:n]
    owners = {
        "default": torch.arange(b) if b == r else torch.zeros(b, dtype=torch.int64),
        "random": integers(g, 0, max(r - 1, 0), b),
        "reversed": torch.arange(b).flip(0) % max(r, 1),
        "all one": torch.full((b,), max(r - 1, 0)),
    }
    return template, hard, slots, owners[owner]


@each_impl
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(shape, owner, impl, device):
    template, hard, slots, owners = arguments(shape, owner)
    want = reference.splice(template, hard, slots, owners)
    hard = hard.to(device).requires_grad_()
    on_device = template.to(device), hard, slots.to(device)
    defaulted = owner == "default" and len(hard) in (1, len(template))
    with poisoned():  # an element that no kernel wrote would be NaN
        out = splice(*on_device, None if defaulted else owners.to(device), impl)
        assert torch.equal(out.cpu(), want)
        out.backward(torch.ones_like(out))  # sums of ones are exact
    assert out.dtype == template.dtype
    assert torch.equal(
        hard.grad.cpu().double(), reference.splice_backward(torch.ones_like(want), slots, owners, len(hard))
    )


@each_impl
@pytest.mark.parametrize("hard_dtype", DTYPES)
@pytest.mark.parametrize("template_dtype", DTYPES)
def test_dtypes(template_dtype, hard_dtype, impl, device):
    """Forward in the template's dtype; backward as good as torch's sum in float32 or, for float64, in float64."""
    template, hard, slots, owner = arguments("many rows", "random", (template_dtype, hard_dtype))
    grad = normal(seeded("grad"), *template.shape).to(template_dtype)
    want = reference.splice(template, hard, slots, owner)
    exact = reference.splice_backward(grad, slots, owner, len(hard))
    wide = torch.promote_types(template_dtype, torch.float32)
    own = hard.to(wide).requires_grad_()
    lines = template.to(wide)
    lines[:, slots] = own[owner]
    lines.backward(grad.to(wide))
    leaf = hard.to(device).requires_grad_()
    out = splice(template.to(device), leaf, slots.to(device), owner.to(device), impl)
    out.backward(grad.to(device))
    assert out.dtype == template_dtype and torch.equal(out.cpu(), want)
    assert leaf.grad.dtype == hard_dtype
    assert_as_good_as_torch(leaf.grad.cpu(), own.grad, exact)


@each_impl
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_accumulates_wide(dtype, impl, device):
    """600 gradients of 1 + 1/128 onto one prompt: in 16 bits their sum stops growing long before the end."""
    b = 600
    grad = torch.full((b, 2, 3), 1 + 1 / 128, dtype=dtype)
    exact = reference.splice_backward(grad, torch.tensor([1]), torch.zeros(b, dtype=torch.int64), 1)
    hard = torch.zeros(1, 1, 3, device=device, requires_grad=True)
    out = splice(torch.zeros(b, 2, 3, dtype=dtype, device=device), hard, torch.tensor([1], device=device), None, impl)
    out.backward(grad.to(device))
    assert torch.equal(hard.grad.cpu().double(), exact)


@each_impl
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("shape", ["raggeder", "broadcast", "every position", "no slots"])
def test_gradcheck(shape, owner, impl, device):
    b, s, d, r, n = (min(v, 4) for v in SHAPES[shape])
    _, _, slots, owners = arguments(shape, owner)
    slots, owners = slots[slots < s].to(device), owners[:b].to(device) % r
    template = normal(seeded("template"), b, s, d, dtype=torch.float64).to(device)
    hard = normal(seeded("hard"), r, len(slots), d, dtype=torch.float64).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: splice(template, h, slots, owners, impl), (hard,))


@each_impl
def test_template_gets_no_gradient_and_no_change(impl, device):
    template, hard, slots, owner = (t.to(device) for t in arguments("raggeder", "random"))
    before = template.clone()
    template.requires_grad_(), hard.requires_grad_()
    out = splice(template, hard, slots, owner, impl)
    out.sum().backward()
    assert template.grad is None and hard.grad is not None
    with torch.no_grad():
        out.zero_()
    assert torch.equal(template, before), "the result must not share memory with the template"
    assert not splice(template, hard.detach(), slots, owner, impl).requires_grad


@each_impl
def test_unused_prompts_get_zeros(impl, device):
    template, hard, slots, _ = (t.to(device) for t in arguments("ragged"))
    hard.requires_grad_()
    owner = torch.tensor([3, 3, 0, 3, 0, 0, 3], device=device)
    with poisoned():
        splice(template, hard, slots, owner, impl).sum().backward()
    assert hard.grad[:, 0, 0].tolist() == [3, 0, 0, 4, 0]


GRADIENTS = {
    "expanded": lambda g: g[:1, :1, :1].expand(g.shape),
    "transposed": lambda g: g.transpose(0, 1).contiguous().transpose(0, 1),
    "every second element": lambda g: g.repeat_interleave(2, 2)[..., ::2],
}


@each_impl
@pytest.mark.parametrize("layout", GRADIENTS)
def test_gradient_layouts(layout, impl, device):
    template, hard, slots, owner = arguments("raggeder", "random", (torch.float64, torch.float64))
    grad = GRADIENTS[layout](normal(seeded("grad"), *template.shape, dtype=torch.float64))
    assert not grad.is_contiguous()
    exact = reference.splice_backward(grad, slots, owner, len(hard))
    leaf = hard.to(device).requires_grad_()
    splice(template.to(device), leaf, slots.to(device), owner.to(device), impl).backward(
        GRADIENTS[layout](grad.to(device))
    )
    torch.testing.assert_close(leaf.grad.cpu(), exact)


@each_impl
@pytest.mark.parametrize("of", ["template", "hard", "slots", "owner"])
def test_argument_layouts(of, impl, device):
    names = ("template", "hard", "slots", "owner")
    values = dict(zip(names, arguments("raggeder", "random"), strict=True))
    want = reference.splice(**values)
    values = {name: value.to(device) for name, value in values.items()}
    values[of] = values[of].repeat_interleave(2, -1)[..., ::2]
    assert not values[of].is_contiguous()
    assert torch.equal(splice(**values, impl=impl).cpu(), want)
    if of == "template":
        values[of] = values[of][:1].expand(7, -1, -1)  # the usual case: one template for all rows
        want = reference.splice(**{name: value.cpu() for name, value in values.items()})
        assert torch.equal(splice(**values, impl=impl).cpu(), want)


@each_impl
def test_same_bits_every_time(impl, device):
    template, hard, slots, owner = (t.to(device) for t in arguments("many rows", "random"))
    grad = normal(seeded("grad"), *template.shape).to(device)
    gradients = [ops.splice_backward(grad, slots, owner, len(hard), impl) for _ in range(3)]
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


@each_impl
@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float16)]
)
@pytest.mark.parametrize("shape", ["raggeder", "broadcast", "no rows"])
def test_operator(shape, dtypes, impl, device):
    template, hard, slots, owner = (t.to(device) for t in arguments(shape, "random", dtypes))
    torch.library.opcheck(ops.splice, (template, hard.requires_grad_(), slots, owner, impl))
    torch.library.opcheck(ops.splice_backward, (template, slots, owner, len(hard), impl))


@each_impl
def test_operator_on_strided_arguments(impl, device):
    template, hard, slots, owner = (t.to(device) for t in arguments("raggeder", "random"))
    template = template.transpose(0, 1).contiguous().transpose(0, 1)
    torch.library.opcheck(ops.splice, (template, hard.requires_grad_(), slots, owner, impl))
    torch.library.opcheck(ops.splice, (template[:1].expand(7, -1, -1), hard, slots, owner, impl))
    torch.library.opcheck(ops.splice_backward, (template, slots, owner, len(hard), impl))


def test_implementations_take_what_the_operator_gives():
    """The test parses every file of that name and does not import it: not every one can be built everywhere."""
    root = Path(__file__).parents[1]
    files = [*(root / "pez_fast").glob("_*/splice.py"), root / "kernels" / "triton" / "splice.py"]
    taken = {
        path: {f.name: ast.unparse(f.args) for f in ast.parse(path.read_text()).body if isinstance(f, ast.FunctionDef)}
        for path in files
    }
    assert len(taken) == len(ops.IMPLEMENTATIONS)
    for path, functions in taken.items():
        assert functions["splice"] == "template: Tensor, hard: Tensor, slots: Tensor, owner: Tensor", path
        assert functions["splice_backward"] == "grad: Tensor, slots: Tensor, owner: Tensor, prompts: int", path


@pytest.mark.parametrize("prompts_given", [True, False])
def test_the_extension_takes_what_its_python_gives(prompts_given):
    """No rows, so that a GPU launches nothing; without a GPU only the device is missing."""
    extension = pytest.importorskip("pez_fast._C_cuda")
    from pez_fast._cuda.splice import _splice_args

    template, hard, slots, owner = arguments("no rows")
    spliced = _splice_args(template, hard if prompts_given else None, slots, owner, 0)
    try:
        extension.splice(0, spliced, 0, 0)
    except RuntimeError as error:  # a tuple that does not fit would raise a TypeError
        assert not torch.cuda.is_available() and str(error).startswith("splice: "), error


GOOD = {
    "template": torch.zeros(4, 6, 3),
    "hard": torch.zeros(2, 2, 3),
    "slots": torch.tensor([1, 2]),
    "owner": torch.tensor([0, 1, 0, 1]),
}
BAD = {
    "template: no tensor": ({"template": [[[0.0]]]}, TypeError, "template must be a floating-point tensor; got list"),
    "template: ids": (
        {"template": torch.zeros(4, 6, 3).long()},
        TypeError,
        "template must be .*; got torch.int64 tensor",
    ),
    "template: two dimensions": (
        {"template": torch.zeros(4, 3)},
        ValueError,
        r"template must have three .*; got \(4, 3\)",
    ),
    "template: device": (
        {"template": torch.zeros(4, 6, 3, device="meta")},
        ValueError,
        "template must be on cpu .*; got meta",
    ),
    "hard: no tensor": ({"hard": None}, TypeError, "hard must be a floating-point tensor; got NoneType"),
    "hard: ids": ({"hard": torch.zeros(2, 2, 3).long()}, TypeError, "hard must be .*; got torch.int64 tensor"),
    "hard: two dimensions": ({"hard": torch.zeros(2, 3)}, ValueError, r"hard must have three dimensions; got \(2, 3\)"),
    "hard: width": (
        {"hard": torch.zeros(2, 2, 4)},
        ValueError,
        r"hard must be \(R, L, 3\) to match template; got \(2, 2, 4\)",
    ),
    "slots: list": ({"slots": [1, 2]}, TypeError, "slots must be an int64 tensor; got list"),
    "slots: dtype": (
        {"slots": torch.tensor([1, 2]).int()},
        TypeError,
        "slots must be an int64 tensor; got torch.int32 tensor",
    ),
    "slots: too many": ({"slots": torch.tensor([1, 2, 3])}, ValueError, r"slots must be \(2,\); got \(3,\)"),
    "slots: outside": ({"slots": torch.tensor([1, 6])}, ValueError, "slots must lie from 0 to 5; got 6"),
    "slots: negative": ({"slots": torch.tensor([-1, 2])}, ValueError, "slots must lie from 0 to 5; got -1"),
    "slots: twice": ({"slots": torch.tensor([2, 2])}, ValueError, r"slots must be all different; got \[2, 2\]"),
    "slots: device": (
        {"slots": torch.tensor([1, 2], device="meta")},
        ValueError,
        "slots must be on cpu as hard is; got meta",
    ),
    "owner: list": ({"owner": [0, 1, 0, 1]}, TypeError, "owner must be an int64 tensor; got list"),
    "owner: dtype": ({"owner": torch.zeros(4)}, TypeError, "owner must be an int64 tensor; got torch.float32 tensor"),
    "owner: too few": ({"owner": torch.tensor([0, 1])}, ValueError, r"owner must be \(4,\); got \(2,\)"),
    "owner: outside": ({"owner": torch.tensor([0, 1, 2, 0])}, ValueError, "owner must lie from 0 to 1; got 2"),
    "owner: negative": ({"owner": torch.tensor([0, 1, -1, 0])}, ValueError, "owner must lie from 0 to 1; got -1"),
    "owner: missing": (
        {"owner": None},
        ValueError,
        "owner must say which of the 2 prompts each of the 4 rows .*; got None",
    ),
    "impl": ({"impl": "numpy"}, ValueError, "impl must be one of auto, torch, .*; got 'numpy'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad):
    changed, kind, match = BAD[bad]
    splice(**GOOD)
    with refused(kind, match):
        splice(**{**GOOD, **changed})
