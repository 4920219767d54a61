"""The CUDA extension; see csrc/cuda/module.cpp."""

Matrix = tuple[int, int, int, int, int, int]
Prepared = tuple[int, int, int, int]
Answer = tuple[int, int, int]

TILE: int

def build_info() -> dict[str, str]: ...
def few_rows(width: int, device: int) -> int: ...
def nearest_few(
    device: int, x: Matrix, weight: Matrix, ids: int, count: int, prepared: Prepared, keys: int, ready: int, answer: Answer, stream: int
) -> None: ...
def nearest_many(
    device: int, x: Matrix, weight: Matrix, ids: int, count: int, prepared: Prepared, query: int, error: int, keys: int,
    answer: Answer, stream: int,
) -> None: ...  # fmt: skip
def splice(device: int, spliced: tuple, out: int, stream: int) -> None: ...
def splice_backward(device: int, spliced: tuple, total: int, stream: int) -> None: ...
