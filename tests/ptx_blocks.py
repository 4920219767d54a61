"""Handwritten kernels of blocks with shared memory: `s` of 1024 bytes, and a result of each thread in %r1."""

from __future__ import annotations

import numpy as np
from ptx_text import Fresh, Shape, always, fails, kernel

STORE = "    st.global.u32 [%mine], %r1;\n"
SHARED = ".shared .align 128 .b8 s[1024];"
OWN = "    shl.b32 %r20, %tid, 2;\n    mov.u32 %r21, s;\n    add.u32 %r20, %r20, %r21;\n"
TWO = Shape(block=64)


def out(shape: Shape) -> Fresh:
    return Fresh((shape.grid * int(np.prod(shape.block)),))


def shown(text: str, expected, shape: Shape = TWO, **more) -> None:
    always(kernel(text + STORE, shared=SHARED, out="u64", **more), [out(shape)], expected, shape)


def faulty(kind, text: str, shape: Shape = TWO, says: str = "", **more) -> None:
    fails(kind, kernel(text, shared=SHARED, out="u64", **more), [out(shape)], shape, says)
