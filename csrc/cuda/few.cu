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

// A block's tiles on their way through the ring buffer. The tiles are blockIdx.x, blockIdx.x + gridDim.x, and so on.
// Each is read in steps of 64 elements, which take a stage each.
template <int kStages>
struct TableReader {
  int width, k_blocks, steps;
  const uint16_t* from;  // the tile that is fetched next
  uint32_t stages;       // address of the ring buffer in shared memory
  int fetched = 0, k_block = 0, into = 0, stage = 0;

  __device__ __forceinline__ TableReader(const Shape& s, const uint16_t* unit, uint32_t ring)
      : width(s.width),
        k_blocks(s.width / kBlockK),
        steps((s.tiles - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x) * k_blocks),
        from(unit + int64_t(blockIdx.x) * kTile * s.width),
        stages(ring) {}

  // Starts the copies of the next step. Behind the last step it starts none, so that waiting counts alike to the end.
  __device__ __forceinline__ void fetch() {
    if (fetched < steps) {
      cp_async_tile<kTile, kThreads>(stages + into * kTileBytes, from + k_block * kBlockK, width, int(threadIdx.x));
      if (++k_block == k_blocks) k_block = 0, from += int64_t(gridDim.x) * kTile * width;
      if (++into == kStages) into = 0;
    }
    ++fetched;
    cp_async_commit();
  }

  // Waits until the oldest stage has arrived, and until no thread reads the stage that is fetched into next.
  __device__ __forceinline__ void wait() const {
    cp_async_wait<kStages - 2>();
    __syncthreads();
  }

  // The address of the oldest stage, which is used up with it.
  __device__ __forceinline__ uint32_t next() {
    const uint32_t tile = stages + stage * kTileBytes;
    if (++stage == kStages) stage = 0;
    return tile;
  }
};

// Copies the queries to shared memory: width / 64 tiles of kRows rows.
template <int kRows>
__device__ __forceinline__ void load_queries(unsigned char* shared, const uint16_t* query, int width) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int row = warp; row < kRows; row += kWarps) {
#pragma unroll 4
    for (int chunk = lane; chunk < width / 8; chunk += 32) {
      const uint4 halves = *reinterpret_cast<const uint4*>(query + row * width + chunk * 8);
      *reinterpret_cast<uint4*>(shared + chunk / 8 * kRows * kBlockK * 2 + swizzled_offset(row, chunk % 8)) = halves;
    }
  }
}

// A warp's scores: 16 tokens by 8 kOctets queries, in fragments of 16 by 8.
template <int kOctets>
__device__ __forceinline__ void clear(float (&score)[kOctets][4]) {
#pragma unroll
  for (int j = 0; j < kOctets; ++j) score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0;
}

// Adds the products of the warp's 16 tokens and all queries over 64 elements.
template <int kOctets>
__device__ __forceinline__ void multiply(float (&score)[kOctets][4], uint32_t tokens, uint32_t queries) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < kBlockK / 16; ++k) {
    uint32_t a[4];
    load_a(a, tokens, warp * 16, k, lane);
#pragma unroll
    for (int j = 0; j < kOctets / 2; ++j) {
      uint32_t b[4];
      load_b(b, queries, j * 16, k, lane);
      mma_m16n8k16(score[2 * j], a, b[0], b[1]);
      mma_m16n8k16(score[2 * j + 1], a, b[2], b[3]);
    }
  }
}

// Writes the top two of the warp's four groups for each query. Of query 8 j + 2 (lane % 4) + c, this lane holds token
// lane / 4 of the warp and the token 8 behind it; lane ^ 4 holds the tokens next to them. These four are a group.
template <int kOctets>
__device__ __forceinline__ void reduce_warp(const float (&score)[kOctets][4], Key (*warp_keys)[2]) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < kOctets; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float best = larger(score[j][c], score[j][c + 2]);
      best = larger(best, __shfl_xor_sync(kAll, best, 4));
      Top2 two{pack(best, 4 * warp + lane / 8), kLowest};
      two = merged_xor(merged_xor(two, 8), 16);
      if (lane < 4) {
        Key* const to = warp_keys[8 * j + 2 * lane + c];
        to[0] = two.first, to[1] = two.second;
      }
    }
  }
}

// The top two of a tile for one query: those of all warps, merged.
template <int kRows>
__device__ __forceinline__ Top2 merged_warps(const Key (&warp_keys)[kWarps][kRows][2], int row) {
  Top2 best{warp_keys[0][row][0], warp_keys[0][row][1]};
#pragma unroll
  for (int w = 1; w < kWarps; ++w) best = merged(best, {warp_keys[w][row][0], warp_keys[w][row][1]});
  return best;
}

// kRows: 16 or 32 queries. Shared memory: the queries (width / 64 tiles of kRows rows), the stages of the table.
template <int kRows, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    nearest_few_kernel(Shape s, const uint16_t* query, const uint16_t* unit, Top2* keys) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Key warp_keys[kWarps][kRows][2];
  constexpr int kQueryBytes = kRows * kBlockK * 2;  // of 64 elements
  const int thread = threadIdx.x, warp = thread >> 5, k_blocks = s.width / kBlockK;
  const uint32_t queries = shared_address(shared);
  TableReader<kStages> table(s, unit, queries + k_blocks * kQueryBytes);
  for (int step = 0; step < kStages - 1; ++step) table.fetch();
  grid_dependency_wait();  // the table's first tiles are in flight; now the queries
  load_queries<kRows>(shared, query, s.width);

  float score[kRows / 8][4];
  int k_block = 0, tile = blockIdx.x;
  for (int step = 0; step < table.steps; ++step) {
    table.wait();
    table.fetch();
    if (k_block == 0) clear(score);
    multiply(score, table.next(), queries + k_block * kQueryBytes);
    if (++k_block != k_blocks) continue;
    k_block = 0;
    reduce_warp(score, warp_keys[warp]);
    __syncthreads();
    if (thread < s.n) keys[thread * s.tiles + tile] = merged_warps(warp_keys, thread);
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
