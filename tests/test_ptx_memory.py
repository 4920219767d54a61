"""Memory of the PTX machine: bounds, alignment, state spaces, widths; atomics."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import MemoryFault, PoisonError, RaceError
from ptx_text import HERE, Fresh, Shape, address, always, execute, fails, kernel

OUT = Fresh((32,))
LANES = np.arange(32, dtype=np.uint32)
STORE = "    st.global.u32 [%mine], %r1;\n"


@pytest.mark.parametrize(
    ("access", "good", "bad"),
    [
        ("ld.global.u8 %r1, [%out+{}];", (0, 127), (-1, 128)),
        ("ld.global.u32 %r1, [%out+{}];", (0, 124), (-4, 128, 126, 2)),
        ("ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%out+{}];", (0, 112), (-16, 116, 8, 120, 128)),
        ("ld.global.v2.u64 {{%d1, %d2}}, [%out+{}];", (16,), (8, 120)),
        ("st.global.u8 [%out+{}], 5;", (0, 127), (-1, 128)),
        ("st.global.v2.u16 [%out+{}], {{%h1, %h1}};", (0, 124), (-4, 126, 2)),
        ("st.global.u64 [%out+{}], 5;", (0, 120), (-8, 124, 128, 4)),
        ("atom.global.add.u32 %r1, [%out+{}], 1;", (0, 124), (-4, 128, 2)),
        ("ld.u32 %r1, [%out+{}];", (0,), (128, -4)),
        ("ld.shared.u8 %r1, [s+{}];", (), (-1, 64)),
        ("st.shared.u8 [s+{}], 3;", (0, 63), (-1, 64)),
        ("st.shared.v2.u32 [s+{}], {{%tid, %tid}};", (), (-8, 60, 64, 4)),
        ("ld.shared::cluster.u32 %r1, [s+{}];", (), (-4, 64)),
        ("atom.shared.exch.b32 %r1, [s+{}], 5;", (), (-4, 64, 1)),
    ],
)
def test_both_ends_and_alignment(access: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    one = "    setp.ne.u32 %p1, %tid, 0;\n    @%p1 ret;\n    mov.u16 %h1, 5;\n"
    for at in (*good, *bad):
        text = kernel(one + access.format(at) + f" {HERE}", shared=".shared .align 16 .b8 s[64];", out="u64")
        if at in good:
            execute(text, [np.zeros(32, np.uint32)])
        else:
            fails(MemoryFault, text, [np.zeros(32, np.uint32)], schedules=[(0, "even")])


def test_between_two_allocations() -> None:
    text = kernel(f"ld.global.u8 %r1, [%b+-1]; {HERE}", a="u64", b="u64")
    fails(
        MemoryFault, text, [np.zeros(8, np.uint32), np.zeros(8, np.uint32)], says="the nearest below it is argument 0"
    )
    text = kernel(f"add.s64 %d1, %a, {address(1) - address(0) + 32}; ld.global.u8 %r1, [%d1]; {HERE}", a="u64", b="u64")
    fails(MemoryFault, text, [np.zeros(8, np.uint32), np.zeros(8, np.uint32)], says="argument 1")


def test_lanes_in_several_allocations() -> None:
    text = """
    setp.lt.u32 %p1, %tid, 12;
    selp.b64 %d1, %a, %b, %p1;
    mul.wide.u32 %d2, %tid, 4;
    add.s64 %d1, %d1, %d2;
    ld.global.u32 %r1, [%d1];
    st.global.u32 [%d1], %r1;
    st.global.u32 [%mine], %r1;
"""
    given = [OUT, LANES + 100, LANES + 200]
    always(kernel(text, out="u64", a="u64", b="u64"), given, LANES + np.where(LANES < 12, 100, 200))


def test_generic_addresses_of_all_spaces() -> None:
    text = """
    mov.u64 %d1, s;
    cvta.shared.u64 %d1, %d1;
    st.u32 [%d1], 7;
    ld.u32 %r2, [%d1];
    mov.b64 %d2, n;
    cvta.param.u64 %d3, %d2;
    ld.u32 %r3, [%d3];
    cvta.to.shared.u64 %d4, %d1;
    cvt.u32.u64 %r5, %d4;
    ld.shared.u32 %r4, [%r5];
    cvta.to.global.u64 %d6, %mine;
    add.u32 %r1, %r2, %r3;
    add.u32 %r1, %r1, %r4;
    st.global.u32 [%d6], %r1;
"""
    text = kernel(text, shared=".shared .align 4 .b8 s[4];", out="u64", n="u32")
    always(text, [OUT, np.uint32(1000)], np.full(32, 1014))


def test_parameters_cannot_be_written() -> None:
    text = f"mov.b64 %d2, n; cvta.param.u64 %d3, %d2; st.u32 [%d3], 5; {HERE}"
    fails(MemoryFault, kernel(text, out="u64", n="u32"), [OUT, np.uint32(1)], says="the parameters")
    text = f"ld.param.u64 %d1, [n]; {HERE}"
    fails(MemoryFault, kernel(text, out="u64", n="u32"), [OUT, np.uint32(1)], schedules=[(0, "even")])


def test_small_types() -> None:
    text = """
    ld.global.s8 %h1, [%out+1];
    ld.global.u8 %h2, [%out+1];
    ld.global.s8 %r3, [%out+1];
    ld.global.s16 %r4, [%out+2];
    ld.global.u16 %r5, [%out+2];
    ld.global.s8 %d1, [%out+1];
    ld.global.s32 %d2, [%out+4];
    st.global.u16 [%out+16], %h1;
    st.global.u16 [%out+18], %h2;
    st.global.u32 [%out+20], %r3;
    st.global.u32 [%out+24], %r4;
    st.global.u32 [%out+28], %r5;
    st.global.u64 [%out+32], %d1;
    st.global.u64 [%out+40], %d2;
    mov.u32 %r6, 0x12345678;
    st.global.u8 [%out+48], %r6;
    st.global.u16 [%out+50], %r6;
    st.global.v2.u8 [%out+52], {%r6, %r3};
"""
    whole = np.zeros(64, np.uint8)
    whole[:8] = [9, 0x80, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0x80]
    (found,) = execute(kernel(text, out="u64"), [whole])
    assert found[16:24].tobytes() == np.array([-128, 128, -128, -1], np.int16).tobytes()
    assert found[24:32].tobytes() == np.array([-2, 0xFFFE], np.int32).tobytes()
    assert found[32:48].tobytes() == np.array([-128, -0x7F000001], np.int64).tobytes()
    assert bytes(found[48:54]) == b"\x78\x00\x78\x56\x78\x80"


def test_vectors_of_all_widths() -> None:
    text = """
    mul.wide.u32 %d1, %tid, 16;
    add.s64 %d2, %out, %d1;
    add.s64 %d3, %a, %d1;
    ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d3];
    st.global.v2.u32 [%d2], {%r4, %r3};
    st.global.v2.b32 [%d2+8], {%r2, %r1};
    ld.global.v2.u64 {%d4, %d5}, [%d2];
    st.global.v2.u64 [%d2], {%d5, %d4};
    ld.global.v4.u16 {%h1, %h2, %h3, %h4}, [%d2];
    st.global.v4.u16 [%d2], {%h3, %h4, %h1, %h2};
"""
    a = np.arange(128, dtype=np.uint32).reshape(32, 4) * 70001
    expected = a[:, [0, 1, 3, 2]]
    always(kernel(text, out="u64", a="u64"), [Fresh((32, 4)), a], expected)


def test_static_and_dynamic_shared_memory_lie_behind_each_other() -> None:
    shared = ".shared .align 4 .b8 a[12];\n.shared .align 16 .b8 b[16];\n.extern .shared .align 128 .b8 dynamic[];"
    text = """
    mov.u32 %r2, a; mov.u32 %r3, b; mov.u32 %r4, dynamic; mov.u32 %r6, %dynamic_smem_size;
    sub.u32 %r3, %r3, %r2;
    sub.u32 %r5, %r4, %r2;
    and.b32 %r4, %r4, 127;
    mad.lo.u32 %r1, %r3, 1000, %r5;
    add.u32 %r1, %r1, %r4;
    mad.lo.u32 %r1, %r6, 100000, %r1;
"""
    always(kernel(text + STORE, shared=shared, out="u64"), [OUT], np.full(32, 9616128), Shape(shared=96))
    access = f"st.shared.u32 [dynamic+AT], %tid; {HERE}\n"
    one = "setp.ne.u32 %p1, %tid, 0; @%p1 ret;\n"
    execute(kernel(one + access.replace("AT", "92"), shared=shared, out="u64"), [OUT], Shape(shared=96))
    bad = kernel(one + access.replace("AT", "96"), shared=shared, out="u64")
    fails(MemoryFault, bad, [OUT], Shape(shared=96), schedules=[(0, "even")])


def test_shared_memory_is_poison_at_first() -> None:
    shared = ".shared .align 4 .b8 s[256];"
    base = "shl.b32 %r2, %tid, 2; mov.u32 %r3, s; add.u32 %r3, %r3, %r2;\n"
    text = base + f"ld.shared.u32 %r1, [%r3];\n st.global.u32 [%mine], %r1; {HERE}\n"
    fails(PoisonError, kernel(text, shared=shared, out="u64"), [OUT])
    half = base + f"st.shared.u16 [%r3], 1;\n ld.shared.u32 %r1, [%r3];\n st.global.u32 [%mine], %r1; {HERE}\n"
    fails(PoisonError, kernel(half, shared=shared, out="u64"), [OUT])
    passed = base + f"st.shared.u32 [%r3], %r9;\n ld.shared.u32 %r1, [%r3];\n st.global.u32 [%mine], %r1; {HERE}\n"
    fails(PoisonError, kernel(passed, shared=shared, out="u64"), [OUT])


def test_fresh_global_memory_is_poison() -> None:
    text = f"ld.global.u32 %r1, [%a];\n st.global.u32 [%mine], %r1; {HERE}\n"
    fails(PoisonError, kernel(text, out="u64", a="u64"), [OUT, Fresh((4,))])
    text = f"atom.global.add.u32 %r1, [%a], 1; {HERE}\n"
    fails(PoisonError, kernel(text, out="u64", a="u64"), [OUT, Fresh((4,))], says="never written")


def test_lanes_that_store_different_values_to_one_place() -> None:
    fails(RaceError, kernel(f"st.global.u32 [%out], %tid; {HERE}", out="u64"), [OUT], says="different values")
    always(kernel("mov.u32 %r1, 5; st.global.u32 [%out], %r1;", out="u64"), [np.zeros(1, np.uint32)], [5])


def test_local_memory_is_each_lanes_own() -> None:
    text = """
    .local .align 16 .b8 depot[64];
    mov.u64 %d1, depot;
    cvta.local.u64 %d2, %d1;
    mov.u32 %r2, 0;
FILL:
    mul.wide.u32 %d3, %r2, 4;
    add.s64 %d4, %d1, %d3;
    mad.lo.u32 %r3, %r2, 100, %tid;
    st.local.u32 [%d4], %r3;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p1, %r2, 16;
    @%p1 bra FILL;
    and.b32 %r4, %tid, 15;
    mul.wide.u32 %d3, %r4, 4;
    add.s64 %d4, %d2, %d3;
    setp.gt.u32 %p2, %tid, 5;
    mov.u32 %r1, 0;
    @%p2 ld.u32 %r1, [%d4];
"""
    expected = np.where(LANES > 5, LANES % 16 * 100 + LANES, 0)
    always(kernel(text + STORE, out="u64"), [OUT], expected)
    beyond = f".local .align 4 .b8 depot[8];\n mov.u64 %d1, depot;\n st.local.u32 [%d1+AT], %tid; {HERE}\n"
    for at in ("8", "-4"):
        fails(MemoryFault, kernel(beyond.replace("AT", at), out="u64"), [OUT], schedules=[(0, "even")])
    unset = ".local .align 4 .b8 depot[8];\n mov.u64 %d1, depot;\n ld.local.u32 %r1, [%d1];\n"
    fails(PoisonError, kernel(unset + STORE, out="u64"), [OUT])
