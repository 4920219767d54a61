// The scan of many queries on any card from sm_80 on: mma.sync on tiles of 128 queries and 128 tokens, a ring buffer of
// three stages.
//
// The tensor cores bound it. Each of eight warps has 64 queries by 32 tokens. After the products, the ring buffer's
// memory holds the keys of the warps.
#include "ampere.cuh"
#include "keys.cuh"
#include "scan.h"

namespace pez::cuda {
namespace {

using namespace sm80;

constexpr int kRows = 128;  // queries of a tile
constexpr int kThreads = 256;
constexpr int kStages = 3, kStageBytes = (kRows + kTile) * kBlockK * 2;
constexpr int kSwizzle = 16;  // query tiles in succession over one token tile, so that both are in the L2 cache

__global__ void __launch_bounds__(kThreads, 1)
    nearest_scan_sm80_kernel(Shape s, int row_tiles, const uint16_t* query, const uint16_t* table, Top2* keys) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, warp_row = warp >> 2, warp_column = warp & 3;
  const unsigned band = kSwizzle * unsigned(s.tiles), start = blockIdx.x / band * kSwizzle, within = blockIdx.x % band;
  const unsigned left = unsigned(row_tiles) - start, height = left < kSwizzle ? left : kSwizzle;
  const int first_row = int(start + within % height) * kRows, tile = int(within / height);
  const uint32_t stages = shared_address(shared);
  const int k_blocks = s.width / kBlockK;
  const uint16_t *rows = query + int64_t(first_row) * s.width, *tokens = table + int64_t(tile) * kTile * s.width;
  grid_dependency_wait();
  const auto fetch = [&](int step, int stage) {
    if (step < k_blocks) {
      const uint32_t to = stages + stage * kStageBytes;
      cp_async_tile<kRows, kThreads>(to, rows + step * kBlockK, s.width, thread);
      cp_async_tile<kTile, kThreads>(to + kRows * kBlockK * 2, tokens + step * kBlockK, s.width, thread);
    }
    cp_async_commit();
  };
  for (int step = 0; step < kStages - 1; ++step) fetch(step, step);
  float score[4][4][4] = {};  // a warp's 64 queries by 32 tokens, in fragments of 16 by 8
  int stage = 0, into = kStages - 1;
  for (int step = 0; step < k_blocks; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1, into);
    if (++into == kStages) into = 0;
    const uint32_t at = stages + stage * kStageBytes;
    if (++stage == kStages) stage = 0;
#pragma unroll
    for (int k = 0; k < kBlockK / 16; ++k) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_a(a[i], at, warp_row * 64 + i * 16, k, lane);
#pragma unroll
      for (int j = 0; j < 2; ++j) load_b(b[j], at + kRows * kBlockK * 2, warp_column * 32 + j * 16, k, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_m16n8k16(score[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  cp_async_wait<0>();
  launch_dependents();
  __syncthreads();                                          // no thread reads the ring buffer any more
  Top2* const warp_top2 = reinterpret_cast<Top2*>(shared);  // (4 columns of warps, kRows)
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Top2 best[2];  // rows lane / 4 and 8 behind it: two groups of this lane
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      best[half] = with_quad_lane(top2_groups<0, 2>([&](int j, int c) { return score[i][j][half * 2 + c]; }),
                                  warp_column << 3 | lane % 4);
    }
    // Each lane passes on one of its two rows; two of four lanes end up with all keys of a row each.
    const bool odd = lane & 1;
    const Top2 mine = merged(odd ? best[1] : best[0], shuffled_xor(odd ? best[0] : best[1], 1));
    const Top2 all = merged_xor(mine, 2);
    if (lane % 4 < 2) warp_top2[warp_column * kRows + warp_row * 64 + i * 16 + (lane & 1) * 8 + lane / 4] = all;
  }
  __syncthreads();
  const int row = first_row + thread;
  if (thread < kRows && row < s.n) {
    const Top2 best = merged(merged(warp_top2[thread], warp_top2[kRows + thread]),
                             merged(warp_top2[2 * kRows + thread], warp_top2[3 * kRows + thread]));
    keys[int64_t(row) * s.tiles + tile] = best;
  }
}

}  // namespace

int scan_sm80_bytes() { return kStages * kStageBytes; }

cudaError_t scan_sm80(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream) {
  const int row_tiles = (s.n + kRows - 1) / kRows;
  return launch_dependent(card, stream, unsigned(row_tiles) * unsigned(s.tiles), kThreads, scan_sm80_bytes(),
                          nearest_scan_sm80_kernel, s, row_tiles, b.query, p.unit, b.keys);
}

}  // namespace pez::cuda
