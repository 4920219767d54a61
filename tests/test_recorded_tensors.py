"""The memory behind a launch: which storages there are, how large they are, and which torch has not written."""

from __future__ import annotations

import torch
from recorded_tensors import Tensors


def entry(tensors: Tensors, tensor: torch.Tensor) -> tuple[int, bool]:
    nbytes, fresh, storage = tensors.allocations[tensor.untyped_storage().data_ptr()]
    assert storage.data_ptr() == tensor.untyped_storage().data_ptr()
    return nbytes, fresh


def test_only_what_is_made_empty_is_fresh():
    with Tensors() as tensors:
        like = torch.zeros(3, 5)
        made = [torch.empty(7, dtype=torch.float64), torch.empty_like(like), like.new_empty(15), like.new_empty(3, 5)]
        made += [torch.empty_strided((3, 5), (7, 1)), torch.empty_permuted((3, 5), (1, 0))]
        written = [torch.ones(4), torch.arange(9), like + 1, like.t().contiguous(), torch.tensor([1.0, 2.0])]
    assert [entry(tensors, one)[1] for one in made] == [True] * len(made)
    assert [entry(tensors, one)[1] for one in [like, *written]] == [False] * (1 + len(written))
    assert [entry(tensors, one)[0] for one in made] == [56, 60, 60, 60, 76, 60]
    assert entry(tensors, written[1])[0] == 72


def test_writing_ends_it_and_a_view_does_not():
    with Tensors() as tensors:
        made = [torch.empty(6) for _ in range(7)]
        made[0].zero_()
        made[1][2:4] = 1
        made[2].view(2, 3)[1].copy_(torch.ones(3))
        torch.add(torch.ones(6), 1, out=made[3])
        torch._foreach_add_([made[4]], 1)
        made[5].view(2, 3).t()[0].detach()
        made[6].data_ptr()
    assert [entry(tensors, one)[1] for one in made] == [False] * 5 + [True] * 2


def test_a_written_storage_stays_written():
    with Tensors() as tensors:
        one = torch.empty(4).zero_()
        one.view(2, 2)
        torch.empty(4)
    assert not entry(tensors, one)[1]


def test_a_view_of_what_was_made_before_is_not_fresh():
    before = torch.empty(8)
    with Tensors() as tensors:
        part = before[2:]
    assert entry(tensors, part) == (32, False)


def test_held_and_kept():
    before = torch.empty(10, dtype=torch.int16)[3:]
    with Tensors() as tensors:
        tensors.hold(before, torch.empty(0))
        for _ in range(50):
            torch.empty(1000)
    assert entry(tensors, before) == (20, False)
    assert sum(one.fresh for one in tensors.allocations.values()) == 50  # no address was used twice
