// Splice: one launch writes prompts into the slots of templates; one launch sums the gradient back onto the prompts, in
// a fixed order.
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#include "card.h"
#include "launch.h"

namespace pez::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ void store(double* to, double v) { *to = v; }
__device__ __forceinline__ void store(float* to, double v) { *to = float(v); }
// float64 becomes a 16-bit type by way of float32, as in torch.
__device__ __forceinline__ void store(__half* to, double v) { *to = __float2half_rn(float(v)); }
__device__ __forceinline__ void store(__nv_bfloat16* to, double v) { *to = __float2bfloat16_rn(float(v)); }

__device__ __forceinline__ double read(const void* data, Type type, int64_t at) {
  return type == Type::f64 ? static_cast<const double*>(data)[at] : double(load(data, type, at));
}

// One block writes one position of one row. T is the type of the template and of out.
template <class T>
__global__ void __launch_bounds__(kThreads) splice_kernel(SpliceArgs s, T* out) {
  __shared__ int64_t slot;
  const int64_t b = blockIdx.x / s.positions, position = blockIdx.x % s.positions;
  if (threadIdx.x == 0) slot = -1;
  __syncthreads();
  for (int64_t l = threadIdx.x; l < s.slots; l += kThreads) {
    if (s.slot[l] == position) slot = l;
  }
  __syncthreads();
  T* to = out + int64_t(blockIdx.x) * s.width;
  if (slot < 0) {
    const T* from = static_cast<const T*>(s.base) + b * s.row_stride + position * s.position_stride;
    for (int64_t k = threadIdx.x; k < s.width; k += kThreads) to[k] = from[k * s.column_stride];
  } else {
    const int64_t owner = s.owner[b], from = (owner * s.slots + slot) * s.width;
    // No host code has checked the index: that would wait for the device.
    const bool inside = owner >= 0 && owner < s.prompts;
    for (int64_t k = threadIdx.x; k < s.width; k += kThreads)
      store(to + k, inside ? read(s.hard, s.hard_type, from + k) : double(NAN));
  }
}

// One block sums 128 columns of one prompt's slot. Sum is float or double; the rows that carry the prompt are added in
// ascending order. The latency of reading them bounds it, so eight rows and the next owners are in flight at once.
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads) splice_backward_kernel(SpliceArgs s, const T* grad, Sum* total) {
  constexpr int kRowsInFlight = 8;
  const int64_t columns = (s.width + kThreads - 1) / kThreads, pair = blockIdx.x / columns;
  const int64_t prompt = pair / s.slots, k = blockIdx.x % columns * kThreads + threadIdx.x;
  const int64_t position = s.slot[pair % s.slots];
  const T* from = grad + position * s.position_stride + k * s.column_stride;
  const bool inside = k < s.width && position >= 0 && position < s.positions;
  const int lane = threadIdx.x & 31;
  const auto owner_of = [&](int64_t row) { return row < s.rows ? s.owner[row] : -1; };
  Sum sum = 0;
  int64_t owner = owner_of(lane);
  for (int64_t start = 0; start < s.rows; start += 32) {
    unsigned carriers = __ballot_sync(0xffffffffu, owner == prompt);
    owner = owner_of(start + 32 + lane);
    while (carriers) {
      const int count = min(kRowsInFlight, __popc(carriers));
      T read[kRowsInFlight];
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        const int64_t row = start + __ffs(carriers) - 1;
        carriers &= carriers - 1;  // 0 stays 0
        if (i < count && inside) read[i] = from[row * s.row_stride];
      }
#pragma unroll
      for (int i = 0; i < kRowsInFlight; ++i) {
        if (i < count && inside) sum += Sum(read[i]);
      }
    }
  }
  if (k < s.width) total[pair * s.width + k] = sum;
}

}  // namespace

cudaError_t splice(const SpliceArgs& s, void* out, cudaStream_t stream) {
  const int64_t blocks = s.rows * s.positions;
  if (blocks == 0 || s.width == 0) return cudaSuccess;
  const auto run = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    return launch(configured(stream, unsigned(blocks), kThreads), splice_kernel<T>, s, to);
  };
  switch (s.type) {
    case Type::f64: return run(static_cast<double*>(out));
    case Type::f32: return run(static_cast<float*>(out));
    case Type::f16: return run(static_cast<__half*>(out));
    default: return run(static_cast<__nv_bfloat16*>(out));
  }
}

cudaError_t splice_backward(const SpliceArgs& s, void* total, cudaStream_t stream) {
  const int64_t blocks = s.prompts * s.slots * ((s.width + kThreads - 1) / kThreads);
  if (blocks == 0) return cudaSuccess;
  const auto run = [&](auto* grad, auto* sums) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(grad)>>;
    using Sum = std::remove_pointer_t<decltype(sums)>;
    return launch(configured(stream, unsigned(blocks), kThreads), splice_backward_kernel<T, Sum>, s, grad, sums);
  };
  switch (s.type) {
    case Type::f64: return run(static_cast<const double*>(s.base), static_cast<double*>(total));
    case Type::f32: return run(static_cast<const float*>(s.base), static_cast<float*>(total));
    case Type::f16: return run(static_cast<const __half*>(s.base), static_cast<float*>(total));
    default: return run(static_cast<const __nv_bfloat16*>(s.base), static_cast<float*>(total));
  }
}

}  // namespace pez::cuda
