"""The CUDA extension; see csrc/cuda/module.cpp."""

Matrix = tuple[int, int, int, int, int, int]
Table = tuple[int, int, int, int, int, int, int, float]
Buffers = tuple[int, int, int]
Answer = tuple[int, int, int]
SpliceArgs = tuple[int, int, tuple[int, ...], int, int, int, int, tuple[int, int, int, int, int]]

TILE: int
GROUPS: int
WIDTH: int

def build_info() -> dict[str, str]: ...
def plans(limit: int, width: int) -> list[tuple[str, int]]: ...
def padded_rows(n: int) -> int: ...
def nearest(
    device: int, x: Matrix, weight: Matrix, table: Table, buffers: Buffers, answer: Answer, stream: int
) -> None: ...
def splice(device: int, args: SpliceArgs, out: int, stream: int) -> None: ...
def splice_backward(device: int, args: SpliceArgs, total: int, stream: int) -> None: ...
