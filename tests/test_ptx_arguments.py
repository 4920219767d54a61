"""Arguments of kernels from their specifications, and names in messages."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from ptx import names
from ptx.arguments import ArgumentError, arguments
from ptx.parse import parse
from ptx.tensor_map import TensorMap


def test_values_of_arguments(tmp_path):
    np.save(tmp_path / "four.npy", np.arange(4, dtype=np.int64))
    texts = ["i32=-2", "f64=1.5", "bytes=00ff", "f16[2,3]=arange", "i16[100]=3..5", "out:u8[4]=0x10,2,3,4", "bf16[2]=1"]
    texts += [
        "f32[8]",
        "f32[1000]=normal",
        f"i32[4]=@{tmp_path}/four.npy",
        "same:3",
        "bf16=-1.00390625",
        "f32[9]=-1..1",
    ]
    made = arguments(texts)
    assert [made[i].value for i in (0, 1, 2)] == [b"\xfe\xff\xff\xff", np.float64(1.5).tobytes(), b"\x00\xff"]
    assert made[3].array.values.tolist() == [[0, 1, 2], [3, 4, 5]] and made[3].array.values.dtype == np.float16
    assert set(made[4].array.values.tolist()) == {3, 4, 5}
    assert made[5].array.printed and made[5].array.values.tolist() == [16, 2, 3, 4]
    assert made[6].array.values.tolist() == [0x3F80, 0x3F80]
    assert made[7].array.values is None and not made[7].array.printed and made[7].array.storage("").state.all()
    assert abs(made[8].array.values.mean()) < 0.2 and 0.8 < made[8].array.values.std() < 1.2
    assert made[9].array.values.tolist() == [0, 1, 2, 3]
    assert made[10].value == made[3].value and made[10].array is None
    assert made[11].value == b"\x80\xbf"  # half way between two: to the even one
    places = sorted((one.array.address, one.array.size) for one in made if one.array)
    assert all(a % 256 == 0 for a, _ in places)
    assert all(a + size < b for (a, size), (b, _) in zip(places, places[1:], strict=False))


def test_a_tensor_map():
    (made,) = arguments(["map:bf16[256,128]=normal:box=64x32:swizzle=64"])
    found = TensorMap.from_bytes(made.value)
    assert (found.address, found.element_type) == (made.array.address, "bfloat16")
    assert (found.sizes, found.strides, found.box, found.swizzle) == ((128, 256), (256,), (32, 64), 64)
    (three,) = arguments(["map:f32[5,6,8]:box=1,2,4"])
    assert TensorMap.from_bytes(three.value).strides == (32, 192) and three.array.values is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("float[4]=0", "the type is float, but it must be one of f16"),
        ("i32=1.5", "1.5 is no integer"),
        ("f32=x", "x is no number"),
        ("u8=256", "256 does not fit into u8"),
        ("i8[2]=0,-129", "-129 does not fit into i8"),
        ("f32[4]=1,2", "2 numbers for 4 elements"),
        ("f32=1,2", "2 numbers for 1 elements"),
        ("i32[4]=normal", "has no normal distribution"),
        ("f32[0]", "an array of 0 bytes"),
        ("f32", "it must look like i32=1024"),
        ("i32[3]=5..3", "low"),
        ("f32[4]=@nowhere.npy", "No such file"),
        ("bytes=0x", "hex"),
        ("same:0", "wants the number of an argument before it"),
        ("map:f16[64,64]", "a tensor map needs a box"),
        ("map:f16[64,64]:box=64x64:swizzle=48", "the swizzle must be 0, 32, 64 or 128"),
        ("map:f16[64,64]:box=64x64:swizzle=32", "exceeds the swizzle"),
        ("map:f16[64,64]:boxes=64x64", "has box=… and swizzle=…, not boxes"),
        ("map:f16[64,60]:box=64x8", "a stride must be a multiple of 16 bytes"),
    ],
)
def test_bad_arguments(text, said):
    with pytest.raises(ArgumentError) as caught:
        arguments([text])
    assert str(caught.value).startswith(f"--arg {text} (argument 0): ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


# Names


def test_names():
    assert names.lanes(0x8000FFFF) == "lanes 0-15, 31" and names.lanes(4) == "lane 2"
    assert names.readable("plain") == "plain" and len(names.readable("x" * 500)) <= names.LONGEST
    if shutil.which("c++filt"):
        assert names.readable("_ZN3pez12_GLOBAL__N_118nearest_few_kernelILi16ELi4EEEvNS_7QueriesE") == (
            "pez::nearest_few_kernel<16, 4>"
        )
        assert names.parameter_types("_Z1fSt4pairIifEPKf") == ["std::pair<int, float>", "float const*"]


def test_texts_of_instructions():
    lines = [
        "@!%p1 bra again;",
        "ld.shared.v2.f32 {%f1, %f2}, [%r7+252];",
        "setp.lt.s32 %p1|%p2, %r1, -5;",
        "mov.u32 %r1, %tid.x;",
        "ret;",
    ]
    registers = ".reg .pred %p<3>;\n.reg .b32 %r<9>;\n.reg .f32 %f<3>;\nagain:\n"
    module = parse(f".visible .entry k() {{ {registers}" + "\n".join(lines).replace(", ", " ,") + "}")
    assert [one.text for one in module.functions["k"].body] == lines
