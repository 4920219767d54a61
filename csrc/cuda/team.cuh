// A block of a few warps, each with a row of its own: as the team that decides, or alone.
#pragma once

#include "decide.h"

namespace pez {

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
  __device__ Pair warp_sum(Pair v) const {
    for (int step = 16; step; step >>= 1) v = plus(v, {__shfl_xor_sync(kAll, v.hi, step), __shfl_xor_sync(kAll, v.lo, step)});
    return v;
  }
  template <class T>
  __device__ T warp_maximum(T v) const {
    for (int step = 16; step; step >>= 1) v = max(v, __shfl_xor_sync(kAll, v, step));
    return v;
  }

  __device__ uint32_t ballot(bool mine) const { return __ballot_sync(kAll, mine); }
  __device__ int lowest(uint32_t set) const { return __ffs(set) - 1; }
  __device__ Best from_lane(Best best, int lane) const { return {__shfl_sync(kAll, best.first, lane), __shfl_sync(kAll, best.second, lane)}; }
};

constexpr int kTeamWarps = 4;

struct TeamMemory {  // shared, so nothing in it is constructed
  alignas(16) unsigned char tasks[kTeamWarps][sizeof(Task)], founds[kTeamWarps][64];

  __device__ Task& task(int warp) { return *reinterpret_cast<Task*>(tasks[warp]); }
  template <class Found>
  __device__ Found& found(int warp) {
    static_assert(sizeof(Found) <= sizeof founds[0], "fits");
    return *reinterpret_cast<Found*>(founds[warp]);
  }
};

struct Team : Warp {
  TeamMemory* memory;
  __device__ explicit Team(TeamMemory* m) : memory(m) {}
  __device__ int warps() const { return kTeamWarps; }

  // Of each warp's task for which chosen(task): what all warps find by work(task), merged in their order, goes to that warp's take(found).
  template <class Chosen, class Work, class Merge, class Take>
  __device__ void each_task(const Task& mine, Chosen chosen, Work work, Merge merge, Take take) const {
    if (!__syncthreads_or(chosen(mine))) return;
    if (lane() == 0) memory->task(warp()) = mine;
    __syncthreads();
    for (int owner = 0; owner < kTeamWarps; ++owner) {
      const Task& task = memory->task(owner);
      if (!chosen(task)) continue;
      using Found = decltype(work(task));
      const Found found = work(task);
      if (lane() == 0) memory->template found<Found>(warp()) = found;
      __syncthreads();
      if (warp() == owner) {
        Found all = memory->template found<Found>(0);
        for (int w = 1; w < kTeamWarps; ++w) all = merge(all, memory->template found<Found>(w));
        take(all);
      }
      __syncthreads();
    }
  }
};

}  // namespace pez
