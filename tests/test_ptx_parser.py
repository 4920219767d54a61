"""The parser of PTX: scopes, literals, functions; and that what it does not know is named with its line."""

from __future__ import annotations

import numpy as np
import pytest
from ptx.errors import ParseError, UnknownInstruction
from ptx.parse import parse
from ptx.syntax import Immediate, Memory, Register, Vector
from ptx_text import Fresh, Shape, always, execute, fails, kernel, program

OUT = Fresh((32,))
LANES = np.arange(32, dtype=np.uint32)


def body(text: str):
    return parse(kernel(text, out="u64")).functions["main"].body


def test_names_of_nested_scopes_are_apart() -> None:
    text = """
    .reg .u32 %x;
    mov.u32 %x, 1;
    { .reg .u32 %x; mov.u32 %x, 10;
      { .reg .u32 %y; mov.u32 %y, 100; add.u32 %r1, %x, %y; }
      .reg .u32 %y;
      mov.u32 %y, 1000;
      add.u32 %r1, %r1, %y;
    }
    { .reg .u32 %x; .reg .u32 %y; mov.u32 %x, 10000; mov.u32 %y, 0; add.u32 %r2, %x, %y; }
    add.u32 %r1, %r1, %r2;
    add.u32 %r1, %r1, %x;
    st.global.u32 [%mine], %r1;
"""
    always(kernel(text, out="u64"), [OUT], np.full(32, 11111))


def test_a_register_behind_an_inner_scope_is_not_the_inner_one() -> None:
    """The inner %y holds another type; the outer one of the same scope level keeps its own value."""
    text = """
    { .reg .u32 %a;
      mov.u32 %a, 7;
      { .reg .b64 %y; mov.u64 %y, 5; }
      .reg .u32 %y;
      mov.u32 %y, 3;
      { .reg .b64 %y; mov.u64 %y, 9; }
      add.u32 %r1, %a, %y;
    }
    st.global.u32 [%mine], %r1;
"""
    names = parse(kernel(text, out="u64")).functions["main"].registers
    assert sorted(kind for name, kind in names.items() if name.startswith("%y")) == ["b64", "b64", "u32"]
    always(kernel(text, out="u64"), [OUT], np.full(32, 10))


def test_labels_of_scopes_are_apart() -> None:
    text = """
    mov.u32 %r1, 0;
    { bra DONE; add.u32 %r1, %r1, 1; DONE: add.u32 %r1, %r1, 10; }
    { bra DONE; add.u32 %r1, %r1, 1; DONE: add.u32 %r1, %r1, 100; }
    bra DONE;
    add.u32 %r1, %r1, 1;
DONE:
    st.global.u32 [%mine], %r1;
"""
    always(kernel(text, out="u64"), [OUT], np.full(32, 110))


def test_an_inner_branch_reaches_an_outer_label() -> None:
    text = """
    mov.u32 %r1, 0;
AGAIN:
    add.u32 %r1, %r1, 1;
    { setp.lt.u32 %p1, %r1, 5; @%p1 bra AGAIN; }
    st.global.u32 [%mine], %r1;
"""
    always(kernel(text, out="u64"), [OUT], np.full(32, 5))


def test_literals() -> None:
    text = """
    mov.f32 %f1, 0f3F800000;
    mov.f32 %f2, 0d4000000000000000;
    mov.b32 %r1, 0xFFu;
    mov.b32 %r2, -1;
    mov.b32 %r3, 017;
    mov.b64 %d1, 0x123456789ABCDEF0;
"""
    values = [one.operands[1] for one in body(text.replace("0xFFu", "0xFFU"))[-7:-1]]
    assert values[:2] == [Immediate(0x3F800000, 4), Immediate(0x4000000000000000, 8)]
    assert [one.value for one in values[2:]] == [255, -1, 15, 0x123456789ABCDEF0]
    store = "add.f32 %f1, %f1, %f2; st.global.f32 [%mine], %f1;"
    (found,) = execute(kernel(text.replace("0xFFu", "0xFFU") + store, out="u64"), [Fresh((32,), np.float32)])
    assert (found == 3).all()


def test_addresses_with_offsets() -> None:
    text = """
    add.s64 %d1, %mine, 256;
    st.global.u32 [%d1+-256], %tid;
    ld.global.u32 %r1, [%d1-256];
    st.global.u32 [%mine + 128], %r1;
"""
    memory = [one.operands[0] for one in body(text) if one.base == "st"]
    assert memory[0] == Memory(Register("%d1"), -256)
    always(kernel(text, out="u64"), [Fresh((64,))], np.tile(LANES, 2))


def test_vectors_and_comments() -> None:
    text = """
    /* several
       lines */
    mov.b64 %d1, {%tid,
        %lane}; // both
    mov.b64 {%r1, %r2}, %d1;
    mov.b64 {_, %r3}, %d1;
    sub.u32 %r4, %r1, %r2;
    add.u32 %r4, %r4, %r3;
    st.global.u32 [%mine], %r4;
"""
    assert isinstance(next(one for one in body(text) if one.opcode == "mov.b64").operands[1], Vector)
    always(kernel(text, out="u64"), [OUT], LANES)


ADDS = """
.func (.param .b32 sum) plus(.param .b32 a, .param .b64 b)
{
    .reg .b32 %r<4>;
    .reg .b64 %d<2>;
    ld.param.u32 %r1, [a];
    ld.param.u64 %d1, [b];
    cvt.u32.u64 %r2, %d1;
    setp_later:
    add.u32 %r3, %r1, %r2;
    st.param.b32 [sum], %r3;
    ret;
}
"""
CALL = """
    {
    .param .b32 p0;
    .param .b64 p1;
    .param .b32 back;
    st.param.b32 [p0], %tid;
    st.param.b64 [p1], 5;
    call.uni (back),
        plus,
        (
        p0,
        p1
        );
    ld.param.b32 %r1, [back];
    }
"""


def test_functions_with_parameters_and_results() -> None:
    text = kernel(CALL + CALL.replace("%tid", "%r1") + "st.global.u32 [%mine], %r1;", before=ADDS, out="u64")
    always(text, [OUT], LANES + 10)


def test_a_declaration_before_the_function() -> None:
    declared = ".func (.param .b32 sum) plus(.param .b32 a, .param .b64 b)\n;\n"
    always(kernel(CALL + "st.global.u32 [%mine], %r1;", before=declared + ADDS, out="u64"), [OUT], LANES + 5)


def test_recursion_is_refused() -> None:
    again = ".func deep()\n{\n call.uni deep, (); // here\n ret;\n}\n"
    fails(UnknownInstruction, kernel("call.uni deep, ();", before=again, out="u64"), [OUT], says="calls itself")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (".version 8.8\n.target sm_90\n.nonsense 3;\n", 3, ".nonsense"),
        (".version 8.8\n.target sm_90\n\n.visible .entry main()\n{\n mov.u32 %r1 5;\n}\n", 6, "','"),
        (".version 8.8\n.target sm_90\n.shared .b128 x[4];\n", 3, "b128"),
        (".version 8.8\n.target sm_90\n.visible .entry main()\n{\n mov.u32 %r1, `;\n}\n", 5, "`"),
        (
            ".version 8.8\n.target sm_90\n.visible .entry main()\n{\n ld.global.u32 %r1, [{%r2, %r3}];\n}\n",
            5,
            "address",
        ),
    ],
)
def test_what_is_no_ptx_is_named_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(ParseError, match=f"line {line}: .*{says}"):
        parse(text)


def test_a_text_that_ends_too_early() -> None:
    with pytest.raises(ParseError, match="the text ends"):
        parse(".version 8.8\n.target sm_90\n.visible .entry main()\n{\n mov.u32 %r1, 3;\n")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("frob.u32 %r1, %r2;", "frob.u32"),
        ("add.u33 %r1, %r2, %r3;", "add.u33"),
        ("ld.global.L9::often.u32 %r1, [%mine];", "L9::often"),
        ("mov.u32 %r1, %warpspeed;", "%warpspeed"),
        ("add.u32 %r1, %r2;", "add.u32"),
        ("bra NOWHERE;", "NOWHERE"),
        ("mov.u32 %r1, unknown_variable;", "unknown_variable"),
        ("add.u32 %undeclared, %r1, %r2;", "%undeclared"),
        ("mbarrier.arrive.noComplete.shared.b64 _, [%r1], 1;", "noComplete"),
        ("fence.proxy.alias;", "fence.proxy.alias"),
        ("atom.global.add.noftz.f16 %h1, [%mine], %h1;", "atom.global.add.noftz.f16"),
        ("bar.arrive 0;", "bar.arrive"),
        ("cp.async.cg.shared.global [%r1], [%mine], 8;", "8 bytes"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1}, {%r1}, {%r2}, {%f2};", "mma"),
        ("shfl.sync.idx.b64 %r1, %r2, 0, 31, -1;", "shfl.sync.idx.b64"),
        ("@%p1 call.uni nobody, ();", "nobody"),
    ],
)
def test_an_unknown_instruction_is_named_with_its_line(line: str, says: str) -> None:
    text = kernel(f"    {line} // here", out="u64")
    number = next(i for i, one in enumerate(text.splitlines(), 1) if "// here" in one)
    with pytest.raises(UnknownInstruction, match=says) as caught:
        program.__wrapped__(text)
    assert f"line {number}" in str(caught.value)


def test_code_that_ends_without_ret() -> None:
    text = kernel("add.u32 %r1, %tid, 1;", out="u64").replace("    ret;\n", "")
    with pytest.raises(UnknownInstruction, match="without ret"):
        execute(text, [OUT], Shape())
