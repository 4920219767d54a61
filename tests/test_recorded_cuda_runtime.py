"""The stand-in for the CUDA runtime: it refuses what the real one refuses, and encodes tensor maps as tests/ptx reads
them. The build: what is there is not made again, and a function that the stand-in lacks is named."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import recorded_cuda_build
from ptx.tensor_map import ELEMENT_BYTES, ELEMENT_TYPES, INTERLEAVES, SWIZZLES, TensorMap
from recorded_cuda import Built, Record, build, kernels, missing
from test_ptx_tensor_map import MATRIX, REFUSED, VALID

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"cannot build the launchers: {missing()}")

INVALID_VALUE, INVALID_CONFIGURATION, INVALID_FUNCTION, NO_IMAGE, INVALID_CLUSTER = 1, 9, 98, 209, 912
LAUNCHER = r"""
#include <cuda_runtime.h>

#define API extern "C" __attribute__((visibility("default")))

__global__ void __launch_bounds__(512) plain(int a, char b, double* to) {
  __shared__ double kept[128];
  kept[threadIdx.x % 128] = a + b;
  __syncthreads();
  to[threadIdx.x] = kept[127 - threadIdx.x % 128];
}
__global__ void any(short* to) { *to = 1; }
__global__ void __cluster_dims__(2, 1, 1) pairs(int* to) { *to = 1; }

API int set_device(int device) { return cudaSetDevice(device); }
API int raise_plain(int bytes) {
  return cudaFuncSetAttribute(plain, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}
API int start(int which, const unsigned* n, size_t bytes) {
  const dim3 grid(n[0], n[1], n[2]), block(n[3], n[4], n[5]);
  if (which == 0) plain<<<grid, block, bytes>>>(-7, 'x', nullptr);
  if (which == 1) any<<<grid, block, bytes>>>(nullptr);
  if (which == 2) pairs<<<grid, block, bytes>>>(nullptr);
  return cudaGetLastError();
}
API int start_with_cluster(unsigned blocks, unsigned cluster, unsigned overlaps, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = cluster, attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = int(overlaps);
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = blocks, configuration.blockDim = 32, configuration.stream = stream;
  configuration.attrs = attributes, configuration.numAttrs = 2;
  return cudaLaunchKernelEx(&configuration, any, static_cast<short*>(nullptr));
}
API int start_unregistered() {
  int value = 0;
  void* arguments[] = {&value};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&start_unregistered), 1, 1, arguments, 0, nullptr);
}
"""


def sources(folder: Path, launcher: str, module: str) -> Path:
    (folder / "cuda").mkdir()
    if launcher:
        (folder / "cuda" / "launcher_sm90.cu").write_text(launcher)
    (folder / "cuda" / "module.cpp").write_text(module)
    return folder


class Card:
    """A card of 100 KiB of shared memory for a block that has code for the kernels above."""

    def __init__(self, built: Built) -> None:
        self.library, self.record = ctypes.CDLL(str(built.library)), Record(built)
        self.number = self.record.add_device((9, 0), 4, 100 << 10, 90)
        for kernel in kernels(built.ptx("90")["launcher_sm90"]):
            self.record.add_kernel(self.number, kernel)
        assert self.library.set_device(self.number) == 0
        self.record.taken()  # those of earlier tests

    def start(self, which: int, grid: tuple = (1, 1, 1), block: tuple = (32, 1, 1), shared_bytes: int = 0) -> int:
        return self.library.start(which, (ctypes.c_uint * 6)(*grid, *block), ctypes.c_size_t(shared_bytes))


@pytest.fixture(scope="module")
def launcher(tmp_path_factory) -> Built:
    return build(sources(tmp_path_factory.mktemp("csrc"), LAUNCHER, "int empty;"))


@pytest.fixture
def card(launcher) -> Card:
    return Card(launcher)


def test_kernels_in_ptx(launcher):
    found = {kernel.name: kernel[1:] for kernel in kernels(launcher.ptx("90")["launcher_sm90"])}
    assert found["_Z5plainicPd"] == ([4, 1, 8], 1024, 512, [1, 1, 1])
    assert found["_Z3anyPs"] == ([8], 0, 1024, [1, 1, 1])
    assert found["_Z5pairsPi"] == ([8], 0, 1024, [2, 1, 1])


def test_a_launch(card):
    assert card.start(0, (3, 65535, 2), (8, 4, 16), 100) == 0
    (launch,) = card.record.taken()
    assert (launch.kernel, launch.grid, launch.block) == ("_Z5plainicPd", (3, 65535, 2), (8, 4, 16))
    assert (launch.shared_bytes, launch.overlaps, launch.cluster, launch.stream) == (100, False, None, 0)
    assert launch.arguments == [(-7).to_bytes(4, "little", signed=True), b"x", bytes(8)]
    assert card.record.taken() == []


@pytest.mark.parametrize("overlaps", [0, 1])
def test_attributes_of_a_launch(card, overlaps):
    assert card.library.start_with_cluster(6, 3, overlaps, ctypes.c_void_p(0x123)) == 0
    (launch,) = card.record.taken()
    assert (launch.overlaps, launch.cluster, launch.stream) == (bool(overlaps), (3, 1, 1), 0x123)


@pytest.mark.parametrize(
    ("which", "grid", "block", "error"),
    [
        (0, (0, 1, 1), (32, 1, 1), INVALID_CONFIGURATION),
        (0, (1, 0, 1), (32, 1, 1), INVALID_CONFIGURATION),
        (0, (1, 65536, 1), (32, 1, 1), INVALID_CONFIGURATION),
        (0, (1, 1, 65536), (32, 1, 1), INVALID_CONFIGURATION),
        (0, (1 << 31, 1, 1), (32, 1, 1), INVALID_CONFIGURATION),
        (0, (1, 1, 1), (0, 1, 1), INVALID_CONFIGURATION),
        (1, (1, 1, 1), (1025, 1, 1), INVALID_CONFIGURATION),
        (1, (1, 1, 1), (32, 33, 1), INVALID_CONFIGURATION),
        (1, (1, 1, 1), (1, 1, 65), INVALID_CONFIGURATION),
        (1, ((1 << 31) - 1, 65535, 65535), (1024, 1, 1), 0),
        (0, (1, 1, 1), (512, 1, 1), 0),
        (0, (1, 1, 1), (513, 1, 1), INVALID_VALUE),
        (2, (4, 1, 1), (32, 1, 1), 0),
        (2, (3, 1, 1), (32, 1, 1), INVALID_CLUSTER),
    ],
)
def test_dimensions(card, which, grid, block, error):
    assert card.start(which, grid, block) == error
    assert len(card.record.taken()) == (error == 0)


def test_shared_memory(card):
    """1 KiB is static. Without asking, a block has 48 KiB; this card allows 100 KiB."""
    assert card.start(0, shared_bytes=47 << 10) == 0
    assert card.start(0, shared_bytes=(47 << 10) + 1) == INVALID_VALUE
    assert card.library.raise_plain((99 << 10) + 1) == INVALID_VALUE
    assert card.start(1) == INVALID_VALUE  # cudaGetLastError says the error before
    assert card.start(0, shared_bytes=(47 << 10) + 1) == INVALID_VALUE
    assert card.library.raise_plain(99 << 10) == 0
    assert card.start(0, shared_bytes=99 << 10) == 0
    assert card.start(0, shared_bytes=(99 << 10) + 1) == INVALID_VALUE
    assert card.start(1, shared_bytes=(48 << 10) + 1) == INVALID_VALUE  # the attribute is of one kernel


def test_kernels_without_code(card):
    assert card.library.start_unregistered() == INVALID_FUNCTION
    card.library.set_device(card.record.add_device((12, 0), 4, 100 << 10, 90))
    assert card.start(1) == NO_IMAGE
    assert card.library.set_device(1 << 20) == 101
    assert card.record.taken() == []


def test_a_function_that_is_missing_is_named(tmp_path):
    module = "#include <cuda_runtime_api.h>\nvoid* made() { void* p; cudaMalloc(&p, 8); return p; }\n"
    with pytest.raises(RuntimeError, match=r"tests/cuda_runtime lacks cudaMalloc$"):
        build(sources(tmp_path, "", module))


def test_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded_cuda_build, "CACHE", tmp_path)
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)
        (folder / "text").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: recorded_cuda_build.kept("key", make), range(4)))
    assert len(made) == 1 and folders == [tmp_path / "key"] * 4
    assert (folders[0] / "text").read_text() == "whole"

    def fail(folder: Path) -> None:
        raise RuntimeError("no compiler")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no compiler"):
            recorded_cuda_build.kept("other", fail)
    assert not (tmp_path / "other").exists()


def test_tensor_maps_are_encoded_alike(launcher):
    library = ctypes.CDLL(str(launcher.library))
    valid = [(one, True) for one in VALID]
    refused = [(replace(MATRIX, **REFUSED[sentence]), False) for sentence in REFUSED]
    for one, accepted in valid + [pair for pair in refused if encodable(pair[0])]:
        assert encoded(library, one) == (one.to_bytes() if accepted else None), one


def encodable(one: TensorMap) -> bool:
    """Whether the arguments of cuTensorMapEncodeTiled can say it."""
    known = one.element_type in ELEMENT_TYPES and one.swizzle in SWIZZLES and one.interleave in INTERLEAVES
    return known and one.element_bytes == ELEMENT_BYTES[ELEMENT_TYPES.index(one.element_type)] and len(one.box) > 1


def encoded(library: ctypes.CDLL, one: TensorMap) -> bytes | None:
    def array(kind: type, numbers: tuple[int, ...]) -> ctypes.Array:
        return (kind * 6)(*numbers)

    memory = ctypes.create_string_buffer(192)
    to = -(-ctypes.addressof(memory) // 64) * 64
    error = library.cuTensorMapEncodeTiled(
        ctypes.c_void_p(to),
        ELEMENT_TYPES.index(one.element_type),
        one.rank,
        ctypes.c_void_p(one.address),
        array(ctypes.c_uint64, one.sizes),
        array(ctypes.c_uint64, one.strides),
        array(ctypes.c_uint32, one.box),
        array(ctypes.c_uint32, one.element_strides),
        INTERLEAVES.index(one.interleave),
        SWIZZLES.index(one.swizzle),
        2,
        one.fill_nan,
    )
    return None if error else ctypes.string_at(to, 128)
