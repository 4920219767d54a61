// Warps with a row each: Warp works alone, Team is a block of a few warps that decide together.
#pragma once

#include "decide.h"

namespace pez::cuda {

constexpr unsigned kAll = 0xffffffffu;

struct Warp {
  __device__ int lane() const { return threadIdx.x & 31; }
  __device__ int lanes() const { return 32; }
  __device__ int warp() const { return threadIdx.x >> 5; }

  template <class T>
  __device__ T warp_sum(T v) const {
    for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(kAll, v, step);
    return v;
  }
  __device__ DoubleDouble warp_sum(DoubleDouble v) const {
    for (int step = 16; step; step >>= 1)
      v = add(v, {__shfl_xor_sync(kAll, v.hi, step), __shfl_xor_sync(kAll, v.lo, step)});
    return v;
  }
  template <class T>
  __device__ T warp_maximum(T v) const {
    for (int step = 16; step; step >>= 1) v = max(v, __shfl_xor_sync(kAll, v, step));
    return v;
  }

  __device__ uint32_t ballot(bool mine) const { return __ballot_sync(kAll, mine); }
  __device__ int lowest(uint32_t set) const { return __ffs(set) - 1; }
  __device__ uint32_t from_lane(uint32_t v, int lane) const { return __shfl_sync(kAll, v, lane); }
};

constexpr int kTeamWarps = 4;

struct TeamMemory {  // it lies in shared memory, so no member may have a constructor
  alignas(16) unsigned char tasks[kTeamWarps][sizeof(Task)], slots[kTeamWarps][64];
  int wanted[kTeamWarps];

  __device__ Task& task(int warp) { return *reinterpret_cast<Task*>(tasks[warp]); }
  template <class T>
  __device__ T& slot(int warp) {
    static_assert(sizeof(T) <= sizeof slots[0], "fits");
    return *reinterpret_cast<T*>(slots[warp]);
  }
};

struct Team : Warp {
  TeamMemory* memory;
  __device__ explicit Team(TeamMemory* m) : memory(m) {}
  __device__ int warps() const { return kTeamWarps; }

  // Returns the bits of the warps that want all warps to work on their task; published(warp) is that task.
  __device__ uint32_t publish(const Task& mine, bool wanted) const {
    if (!__syncthreads_or(wanted)) return 0;
    if (lane() == 0) memory->task(warp()) = mine, memory->wanted[warp()] = wanted;
    __syncthreads();
    uint32_t owners = 0;
    for (int w = 0; w < kTeamWarps; ++w) owners |= uint32_t(memory->wanted[w]) << w;
    return owners;
  }
  __device__ const Task& published(int warp) const { return memory->task(warp); }

  // Merges the values of the warps in their order; all lanes of a warp hold the same value.
  template <class T, class Merge>
  __device__ T gathered(const T& mine, Merge merge) const {
    if (lane() == 0) memory->template slot<T>(warp()) = mine;
    __syncthreads();
    T all = memory->template slot<T>(0);
    for (int w = 1; w < kTeamWarps; ++w) all = merge(all, memory->template slot<T>(w));
    __syncthreads();
    return all;
  }
};

}  // namespace pez::cuda
