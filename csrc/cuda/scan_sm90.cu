// The scan of many queries on sm_90a: tiles of 128 queries and 256 tokens by two warp groups of wgmma, fed by a third through the tensor
// memory accelerator.
//
// Bound by the tensor cores. Two blocks are a cluster and share what both need: with many queries the tile of tokens (each has queries of
// its own), with an odd number of tiles of queries the tile of queries (each has tokens of its own), so that none multiplies rows that are
// not there. Each half of what is shared is fetched by one of them and goes to both. The ring of four stages keeps the accelerator ahead
// while a warp group looks for its best keys: 2 instructions a score, during which the other one multiplies.
#include "hopper.cuh"
#include "keys.cuh"
#include "scan.h"

namespace pez::cuda {
namespace {

using namespace sm90;

constexpr int kRows = 128, kTokens = 2 * kTile, kDepth = 64, kStages = 4;
constexpr int kQueryBytes = kRows * kDepth * 2, kTokenBytes = kTokens * kDepth * 2, kStageBytes = kQueryBytes + kTokenBytes;
constexpr int kGroupThreads = 128, kConsumers = 2;
constexpr unsigned kTogether = 8;  // what of the rows' side meets a tile of tokens one after the other
constexpr int kOddTiles = 7;       // with more tiles of queries the tokens are shared even where one of a pair is empty

// What the clusters do, one item after the other: of the rows' side and of the tokens' side either pairs of tiles or single tiles.
struct Work {
  unsigned rows, tokens;
  bool share_rows;

  // The tiles of block `rank` of the cluster that has item i.
  __device__ void tiles(unsigned i, unsigned rank, int& row_tile, int& token_tile) const {
    const unsigned together = kTogether * tokens, start = i / together * kTogether, within = i % together;
    const unsigned height = rows - start < kTogether ? rows - start : kTogether;
    const unsigned row = start + within % height, token = within / height;
    row_tile = int(share_rows ? row : 2 * row + rank);
    token_tile = int(share_rows ? 2 * token + rank : token);
  }
};

// The maps' boxes are 64 queries and 128 tokens, by 64 elements.
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__((1 + kConsumers) * kGroupThreads, 1)
    nearest_scan_sm90_kernel(const __grid_constant__ CUtensorMap query, const __grid_constant__ CUtensorMap table, Work work, Shape s, Best* keys) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char unaligned[];
  __shared__ __align__(8) uint64_t barriers[2 * kStages];
  const uint32_t stages = (shared_address(unaligned) + 1023) & ~1023u, full = shared_address(barriers), empty = full + kStages * 8;
  const int group = threadIdx.x / kGroupThreads, thread = threadIdx.x % kGroupThreads, depth = s.width / kDepth;
  const unsigned rank = cluster_rank(), items = work.rows * work.tokens, clusters = gridDim.x / 2;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      make_barrier(full + stage * 8, 1);
      make_barrier(empty + stage * 8, 2 * kConsumers);
    }
    publish_barriers();
  }
  cluster_sync();

  int stage = 0, row_tile, token_tile;
  uint32_t parity = 0;
  const auto next = [&] {
    if (++stage == kStages) stage = 0, parity ^= 1;
  };

  if (group == 0) {
    fewer_registers<40>();
    if (thread == 0) {
      wait_for_previous();
      for (unsigned i = blockIdx.x / 2; i < items; i += clusters) {
        work.tiles(i, rank, row_tile, token_tile);
#pragma unroll 1
        for (int k = 0; k < depth; ++k, next()) {
          const uint32_t at = stages + stage * kStageBytes, barrier = full + stage * 8;
          const auto rows = [&](unsigned half, bool to_all) {
            copy_box(at + half * (kQueryBytes / 2), &query, k * kDepth, row_tile * kRows + int(half) * (kRows / 2), barrier, to_all);
          };
          const auto tokens = [&](unsigned half, bool to_all) {
            copy_box(at + kQueryBytes + half * (kTokenBytes / 2), &table, k * kDepth, token_tile * kTokens + int(half) * kTile, barrier, to_all);
          };
          wait(empty + stage * 8, parity ^ 1);  // passes at once the first time round
          expect(barrier, kStageBytes);
          if (work.share_rows) {
            rows(rank, true), tokens(0, false), tokens(1, false);
          } else {
            rows(0, false), rows(1, false), tokens(rank, true);
          }
        }
      }
      let_next_begin();
    }
  } else {
    more_registers<232>();
    const int lane = thread & 31, quarter = lane % 4, consumer = group - 1;
    const auto release = [&](int which) {
      if (thread < 2) arrive(empty + which * 8, thread);
    };
    for (unsigned i = blockIdx.x / 2; i < items; i += clusters) {
      work.tiles(i, rank, row_tile, token_tile);
      float score[128];
      int before = 0;
#pragma unroll 1
      for (int k = 0; k < depth; ++k, next()) {
        wait(full + stage * 8, parity);
        const uint32_t rows = stages + stage * kStageBytes + consumer * (kQueryBytes / 2), tokens = stages + stage * kStageBytes + kQueryBytes;
        begin_products();
#pragma unroll
        for (int j = 0; j < kDepth / 16; ++j) multiply(score, descriptor(rows + j * 32), descriptor(tokens + j * 32), k + j);
        end_products();
        if (k > 0) {
          wait_products<1>();
          release(before);
        }
        before = stage;
      }
      wait_products<0>();
      release(before);

      // This lane's eight groups of two rows in each of two tiles, then of four lanes: each hands on what is not its own.
      Best best[2][2];
#pragma unroll
      for (int side = 0; side < 2; ++side) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          best[side][half] = from_quarter(best_groups<0, 8>([&](int j, int c) { return score[4 * (16 * side + j) + 2 * half + c]; }), quarter);
        }
      }
      const int half = quarter & 1, side = quarter >> 1;
      const auto of_half = [&](int side) { return merged(half ? best[side][1] : best[side][0], across(half ? best[side][0] : best[side][1], 1)); };
      const Best first = of_half(0), second = of_half(1), all = merged(side ? second : first, across(side ? first : second, 2));
      const int row = row_tile * kRows + consumer * 64 + thread / 32 * 16 + half * 8 + lane / 4, tile = 2 * token_tile + side;
      if (row < s.n && tile < s.tiles) keys[row * s.tiles + tile] = all;
    }
  }
  cluster_sync();  // no block leaves while the other may still write to it
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

cudaError_t find_encoder(Encode& encode) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  encode = reinterpret_cast<Encode>(found);
  return error != cudaSuccess ? error : result == cudaDriverEntryPointSuccess ? cudaSuccess : cudaErrorNotSupported;
}

// Boxes of box_rows rows by 64 elements; what lies outside is read as zero.
cudaError_t make_map(Encode encode, CUtensorMap& map, const uint16_t* data, int64_t rows, int64_t width, int box_rows) {
  const cuuint64_t sizes[2] = {cuuint64_t(width), cuuint64_t(rows)}, strides[1] = {cuuint64_t(width) * 2};
  const cuuint32_t box[2] = {kDepth, cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<uint16_t*>(data), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

int scan_sm90_bytes() { return kStages * kStageBytes + 1024; }  // stages begin at a multiple of 1024

cudaError_t scan_sm90(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream) {
  static Encode encode = nullptr;  // the same whoever finds it first
  CUtensorMap query, table;
  cudaError_t error = encode ? cudaSuccess : find_encoder(encode);
  if (error == cudaSuccess) error = make_map(encode, query, b.query, s.padded_rows, s.width, kRows / 2);
  if (error == cudaSuccess) error = make_map(encode, table, p.unit, p.rows, s.width, kTile);
  if (error != cudaSuccess) return error;
  const unsigned row_tiles = unsigned(s.n + kRows - 1) / kRows, token_tiles = unsigned(s.tiles + 1) / 2;
  const bool share_rows = row_tiles % 2 == 1 && row_tiles <= kOddTiles;
  const Work work{share_rows ? row_tiles : (row_tiles + 1) / 2, share_rows ? (token_tiles + 1) / 2 : token_tiles, share_rows};
  const unsigned clusters = work.rows * work.tokens, most = unsigned(card.multiprocessors) / 2;
  return launch_after(card, stream, 2 * (clusters < most ? clusters : most), (1 + kConsumers) * kGroupThreads, scan_sm90_bytes(),
                      nearest_scan_sm90_kernel, query, table, work, s, b.keys);
}

}  // namespace pez::cuda
