// Tensor-core and copy instructions of sm_80, and the shared-memory tiles that they read.
#pragma once

#include <cstdint>

namespace pez::cuda::sm80 {

constexpr int kBlockK = 64;  // elements of a row in a tile: 128 bytes, so that eight rows span all banks

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// The byte offset of a 16-byte chunk (0 to 7) of a row in a tile. The chunks are permuted from row to row (XOR
// swizzle), so that neither the copies nor ldmatrix have bank conflicts.
__device__ __forceinline__ uint32_t swizzled_offset(int row, int chunk) {
  return uint32_t(row * 128 + ((chunk ^ (row & 7)) << 4));
}

__device__ __forceinline__ void cp_async_16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c (16 x 8) += a (16 x 16) b (16 x 8). c[0] and c[1] are row lane / 4, columns 2 (lane % 4) and the next one; c[2] and
// c[3] are 8 rows below.
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rows `row` to `row + 15`, 16 elements from 16 k on, of a tile. load_a loads them as the left operand, load_b as two
// right operands: (b[0], b[1]) and (b[2], b[3]).
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t tile, int row, int k, int lane) {
  ldmatrix_x4(a, tile + swizzled_offset(row + (lane & 15), 2 * k + (lane >> 4)));
}

__device__ __forceinline__ void load_b(uint32_t (&b)[4], uint32_t tile, int row, int k, int lane) {
  ldmatrix_x4(b, tile + swizzled_offset(row + ((lane >> 4) << 3) + (lane & 7), 2 * k + ((lane >> 3) & 1)));
}

// Starts the copy of kRows rows of 64 elements; `stride` is in elements. All kThreads threads take part.
template <int kRows, int kThreads>
__device__ __forceinline__ void cp_async_tile(uint32_t tile, const uint16_t* from, int stride, int thread) {
  static_assert(kRows * 8 % kThreads == 0, "whole rounds");
#pragma unroll
  for (int i = 0; i < kRows * 8 / kThreads; ++i) {
    const int chunk = i * kThreads + thread, row = chunk >> 3;
    cp_async_16(tile + swizzled_offset(row, chunk & 7), from + (row * stride + (chunk & 7) * 8));
  }
}

}  // namespace pez::cuda::sm80
