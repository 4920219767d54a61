// The scan of many queries on any card from sm_80 on: tiles of 128 queries and 128 tokens by mma.sync, three stages on their way.
//
// Bound by the tensor cores. Each of eight warps has 64 queries by 32 tokens; the ring becomes the room in which the warps' keys meet.
#include "ampere.cuh"
#include "keys.cuh"
#include "scan.h"

namespace pez::cuda {
namespace {

using namespace sm80;

constexpr int kRows = 128;  // queries of a tile
constexpr int kThreads = 256;
constexpr int kStages = 3, kStageBytes = (kRows + kTile) * kDepth * 2;
constexpr int kTogether = 16;  // tiles of queries that meet a tile of tokens one after the other, so that both are found in the L2 cache

__global__ void __launch_bounds__(kThreads, 1)
    nearest_scan_sm80_kernel(Shape s, int row_tiles, const uint16_t* query, const uint16_t* table, Best* keys) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, warp_row = warp >> 2, warp_column = warp & 3;
  const unsigned together = kTogether * unsigned(s.tiles), start = blockIdx.x / together * kTogether, within = blockIdx.x % together;
  const unsigned left = unsigned(row_tiles) - start, height = left < kTogether ? left : kTogether;
  const int first_row = int(start + within % height) * kRows, tile = int(within / height);
  const uint32_t stages = shared_address(shared);
  const int depth = s.width / kDepth;
  const uint16_t *rows = query + int64_t(first_row) * s.width, *tokens = table + int64_t(tile) * kTile * s.width;
  wait_for_previous();
  const auto fetch = [&](int step, int stage) {
    if (step < depth) {
      const uint32_t to = stages + stage * kStageBytes;
      copy_tile<kRows, kThreads>(to, rows + step * kDepth, s.width, thread);
      copy_tile<kTile, kThreads>(to + kRows * kDepth * 2, tokens + step * kDepth, s.width, thread);
    }
    commit();
  };
  for (int step = 0; step < kStages - 1; ++step) fetch(step, step);
  float score[4][4][4] = {};  // 64 queries by 32 tokens of a warp: 16 by 8 at a time
  int stage = 0, into = kStages - 1;
  for (int step = 0; step < depth; ++step) {
    wait<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1, into);
    if (++into == kStages) into = 0;
    const uint32_t at = stages + stage * kStageBytes;
    if (++stage == kStages) stage = 0;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_left(a[i], at, warp_row * 64 + i * 16, k, lane);
#pragma unroll
      for (int j = 0; j < 2; ++j) load_right(b[j], at + kRows * kDepth * 2, warp_column * 32 + j * 16, k, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add(score[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  wait<0>();
  let_next_begin();
  __syncthreads();  // nobody reads the ring any more
  Best* const warp_best = reinterpret_cast<Best*>(shared);  // (4 columns, kRows)
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Best best[2];  // rows lane / 4 and 8 behind it: two groups of this lane
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      best[half] = from_quarter(best_groups<0, 2>([&](int j, int c) { return score[i][j][half * 2 + c]; }), warp_column << 3 | lane % 4);
    }
    // Of the two rows each lane hands one on, and of four lanes two end with all of a row.
    const bool odd = lane & 1;
    const Best mine = merged(odd ? best[1] : best[0], across(odd ? best[0] : best[1], 1));
    const Best all = merged_across(mine, 2);
    if (lane % 4 < 2) warp_best[warp_column * kRows + warp_row * 64 + i * 16 + (lane & 1) * 8 + lane / 4] = all;
  }
  __syncthreads();
  const int row = first_row + thread;
  if (thread < kRows && row < s.n) {
    const Best best = merged(merged(warp_best[thread], warp_best[kRows + thread]), merged(warp_best[2 * kRows + thread], warp_best[3 * kRows + thread]));
    keys[int64_t(row) * s.tiles + tile] = best;
  }
}

}  // namespace

int scan_sm80_bytes() { return kStages * kStageBytes; }

cudaError_t scan_sm80(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream) {
  const int row_tiles = (s.n + kRows - 1) / kRows;
  return launch_after(card, stream, unsigned(row_tiles) * unsigned(s.tiles), kThreads, scan_sm80_bytes(), nearest_scan_sm80_kernel, s, row_tiles,
                      b.query, p.unit, b.keys);
}

}  // namespace pez::cuda
