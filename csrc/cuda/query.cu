// Queries as fp16 unit vectors, one warp for each row. Reading the rows once bounds it: all loads of a row of 1024
// float32 are in flight together.
#include "scan.h"
#include "team.cuh"

namespace pez::cuda {
namespace {

constexpr int kWarps = 4;

// kPacked: contiguous float32, read 16 bytes at a time. Rows behind x.rows are written as zeros.
template <bool kPacked>
__global__ void __launch_bounds__(32 * kWarps)
    nearest_query_kernel(Matrix x, int width, int padded_rows, uint16_t* query, Rounded* rounded) {
  launch_dependents();
  const Warp warp;
  const int row = int(blockIdx.x) * kWarps + warp.warp();
  if (row >= padded_rows) return;
  uint16_t* to = query + int64_t(row) * width;
  if (row >= x.rows) {
    for (int k = 8 * warp.lane(); k < width; k += 8 * 32) *reinterpret_cast<uint4*>(to + k) = {0, 0, 0, 0};
    return;
  }
  Rounded result;
  if constexpr (kPacked) {
    const float* from = static_cast<const float*>(x.row(row).data);
    result = round_packed(warp, from, int(x.columns), width, [&](int chunk, const Half(&half)[8]) {
      const auto two = [&](int k) { return uint32_t(half[k].raw) | uint32_t(half[k + 1].raw) << 16; };
      *reinterpret_cast<uint4*>(to + 8 * chunk) = {two(0), two(2), two(4), two(6)};
    });
  } else {
    result = round_strided(warp, x.row(row), x.columns, width, [&](int64_t k, Half half) { to[k] = half.raw; });
  }
  if (warp.lane() == 0) rounded[row] = result;
}

}  // namespace

cudaError_t code_overlaps(bool& overlaps) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, nearest_query_kernel<true>);
  overlaps = error == cudaSuccess && attributes.ptxVersion >= 90;
  return error;
}

cudaError_t round_queries(const Matrix& x, const Shape& s, const Buffers& b, cudaStream_t stream) {
  const auto kernel = x.type == Type::f32 && x.packed() ? nearest_query_kernel<true> : nearest_query_kernel<false>;
  const unsigned blocks = unsigned((s.padded_rows + kWarps - 1) / kWarps);
  return launch(configured(stream, blocks, 32 * kWarps), kernel, x, s.width, s.padded_rows, b.query, b.rounded);
}

}  // namespace pez::cuda
