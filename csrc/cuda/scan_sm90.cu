// The scan of many queries on sm_90a: two consumer warp groups run wgmma on tiles of 128 queries and 256 tokens; one
// producer warp group loads the tiles by TMA.
//
// The tensor cores bound it. Two blocks are a cluster and share one operand, so that no block multiplies rows that do
// not exist. With many queries they share the tile of tokens, and each block has its own queries. With an odd number of
// query tiles they share the tile of queries, and each block has its own tokens. Each block loads one half of the
// shared tile and multicasts it to both. The ring buffer of four stages lets the TMA run ahead while a warp group runs
// its epilogue (2 instructions a score); the other warp group multiplies meanwhile.
#include "hopper.cuh"
#include "keys.cuh"
#include "scan.h"

namespace pez::cuda {
namespace {

using namespace sm90;

constexpr int kRows = 128, kTokens = 2 * kTile, kBlockK = 64, kStages = 4;
constexpr int kQueryBytes = kRows * kBlockK * 2, kTokenBytes = kTokens * kBlockK * 2,
              kStageBytes = kQueryBytes + kTokenBytes;
constexpr int kGroupThreads = 128, kConsumers = 2;
constexpr unsigned kSwizzle = 8;  // items of the rows' side in succession over one token tile
// With more query tiles the tokens are shared, even if one block of a pair gets no queries.
constexpr int kOddTiles = 7;

// Assigns items to clusters, in order. An item is a pair of tiles on one side (rows or tokens) and one shared tile on
// the other.
struct TileScheduler {
  unsigned rows, tokens;
  bool share_rows;

  // The tiles of block `rank` of the cluster that has item i.
  __device__ void tiles(unsigned i, unsigned rank, int& row_tile, int& token_tile) const {
    const unsigned band = kSwizzle * tokens, start = i / band * kSwizzle, within = i % band;
    const unsigned height = rows - start < kSwizzle ? rows - start : kSwizzle;
    const unsigned row = start + within % height, token = within / height;
    row_tile = int(share_rows ? row : 2 * row + rank);
    token_tile = int(share_rows ? 2 * token + rank : token);
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// The ring buffer, at the stage whose turn it is. `full` and `empty` have a barrier for each stage: the TMA's bytes
// arrive at the first, the consumers of both blocks at the second.
struct Ring {
  uint32_t stages, full, empty;  // addresses in shared memory
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

__device__ __forceinline__ void init_barriers(uint32_t full, uint32_t empty) {
  for (int stage = 0; stage < kStages; ++stage) {
    mbarrier_init(full + stage * 8, 1);
    mbarrier_init(empty + stage * 8, 2 * kConsumers);
  }
  fence_mbarrier_init();
}

// One thread's work: it loads the tiles of one item, as soon as the consumers have released a stage.
__device__ __forceinline__ void produce(Ring& ring, const CUtensorMap& query, const CUtensorMap& table, int row_tile,
                                        int token_tile, int k_blocks, unsigned rank, bool share_rows) {
#pragma unroll 1
  for (int k = 0; k < k_blocks; ++k, ring.next()) {
    const uint32_t at = ring.stages + ring.stage * kStageBytes, barrier = ring.full + ring.stage * 8;
    const auto rows = [&](unsigned half, bool to_all) {
      tma_load(at + half * (kQueryBytes / 2), &query, k * kBlockK, row_tile * kRows + int(half) * (kRows / 2), barrier,
               to_all);
    };
    const auto tokens = [&](unsigned half, bool to_all) {
      tma_load(at + kQueryBytes + half * (kTokenBytes / 2), &table, k * kBlockK,
               token_tile * kTokens + int(half) * kTile, barrier, to_all);
    };
    mbarrier_wait(ring.empty + ring.stage * 8, ring.parity ^ 1);  // passes at once in the first round
    mbarrier_arrive_expect_tx(barrier, kStageBytes);
    if (share_rows) {
      rows(rank, true), tokens(0, false), tokens(1, false);
    } else {
      rows(0, false), rows(1, false), tokens(rank, true);
    }
  }
}

// A warp group's work: the scores of its 64 queries and 256 tokens. It releases a stage when the products that read it
// are done, while those of the next stage run.
__device__ __forceinline__ void multiply(Ring& ring, float (&score)[128], int k_blocks, int consumer, int thread) {
  const auto release = [&](int which) {
    if (thread < 2) mbarrier_arrive_remote(ring.empty + which * 8, thread);
  };
  int before = 0;
#pragma unroll 1
  for (int k = 0; k < k_blocks; ++k, ring.next()) {
    mbarrier_wait(ring.full + ring.stage * 8, ring.parity);
    const uint32_t rows = ring.stages + ring.stage * kStageBytes + consumer * (kQueryBytes / 2),
                   tokens = ring.stages + ring.stage * kStageBytes + kQueryBytes;
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kBlockK / 16; ++j)
      wgmma_m64n256k16(score, wgmma_descriptor(rows + j * 32), wgmma_descriptor(tokens + j * 32), k + j);
    wgmma_commit();
    if (k > 0) {
      wgmma_wait<1>();
      release(before);
    }
    before = ring.stage;
  }
  wgmma_wait<0>();
  release(before);
}

// The top two of one row in one tile; which ones depends on the lane. First the top two of this lane's eight groups, of
// two rows in each of two tiles. Then four lanes merge: each passes on what another lane keeps.
__device__ __forceinline__ Top2 reduced(const float (&score)[128], int quad_lane) {
  Top2 best[2][2];
#pragma unroll
  for (int side = 0; side < 2; ++side) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      best[side][half] = with_quad_lane(
          top2_groups<0, 8>([&](int j, int c) { return score[4 * (16 * side + j) + 2 * half + c]; }), quad_lane);
    }
  }
  const int half = quad_lane & 1, side = quad_lane >> 1;
  const auto of_half = [&](int side) {
    return merged(half ? best[side][1] : best[side][0], shuffled_xor(half ? best[side][0] : best[side][1], 1));
  };
  const Top2 first = of_half(0), second = of_half(1);
  return merged(side ? second : first, shuffled_xor(side ? first : second, 2));
}
#endif

// The boxes of the tensor maps are 64 queries and 128 tokens, by 64 elements.
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__((1 + kConsumers) * kGroupThreads, 1)
    nearest_scan_sm90_kernel(const __grid_constant__ CUtensorMap query, const __grid_constant__ CUtensorMap table,
                             TileScheduler scheduler, Shape s, Top2* keys) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char unaligned[];
  __shared__ __align__(8) uint64_t barriers[2 * kStages];
  Ring ring{(shared_address(unaligned) + 1023) & ~1023u, shared_address(barriers),
            shared_address(barriers) + kStages * 8};
  const int group = threadIdx.x / kGroupThreads, thread = threadIdx.x % kGroupThreads, k_blocks = s.width / kBlockK;
  const unsigned rank = cluster_rank(), items = scheduler.rows * scheduler.tokens, clusters = gridDim.x / 2;
  if (threadIdx.x == 0) init_barriers(ring.full, ring.empty);
  cluster_sync();

  int row_tile, token_tile;
  if (group == 0) {
    setmaxnreg_dec<40>();
    if (thread == 0) {
      grid_dependency_wait();
      for (unsigned i = blockIdx.x / 2; i < items; i += clusters) {
        scheduler.tiles(i, rank, row_tile, token_tile);
        produce(ring, query, table, row_tile, token_tile, k_blocks, rank, scheduler.share_rows);
      }
      launch_dependents();
    }
  } else {
    setmaxnreg_inc<232>();
    const int lane = thread & 31, quad_lane = lane % 4, half = quad_lane & 1, side = quad_lane >> 1;
    for (unsigned i = blockIdx.x / 2; i < items; i += clusters) {
      scheduler.tiles(i, rank, row_tile, token_tile);
      float score[128];
      multiply(ring, score, k_blocks, group - 1, thread);
      const Top2 best = reduced(score, quad_lane);
      const int row = row_tile * kRows + (group - 1) * 64 + thread / 32 * 16 + half * 8 + lane / 4,
                tile = 2 * token_tile + side;
      if (row < s.n && tile < s.tiles) keys[row * s.tiles + tile] = best;
    }
  }
  cluster_sync();  // no block exits while the other may still write to its shared memory
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

cudaError_t find_encoder(Encode& encode) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  encode = reinterpret_cast<Encode>(found);
  return error != cudaSuccess ? error : result == cudaDriverEntryPointSuccess ? cudaSuccess : cudaErrorNotSupported;
}

// A tensor map with boxes of box_rows rows by 64 elements; elements outside read as zero.
cudaError_t make_tensor_map(Encode encode, CUtensorMap& map, const uint16_t* data, int64_t rows, int64_t width,
                            int box_rows) {
  const cuuint64_t sizes[2] = {cuuint64_t(width), cuuint64_t(rows)}, strides[1] = {cuuint64_t(width) * 2};
  const cuuint32_t box[2] = {kBlockK, cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<uint16_t*>(data), sizes, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

int scan_sm90_bytes() { return kStages * kStageBytes + 1024; }  // stages begin at a multiple of 1024

cudaError_t scan_sm90(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream) {
  static Encode encode = nullptr;  // every thread finds the same value
  CUtensorMap query, table;
  cudaError_t error = encode ? cudaSuccess : find_encoder(encode);
  if (error == cudaSuccess) error = make_tensor_map(encode, query, b.query, s.padded_rows, s.width, kRows / 2);
  if (error == cudaSuccess) error = make_tensor_map(encode, table, p.unit, p.rows, s.width, kTile);
  if (error != cudaSuccess) return error;
  const unsigned row_tiles = unsigned(s.n + kRows - 1) / kRows, token_tiles = unsigned(s.tiles + 1) / 2;
  const bool share_rows = row_tiles % 2 == 1 && row_tiles <= kOddTiles;
  const TileScheduler scheduler{share_rows ? row_tiles : (row_tiles + 1) / 2,
                                share_rows ? (token_tiles + 1) / 2 : token_tiles, share_rows};
  const unsigned clusters = scheduler.rows * scheduler.tokens, most = unsigned(card.multiprocessors) / 2;
  return launch_dependent(card, stream, 2 * (clusters < most ? clusters : most), (1 + kConsumers) * kGroupThreads,
                          scan_sm90_bytes(), nearest_scan_sm90_kernel, query, table, scheduler, s, b.keys);
}

}  // namespace pez::cuda
