// The scan of many queries on sm_90a: tiles of 128 queries and 256 tokens by two warp groups of wgmma, fed by a third through the tensor
// memory accelerator, the tile of tokens shared by the two blocks of a cluster.
#include "hopper.cuh"
#include "scan.h"
#include "warp.cuh"

namespace pez {
namespace {

using namespace sm90;

constexpr int kRows = 128, kTokens = 2 * kTile, kDepth = 64, kStages = 4;
constexpr int kQueryBytes = kRows * kDepth * 2, kTokenBytes = kTokens * kDepth * 2, kStageBytes = kQueryBytes + kTokenBytes;
constexpr int kGroupThreads = 128, kConsumers = 2;
constexpr int kTogether = 8;  // pairs of row tiles that meet a tile of tokens one after the other

struct Work {
  int64_t row_pairs, token_tiles;

  // Which pair of row tiles and which tile of tokens a cluster takes as item number i.
  __device__ void item(int64_t i, int64_t& row_pair, int64_t& token_tile) const {
    const int64_t start = i / (kTogether * token_tiles) * kTogether, within = i % (kTogether * token_tiles);
    const int64_t height = row_pairs - start < kTogether ? row_pairs - start : kTogether;
    row_pair = start + within % height;
    token_tile = within / height;
  }
};

__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__((1 + kConsumers) * kGroupThreads, 1)
    nearest_scan_sm90_kernel(const __grid_constant__ CUtensorMap query, const __grid_constant__ CUtensorMap table, int64_t n, int64_t count,
                             int depth, Work work, int tiles, Key* keys) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char unaligned[];
  __shared__ __align__(8) uint64_t barriers[2 * kStages];
  const uint32_t stages = (shared_address(unaligned) + 1023) & ~1023u, full = shared_address(barriers), empty = full + kStages * 8;
  const int group = threadIdx.x / kGroupThreads, thread = threadIdx.x % kGroupThreads;
  const uint32_t rank = cluster_rank();
  const int64_t items = work.row_pairs * work.token_tiles, clusters = gridDim.x / 2;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      make_barrier(full + s * 8, 1);
      make_barrier(empty + s * 8, 2 * kConsumers);
    }
    publish_barriers();
  }
  cluster_sync();

  int stage = 0;
  uint32_t parity = 0;
  const auto next = [&] {
    if (++stage == kStages) stage = 0, parity ^= 1;
  };

  if (group == 0) {
    fewer_registers<40>();
    if (thread == 0) {
      for (int64_t i = blockIdx.x / 2; i < items; i += clusters) {
        int64_t row_pair, token_tile;
        work.item(i, row_pair, token_tile);
        for (int k = 0; k < depth; ++k, next()) {
          const uint32_t at = stages + stage * kStageBytes, barrier = full + stage * 8;
          wait(empty + stage * 8, parity ^ 1);  // passes at once the first time round
          expect(barrier, kStageBytes);
          copy_box(at, &query, k * kDepth, int((2 * row_pair + rank) * kRows), barrier);
          copy_box_to_all(at + kQueryBytes + rank * (kTokenBytes / 2), &table, k * kDepth, int(token_tile * kTokens + rank * kTile), barrier, 3);
        }
      }
    }
  } else {
    more_registers<232>();
    const int lane = thread & 31, consumer = group - 1;
    const auto release = [&](int which) {
      if (thread < 2) arrive(empty + which * 8, thread);
    };
    for (int64_t i = blockIdx.x / 2; i < items; i += clusters) {
      int64_t row_pair, token_tile;
      work.item(i, row_pair, token_tile);
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

      const int64_t first_row = (2 * row_pair + rank) * kRows + consumer * 64 + thread / 32 * 16 + lane / 4;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int64_t tile = 2 * token_tile + side;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Best best;
#pragma unroll
          for (int j = 0; j < 16; ++j) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const int place = 8 * j + 2 * (lane % 4) + c;
              if (tile * kTile + place < count) add(best, pack<kTile>(score[4 * (16 * side + j) + 2 * half + c], place));
            }
          }
          best = merged_across(merged_across(best, 1), 2);
          const int64_t row = first_row + 8 * half;
          if (lane % 4 == 0 && row < n && tile < tiles) *reinterpret_cast<int2*>(keys + (row * tiles + tile) * 2) = {best.first, best.second};
        }
      }
    }
  }
  cluster_sync();  // no block leaves while the other may still write to it
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

cudaError_t encoder(Encode& encode) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
  encode = reinterpret_cast<Encode>(found);
  return error != cudaSuccess ? error : result == cudaDriverEntryPointSuccess ? cudaSuccess : cudaErrorNotSupported;
}

// Boxes of 128 rows by 64 elements; what lies outside is read as zero.
cudaError_t make_map(Encode encode, CUtensorMap& map, const uint16_t* data, int64_t rows, int64_t width) {
  const cuuint64_t sizes[2] = {cuuint64_t(width), cuuint64_t(rows)}, strides[1] = {cuuint64_t(width) * 2};
  const cuuint32_t box[2] = {kDepth, kTile}, steps[2] = {1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<uint16_t*>(data), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t scan_sm90(const uint16_t* query, int64_t query_rows, const uint16_t* table, int64_t table_rows, int64_t width, int64_t n, int64_t count,
                      Key* keys, int multiprocessors, cudaStream_t stream) {
  Encode encode;
  CUtensorMap query_map, table_map;
  cudaError_t error = encoder(encode);
  if (error == cudaSuccess) error = make_map(encode, query_map, query, query_rows, width);
  if (error == cudaSuccess) error = make_map(encode, table_map, table, table_rows, width);
  constexpr int bytes = kStages * kStageBytes + 1024;
  if (error == cudaSuccess) error = cudaFuncSetAttribute(nearest_scan_sm90_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const Work work{(n + 2 * kRows - 1) / (2 * kRows), (count + kTokens - 1) / kTokens};
  const int64_t clusters = work.row_pairs * work.token_tiles, most = multiprocessors / 2;
  nearest_scan_sm90_kernel<<<unsigned(2 * (clusters < most ? clusters : most)), (1 + kConsumers) * kGroupThreads, bytes, stream>>>(
      query_map, table_map, n, count, int(width / kDepth), work, int((count + kTile - 1) / kTile), keys);
  return cudaGetLastError();
}

}  // namespace pez
