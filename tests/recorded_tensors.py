"""Notes every storage that torch makes, so that the memory behind a launch's addresses is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNWRITTEN = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}


class Allocation(NamedTuple):
    nbytes: int
    fresh: bool  # torch made it empty and has not written it since
    storage: torch.UntypedStorage  # kept, so that the address stays in use


class Tensors(TorchDispatchMode):
    """While it is active, `allocations` gets an entry for every storage that an operation returns.

    A storage is fresh if it comes from torch.empty or its relatives and no operation of torch has written it since. An
    operation writes the arguments that its schema marks as written, and makes new results; views change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.allocations: dict[int, Allocation] = {}

    def hold(self, *tensors: Tensor) -> None:
        """Adds tensors that were made before; their contents count as written."""
        for tensor in tensors:
            self._note(tensor, fresh=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in _written(func, args, kwargs):
            self._note(tensor, fresh=False)
        fresh = func.overloadpacket.__name__ in UNWRITTEN
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.allocations:
                self._note(tensor, fresh)
        return result

    def _note(self, tensor: Tensor, fresh: bool) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self.allocations[storage.data_ptr()] = Allocation(storage.nbytes(), fresh, storage)


def _written(func: Any, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    """Yields the tensors among the arguments that the operation writes."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[place] if place < len(args) else kwargs.get(argument.name)
        yield from (one for one in tree_leaves(given) if isinstance(one, Tensor))
