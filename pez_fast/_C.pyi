"""The C++ extension; see csrc/module.cpp."""

Matrix = tuple[int, int, int, int, int, int]
Threads = tuple[int, int]

TOKENS: int

def build_info() -> dict[str, str]: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use(name: str) -> None: ...
def pack(weight: Matrix, table: tuple[int, ...], threads: Threads) -> None: ...
def nearest(
    x: Matrix, weight: Matrix, table: tuple[int, ...], threads: Threads, found: int, cosine: int
) -> tuple[list[int], list[int], list[int], tuple[int, int, int]]: ...
def bounds(x: Matrix, weight: Matrix, table: tuple[int, ...], upper: int, lower: int) -> None: ...
def simulate_cuda(
    x: Matrix,
    weight: Matrix,
    ids: int,
    count: int,
    norm: int,
    unit: int,
    width: int,
    bounds: tuple[float, float, float],
    rule: tuple[int, int],
    out: tuple[int, int, int],
    threads: Threads,
) -> None: ...
def add_as_tensor_cores(query: int, tokens: int, width: int, rule: tuple[int, int], score: int) -> None: ...
def halves(source: int, target: int, count: int) -> None: ...
def splice(
    base: int,
    row_stride: int,
    position_stride: int,
    hard: int,
    slots: int,
    owner: int,
    shape: tuple[int, ...],
    item: int,
    out: int,
    threads: Threads,
) -> None: ...
def splice_backward(
    grad: int,
    type: int,
    row_stride: int,
    position_stride: int,
    slots: int,
    owner: int,
    shape: tuple[int, ...],
    total: int,
    threads: Threads,
) -> None: ...
