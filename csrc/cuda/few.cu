// The scan of a few queries, at most 32. Reading the table once bounds it.
//
// Every block keeps the queries in shared memory and streams tiles of 128 tokens past them. The tiles go through a ring
// buffer of as many stages as fit. cp.async fills it from the first instruction on, while the previous kernel still
// rounds the queries. Tokens are the long side (M) of the product: each of eight warps has 16 of a tile.
#include "ampere.cuh"
#include "keys.cuh"
#include "scan.h"

namespace pez::cuda {
namespace {

using namespace sm80;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTileBytes = kTile * kBlockK * 2;

// kRows: 16 or 32 queries. Shared memory: the queries (width / 64 tiles of kRows rows), the stages of the table.
template <int kRows, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    nearest_few_kernel(Shape s, const uint16_t* query, const uint16_t* unit, Top2* keys) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Key warp_keys[kWarps][kRows][2];
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const int k_blocks = s.width / kBlockK;  // K blocks of 64 elements in a row
  const uint32_t queries = shared_address(shared), stages = queries + k_blocks * kRows * kBlockK * 2;
  const int mine = (s.tiles - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x), steps = mine * k_blocks;

  const uint16_t* from = unit + int64_t(blockIdx.x) * kTile * s.width;
  int fetched = 0, fetched_k_block = 0, into = 0;
  const auto fetch = [&] {
    if (fetched < steps) {
      cp_async_tile<kTile, kThreads>(stages + into * kTileBytes, from + fetched_k_block * kBlockK, s.width, thread);
      if (++fetched_k_block == k_blocks) fetched_k_block = 0, from += int64_t(gridDim.x) * kTile * s.width;
      if (++into == kStages) into = 0;
    }
    ++fetched;
    cp_async_commit();
  };
  for (int step = 0; step < kStages - 1; ++step) fetch();

  grid_dependency_wait();  // the table's first tiles are in flight; now the queries
  for (int row = warp; row < kRows; row += kWarps) {
#pragma unroll 4
    for (int chunk = lane; chunk < s.width / 8; chunk += 32) {
      const uint4 halves = *reinterpret_cast<const uint4*>(query + row * s.width + chunk * 8);
      *reinterpret_cast<uint4*>(shared + chunk / 8 * kRows * kBlockK * 2 + swizzled_offset(row, chunk % 8)) = halves;
    }
  }

  float score[kRows / 8][4];
  int k_block = 0, stage = 0, tile = blockIdx.x;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    fetch();
    if (k_block == 0) {
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0;
    }
    const uint32_t left = stages + stage * kTileBytes, right = queries + k_block * kRows * kBlockK * 2;
    if (++stage == kStages) stage = 0;
#pragma unroll
    for (int k = 0; k < kBlockK / 16; ++k) {
      uint32_t a[4];
      load_a(a, left, warp * 16, k, lane);
#pragma unroll
      for (int j = 0; j < kRows / 16; ++j) {
        uint32_t b[4];
        load_b(b, right, j * 16, k, lane);
        mma_m16n8k16(score[2 * j], a, b[0], b[1]);
        mma_m16n8k16(score[2 * j + 1], a, b[2], b[3]);
      }
    }
    if (++k_block != k_blocks) continue;
    k_block = 0;
    // Of query 8 j + 2 (lane % 4) + c, this lane holds token lane / 4 of the warp and the token 8 behind it; lane ^ 4
    // holds the tokens next to them. These four tokens are a group, so the warp has four groups of each query.
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float best = larger(score[j][c], score[j][c + 2]);
        best = larger(best, __shfl_xor_sync(kAll, best, 4));
        Top2 two{pack(best, 4 * warp + lane / 8), kLowest};
        two = merged_xor(merged_xor(two, 8), 16);
        if (lane < 4)
          warp_keys[warp][8 * j + 2 * lane + c][0] = two.first, warp_keys[warp][8 * j + 2 * lane + c][1] = two.second;
      }
    }
    __syncthreads();
    if (thread < s.n) {
      Top2 best{warp_keys[0][thread][0], warp_keys[0][thread][1]};
#pragma unroll
      for (int w = 1; w < kWarps; ++w) best = merged(best, {warp_keys[w][thread][0], warp_keys[w][thread][1]});
      keys[thread * s.tiles + tile] = best;
    }
    tile += gridDim.x;
  }
  launch_dependents();
  cp_async_wait<0>();
}

template <int kRows, int kStages>
cudaError_t launch(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, int bytes,
                   cudaStream_t stream) {
  const int blocks = s.tiles < card.multiprocessors ? s.tiles : card.multiprocessors;
  return launch_dependent(card, stream, unsigned(blocks), kThreads, bytes, nearest_few_kernel<kRows, kStages>, s,
                          b.query, p.unit, b.keys);
}

}  // namespace

FewPlan few_plan(int n, int width, int limit) {
  if (n > kFewRows) return {};
  const int rows = n <= 16 ? 16 : 32, room = limit - kWarps * rows * 8 - rows * width * 2;
  for (int stages : {10, 6, 4, 3}) {
    if (stages * kTileBytes <= room) return {rows, stages, rows * width * 2 + stages * kTileBytes};
  }
  return {};
}

cudaError_t scan_few(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream) {
  const FewPlan plan = few_plan(s.n, s.width, card.shared_bytes);
  const auto run = [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    switch (plan.stages) {
      case 10: return launch<kRows, 10>(s, p, b, card, plan.bytes, stream);
      case 6: return launch<kRows, 6>(s, p, b, card, plan.bytes, stream);
      case 4: return launch<kRows, 4>(s, p, b, card, plan.bytes, stream);
      default: return launch<kRows, 3>(s, p, b, card, plan.bytes, stream);
    }
  };
  return plan.rows == 16 ? run(std::integral_constant<int, 16>()) : run(std::integral_constant<int, 32>());
}

}  // namespace pez::cuda
