// Many queries, three launches: the queries as fp16 unit vectors, the scan, the decision.
#include "decide.cuh"

namespace pez {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kPadding = 256;

__global__ void __launch_bounds__(kThreads) nearest_query_kernel(Queries x, int64_t d, int64_t width, uint16_t* query, float* error, int32_t* state) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  uint16_t* to = query + row * width;
  Rounded rounded{kZero, 0};
  if (row < x.n) {
    rounded = round_query(Warp{}, x.row(row), d, width, [&](int64_t k, Half half) { to[k] = half.raw; });
  } else {
    for (int64_t k = threadIdx.x & 31; k < width; k += 32) to[k] = 0;
  }
  if ((threadIdx.x & 31) == 0 && row < x.n) error[row] = rounded.error, state[row] = rounded.kind;
}

__global__ void __launch_bounds__(128) nearest_finish_kernel(Queries x, Vocabulary v, const float* residual, const float* error, const Key* keys, int tiles, Answer out) {
  const int64_t row = int64_t(blockIdx.x) * 4 + threadIdx.x / 32;
  if (row >= x.n) return;
  finish(x, v, row, {Kind(out.state[row]), error[row]}, *residual, keys + row * tiles * 2, tiles, out);
}

// Whether the device runs the code of sm_90a, and that was built.
bool hopper(int device) {
#if defined(PEZ_SM90A)
  int major = 0, minor = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 && minor == 0;
#else
  return device < 0;
#endif
}

}  // namespace

cudaError_t nearest_many(const Queries& x, const Vocabulary& v, const Prepared& p, uint16_t* query, float* error, Key* keys,
                         const Answer& out, cudaStream_t stream) {
  const int64_t rows = (x.n + kPadding - 1) / kPadding * kPadding;
  const int tiles = int((v.count + kTile - 1) / kTile);
  nearest_query_kernel<<<unsigned(rows / kWarps), kThreads, 0, stream>>>(x, v.d, p.width, query, error, out.state);
  cudaError_t failed = cudaGetLastError();
  if (failed != cudaSuccess) return failed;
  int device = 0, multiprocessors = 0;
  failed = cudaGetDevice(&device);
  if (failed != cudaSuccess) return failed;
  if (hopper(device)) {
    failed = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (failed == cudaSuccess) failed = scan_sm90(query, rows, p.unit, p.rows, p.width, x.n, v.count, keys, multiprocessors, stream);
  } else {
    failed = scan_sm80(query, p.unit, p.width, x.n, v.count, keys, stream);
  }
  if (failed != cudaSuccess) return failed;
  nearest_finish_kernel<<<unsigned((x.n + 3) / 4), 128, 0, stream>>>(x, v, p.residual, error, keys, tiles, out);
  return cudaGetLastError();
}

}  // namespace pez
