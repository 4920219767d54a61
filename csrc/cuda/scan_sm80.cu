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

// The first query and the token tile of a block.
struct Place {
  int first_row, tile;
};

__device__ __forceinline__ Place place_of(unsigned row_tiles, unsigned tiles) {
  const unsigned band = kSwizzle * tiles, start = blockIdx.x / band * kSwizzle, within = blockIdx.x % band;
  const unsigned left = row_tiles - start, height = left < kSwizzle ? left : kSwizzle;
  return {int(start + within % height) * kRows, int(within / height)};
}

// The two operands of a block's product on their way through the ring buffer. A stage has 64 elements of all queries,
// then 64 elements of all tokens.
struct Operands {
  uint32_t stages;  // address of the ring buffer in shared memory
  int k_blocks;
  const uint16_t *rows, *tokens;
  int width, thread;

  __device__ __forceinline__ void fetch(int step, int stage) const {
    if (step < k_blocks) {
      const uint32_t to = stages + stage * kStageBytes;
      cp_async_tile<kRows, kThreads>(to, rows + step * kBlockK, width, thread);
      cp_async_tile<kTile, kThreads>(to + kRows * kBlockK * 2, tokens + step * kBlockK, width, thread);
    }
    cp_async_commit();
  }

  // Waits until the oldest stage has arrived, and until no thread reads the stage that is fetched into next.
  __device__ __forceinline__ void wait() const {
    cp_async_wait<kStages - 2>();
    __syncthreads();
  }
};

// A warp's 64 queries by 32 tokens, in fragments of 16 by 8.
using Scores = float[4][4][4];

// Adds the products over the 64 elements of a stage.
__device__ __forceinline__ void multiply(Scores& score, uint32_t stage, int warp_row, int warp_column, int lane) {
#pragma unroll
  for (int k = 0; k < kBlockK / 16; ++k) {
    uint32_t a[4][4], b[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_a(a[i], stage, warp_row * 64 + i * 16, k, lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) load_b(b[j], stage + kRows * kBlockK * 2, warp_column * 32 + j * 16, k, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) mma_m16n8k16(score[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
}

// Writes the top two of the warp's eight groups for each of its queries to (4 columns of warps, kRows).
__device__ __forceinline__ void reduce_warp(const Scores& score, Top2* warp_top2, int warp_row, int warp_column,
                                            int lane) {
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
    const Top2 kept = odd ? best[1] : best[0], passed = odd ? best[0] : best[1];
    const Top2 mine = merged(kept, shuffled_xor(passed, 1));
    const Top2 all = merged_xor(mine, 2);
    if (lane % 4 < 2) warp_top2[warp_column * kRows + warp_row * 64 + i * 16 + (lane & 1) * 8 + lane / 4] = all;
  }
}

// The top two of the tile for one query: those of the four warps that have it, merged.
__device__ __forceinline__ Top2 merged_columns(const Top2* warp_top2, int row) {
  return merged(merged(warp_top2[row], warp_top2[kRows + row]),
                merged(warp_top2[2 * kRows + row], warp_top2[3 * kRows + row]));
}

__global__ void __launch_bounds__(kThreads, 1)
    nearest_scan_sm80_kernel(Shape s, int row_tiles, const uint16_t* query, const uint16_t* table, Top2* keys) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, warp_row = warp >> 2, warp_column = warp & 3;
  const Place place = place_of(unsigned(row_tiles), unsigned(s.tiles));
  const Operands operands{shared_address(shared),
                          s.width / kBlockK,
                          query + int64_t(place.first_row) * s.width,
                          table + int64_t(place.tile) * kTile * s.width,
                          s.width,
                          thread};
  grid_dependency_wait();
  for (int step = 0; step < kStages - 1; ++step) operands.fetch(step, step);

  Scores score = {};
  int stage = 0, into = kStages - 1;
  for (int step = 0; step < operands.k_blocks; ++step) {
    operands.wait();
    operands.fetch(step + kStages - 1, into);
    if (++into == kStages) into = 0;
    const uint32_t at = operands.stages + stage * kStageBytes;
    if (++stage == kStages) stage = 0;
    multiply(score, at, warp_row, warp_column, lane);
  }
  cp_async_wait<0>();
  launch_dependents();
  __syncthreads();  // no thread reads the ring buffer any more
  Top2* const warp_top2 = reinterpret_cast<Top2*>(shared);
  reduce_warp(score, warp_top2, warp_row, warp_column, lane);
  __syncthreads();
  const int row = place.first_row + thread;
  if (thread < kRows && row < s.n) keys[int64_t(row) * s.tiles + place.tile] = merged_columns(warp_top2, thread);
}

}  // namespace

int scan_sm80_bytes() { return kStages * kStageBytes; }

cudaError_t scan_sm80(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream) {
  const int row_tiles = (s.n + kRows - 1) / kRows;
  return launch_dependent(card, stream, unsigned(row_tiles) * unsigned(s.tiles), kThreads, scan_sm80_bytes(),
                          nearest_scan_sm80_kernel, s, row_tiles, b.query, p.unit, b.keys);
}

}  // namespace pez::cuda
