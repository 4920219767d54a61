// The scan of many queries on any GPU from sm_80 on: products of 128 queries and 128 tokens by mma.sync, three stages on their way.
#include "mma.cuh"
#include "scan.h"
#include "warp.cuh"

namespace pez {
namespace {

using namespace sm80;

constexpr int kRows = 128;  // queries of a tile
constexpr int kThreads = 256;
constexpr int kStages = 3, kStageBytes = (kRows + kTile) * kDepth * 2;
constexpr int kTogether = 16;  // tiles of queries that meet a tile of tokens one after the other, so that both are found in the L2 cache

__global__ void __launch_bounds__(kThreads, 1)
    nearest_scan_sm80_kernel(const uint16_t* query, const uint16_t* table, int64_t width, int64_t n, int64_t count, int row_tiles, int tiles, Key* keys) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Best warp_best[4][kRows];
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, warp_row = warp >> 2, warp_column = warp & 3;
  const int64_t start = int64_t(blockIdx.x) / (int64_t(kTogether) * tiles) * kTogether, within = int64_t(blockIdx.x) % (int64_t(kTogether) * tiles);
  const int64_t height = row_tiles - start < kTogether ? row_tiles - start : kTogether;
  const int64_t first_row = (start + within % height) * kRows, tile = within / height, first_token = tile * kTile;
  const uint32_t stages = shared_address(shared);
  const int depth = int(width / kDepth);
  const auto fetch = [&](int step) {
    if (step < depth) {
      const uint32_t stage = stages + step % kStages * kStageBytes;
      copy_tile<kRows, kThreads>(stage, query + first_row * width + step * kDepth, width, thread);
      copy_tile<kTile, kThreads>(stage + kRows * kDepth * 2, table + first_token * width + step * kDepth, width, thread);
    }
    commit();
  };
  for (int step = 0; step < kStages - 1; ++step) fetch(step);
  float score[4][4][4] = {};  // 64 queries by 32 tokens of a warp: 16 by 8 at a time
  for (int step = 0; step < depth; ++step) {
    wait<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    const uint32_t queries = stages + step % kStages * kStageBytes, tokens = queries + kRows * kDepth * 2;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_left(a[i], queries, warp_row * 64 + i * 16, k, lane);
#pragma unroll
      for (int j = 0; j < 2; ++j) load_right(b[j], tokens, warp_column * 32 + j * 16, k, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add(score[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  wait<0>();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // row lane / 4 + 8 half: the columns of this lane, then those of four lanes
      Best best;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int place = warp_column * 32 + j * 8 + lane % 4 * 2 + c;
          if (first_token + place < count) add(best, pack<kTile>(score[i][j][half * 2 + c], place));
        }
      }
      best = merged_across(merged_across(best, 1), 2);
      if (lane % 4 == 0) warp_best[warp_column][warp_row * 64 + i * 16 + half * 8 + lane / 4] = best;
    }
  }
  __syncthreads();
  const int64_t row = first_row + thread;
  if (thread < kRows && row < n) {
    Best best = merged(merged(warp_best[0][thread], warp_best[1][thread]), merged(warp_best[2][thread], warp_best[3][thread]));
    Key* at = keys + (row * tiles + tile) * 2;
    at[0] = best.first, at[1] = best.second;
  }
}

}  // namespace

cudaError_t scan_sm80(const uint16_t* query, const uint16_t* table, int64_t width, int64_t n, int64_t count, Key* keys, cudaStream_t stream) {
  const int64_t row_tiles = (n + kRows - 1) / kRows, tiles = (count + kTile - 1) / kTile;
  constexpr int bytes = kStages * kStageBytes;
  const cudaError_t error = cudaFuncSetAttribute(nearest_scan_sm80_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  nearest_scan_sm80_kernel<<<unsigned(row_tiles * tiles), kThreads, bytes, stream>>>(query, table, width, n, count, int(row_tiles), int(tiles), keys);
  return cudaGetLastError();
}

}  // namespace pez
