// A few queries: bound by reading the table once. One launch: every block streams tiles of 128 tokens past the queries, which it
// keeps in shared memory, and the last block to be done decides.
#include "mma.cuh"
#include "decide.cuh"

namespace pez {
namespace {

using namespace sm80;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTileBytes = kTile * kDepth * 2;

// kRows queries, a multiple of 16; shared memory: queries (width / 64 tiles of kRows rows), stages of the table, per-warp results.
template <int kRows, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    nearest_few_kernel(Queries x, Vocabulary v, Prepared p, Key* keys, unsigned* ready, Answer out, int tiles) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Rounded rounded[kRows];
  __shared__ Best warp_best[kWarps][kRows];
  __shared__ bool last;
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const int depth = int(p.width / kDepth);  // tiles of 64 elements in a row
  const uint32_t query = shared_address(shared), stages = query + depth * kRows * kDepth * 2;
  const int mine = (tiles - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x), steps = mine * depth;

  const auto fetch = [&](int step) {
    if (step < steps) {
      const int64_t tile = blockIdx.x + int64_t(step / depth) * gridDim.x;
      copy_tile<kTile, kThreads>(stages + step % kStages * kTileBytes, p.unit + tile * kTile * p.width + step % depth * kDepth, p.width, thread);
    }
    commit();
  };
  for (int step = 0; step < kStages - 1; ++step) fetch(step);

  // The table is on its way; the queries meanwhile.
  for (int row = warp; row < kRows; row += kWarps) {
    if (row < x.n) {
      const Rounded r = round_query(Warp{}, x.row(row), v.d, p.width, [&](int64_t k, Half half) {
        const uint32_t at = uint32_t(k / kDepth) * kRows * kDepth * 2 + chunk_at(row, int(k % kDepth) / 8) + uint32_t(k % 8) * 2;
        *reinterpret_cast<uint16_t*>(shared + at) = half.raw;
      });
      if (lane == 0) rounded[row] = r;
    } else {
      for (int k = lane; k < p.width; k += 32) {
        const uint32_t at = uint32_t(k / kDepth) * kRows * kDepth * 2 + chunk_at(row, k % kDepth / 8) + uint32_t(k % 8) * 2;
        *reinterpret_cast<uint16_t*>(shared + at) = 0;
      }
    }
  }

  float score[kRows / 8][4];
  for (int step = 0; step < steps; ++step) {
    wait<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    if (step % depth == 0) {
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0;
    }
    const uint32_t table = stages + step % kStages * kTileBytes, queries = query + step % depth * kRows * kDepth * 2;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[4];
      load_left(a, table, warp * 16, k, lane);
#pragma unroll
      for (int j = 0; j < kRows / 16; ++j) {
        uint32_t b[4];
        load_right(b, queries, j * 16, k, lane);
        multiply_add(score[2 * j], a, b[0], b[1]);
        multiply_add(score[2 * j + 1], a, b[2], b[3]);
      }
    }
    if (step % depth != depth - 1) continue;
    const int tile = int(blockIdx.x) + step / depth * int(gridDim.x), place = warp * 16 + lane / 4;
    const int64_t token = int64_t(tile) * kTile + place;
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {  // column 8 j + 2 (lane % 4) + c: its two rows of this lane, then those of eight lanes
        Best best;
        if (token < v.count) add(best, pack<kTile>(score[j][c], place));
        if (token + 8 < v.count) add(best, pack<kTile>(score[j][c + 2], place + 8));
        for (int bit = 4; bit < 32; bit <<= 1) best = merged_across(best, bit);
        if (lane < 4) warp_best[warp][8 * j + 2 * lane + c] = best;
      }
    }
    __syncthreads();
    for (int row = thread; row < x.n; row += kThreads) {
      Best best = warp_best[0][row];
      for (int w = 1; w < kWarps; ++w) best = merged(best, warp_best[w][row]);
      Key* at = keys + (row * int64_t(tiles) + tile) * 2;
      at[0] = best.first, at[1] = best.second;
    }
  }
  wait<0>();

  __threadfence();
  __syncthreads();
  if (thread == 0) last = atomicInc(ready, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const float residual = *p.residual;
  for (int row = warp; row < x.n; row += kWarps) finish(x, v, row, rounded[row], residual, keys + row * int64_t(tiles) * 2, tiles, out);
}

constexpr int kStages = 4;

int shared_bytes(int rows, int64_t width) { return int(rows * width * 2) + kStages * kTileBytes; }

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

template <int kRows>
cudaError_t launch(const Queries& x, const Vocabulary& v, const Prepared& p, Key* keys, unsigned* ready, const Answer& out, cudaStream_t stream) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const auto kernel = nearest_few_kernel<kRows, kStages>;
  const int bytes = shared_bytes(kRows, p.width), tiles = int((v.count + kTile - 1) / kTile);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const int blocks = attribute(cudaDevAttrMultiProcessorCount, device);
  kernel<<<tiles < blocks ? tiles : blocks, kThreads, bytes, stream>>>(x, v, p, keys, ready, out, tiles);
  return cudaGetLastError();
}

}  // namespace

int few_rows(int64_t width, int device) {
  const int room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - (12 << 10);  // less what is not dynamic
  for (int rows : {128, 64, 32, 16}) {
    if (shared_bytes(rows, width) <= room) return rows;
  }
  return 0;
}

cudaError_t nearest_few(const Queries& x, const Vocabulary& v, const Prepared& p, Key* keys, unsigned* ready, const Answer& out, cudaStream_t stream) {
  if (x.n <= 16) return launch<16>(x, v, p, keys, ready, out, stream);
  if (x.n <= 32) return launch<32>(x, v, p, keys, ready, out, stream);
  if (x.n <= 64) return launch<64>(x, v, p, keys, ready, out, stream);
  return launch<128>(x, v, p, keys, ready, out, stream);
}

}  // namespace pez
