// Keys in registers: the epilogue that all scans share.
#pragma once

#include "keys.h"
#include "team.cuh"

namespace pez::cuda {

// As pack(score, kPlace << 2) in one instruction. It takes the float register itself: where the bits are reinterpreted instead, the
// compiler may move accumulators while wgmma still writes them, and ptxas then serialises the products (C7510).
template <int kPlace>
__device__ __forceinline__ Key packed(float score) {
  Key key;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=f"(key) : "f"(score), "r"(-kGroups), "n"(kPlace << 2));  // (score & -kGroups) | place
  return key;
}

// Which of four neighbouring lanes a key is from; it belongs to the group's number.
__device__ __forceinline__ Best from_quarter(Best best, int quarter) {
  const auto with = [quarter](Key key) { return __uint_as_float(__float_as_uint(key) | unsigned(quarter)); };
  return {with(best.first), with(best.second)};
}

__device__ __forceinline__ float largest(float a, float b, float c, float d) { return larger(larger(a, b), larger(c, d)); }

// The key of group kPlace of a lane: score(2 kPlace, .) and score(2 kPlace + 1, .) give two scores each.
template <int kPlace, class Score>
__device__ __forceinline__ Key key_of(Score score) {
  return packed<kPlace>(largest(score(2 * kPlace, 0), score(2 * kPlace, 1), score(2 * kPlace + 1, 0), score(2 * kPlace + 1, 1)));
}

// The two best of a lane's groups kFirst to kLast - 1.
template <int kFirst, int kLast, class Score>
__device__ __forceinline__ Best best_groups(Score score) {
  if constexpr (kLast - kFirst == 2) {
    return best_of(key_of<kFirst>(score), key_of<kFirst + 1>(score));
  } else {
    constexpr int kMiddle = (kFirst + kLast) / 2;
    return merged(best_groups<kFirst, kMiddle>(score), best_groups<kMiddle, kLast>(score));
  }
}

__device__ __forceinline__ Best across(Best best, int bit) {
  return {__shfl_xor_sync(kAll, best.first, bit), __shfl_xor_sync(kAll, best.second, bit)};
}

__device__ __forceinline__ Best merged_across(Best best, int bit) { return merged(best, across(best, bit)); }

}  // namespace pez::cuda
