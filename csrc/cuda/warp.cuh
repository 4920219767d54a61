// A warp as the group that decides on a row, and the two best keys of its lanes.
#pragma once

#include "finish.h"

namespace pez {

constexpr unsigned kAll = 0xffffffffu;

struct Warp {
  __device__ int lane() const { return threadIdx.x & 31; }
  __device__ int size() const { return 32; }
  __device__ double sum(double v) const {
    for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(kAll, v, step);
    return v;
  }
  __device__ Pair sum(Pair v) const {
    for (int step = 16; step; step >>= 1) v = plus(v, {__shfl_xor_sync(kAll, v.hi, step), __shfl_xor_sync(kAll, v.lo, step)});
    return v;
  }
  __device__ double maximum(double v) const {
    for (int step = 16; step; step >>= 1) v = fmax(v, __shfl_xor_sync(kAll, v, step));
    return v;
  }
  __device__ Key maximum(Key v) const { return __reduce_max_sync(kAll, v); }
  __device__ int minimum(int v) const { return __reduce_min_sync(kAll, v); }
};

// Merged with the lane whose number differs in one bit.
__device__ __forceinline__ Best merged_across(Best best, int bit) {
  return merged(best, {__shfl_xor_sync(kAll, best.first, bit), __shfl_xor_sync(kAll, best.second, bit)});
}

}  // namespace pez
