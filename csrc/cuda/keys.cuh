// Keys in registers: the epilogue that all scans share.
#pragma once

#include "keys.h"
#include "team.cuh"

namespace pez::cuda {

// The same as pack(score, kIndex << 2) in one instruction. It takes the float register itself: if the bits are
// reinterpreted instead, the compiler may move accumulators while wgmma still writes them, and ptxas then serialises
// the products (C7510).
template <int kIndex>
__device__ __forceinline__ Key packed(float score) {
  Key key;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;"
      : "=f"(key)
      : "f"(score), "r"(-kGroups), "n"(kIndex << 2));  // (score & -kGroups) | kIndex << 2
  return key;
}

// Adds the lane's index in its quad (lane % 4) to the group numbers of its keys.
__device__ __forceinline__ Top2 with_quad_lane(Top2 best, int quad_lane) {
  const auto with = [quad_lane](Key key) { return __uint_as_float(__float_as_uint(key) | unsigned(quad_lane)); };
  return {with(best.first), with(best.second)};
}

__device__ __forceinline__ float largest(float a, float b, float c, float d) {
  return larger(larger(a, b), larger(c, d));
}

// The key of a lane's group kIndex; score(2 kIndex, .) and score(2 kIndex + 1, .) give two scores each.
template <int kIndex, class Score>
__device__ __forceinline__ Key group_key(Score score) {
  return packed<kIndex>(
      largest(score(2 * kIndex, 0), score(2 * kIndex, 1), score(2 * kIndex + 1, 0), score(2 * kIndex + 1, 1)));
}

// The top two of a lane's groups kFirst to kLast - 1.
template <int kFirst, int kLast, class Score>
__device__ __forceinline__ Top2 top2_groups(Score score) {
  if constexpr (kLast - kFirst == 2) {
    return top2_of(group_key<kFirst>(score), group_key<kFirst + 1>(score));
  } else {
    constexpr int kMiddle = (kFirst + kLast) / 2;
    return merged(top2_groups<kFirst, kMiddle>(score), top2_groups<kMiddle, kLast>(score));
  }
}

__device__ __forceinline__ Top2 shuffled_xor(Top2 best, int bit) {
  return {__shfl_xor_sync(kAll, best.first, bit), __shfl_xor_sync(kAll, best.second, bit)};
}

__device__ __forceinline__ Top2 merged_xor(Top2 best, int bit) { return merged(best, shuffled_xor(best, bit)); }

}  // namespace pez::cuda
