// What of a card decides on launches, and launches that overlap.
#pragma once

#include <cuda_runtime_api.h>

namespace pez::cuda {

struct Card {
  int device = 0, major = 0, minor = 0, multiprocessors = 0, shared_bytes = 0;  // shared_bytes: what a block may use
  bool overlaps = false;  // kernels may begin before the one before has ended
};

inline cudaError_t current_card(Card& card) {
  cudaError_t error = cudaGetDevice(&card.device);
  const auto ask = [&](int& to, cudaDeviceAttr which) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&to, which, card.device);
  };
  ask(card.major, cudaDevAttrComputeCapabilityMajor);
  ask(card.minor, cudaDevAttrComputeCapabilityMinor);
  ask(card.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(card.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return error;
}

// Launches a kernel that begins while the one before it on the stream still runs, where card and code can do that (from sm_90 on): it must call
// wait_for_previous() before it reads what that one writes. The one before says with let_next_begin() when the next may take its place.
template <class... Parameters, class... Arguments>
cudaError_t launch_after(const Card& card, cudaStream_t stream, unsigned blocks, unsigned threads, int shared_bytes, void (*kernel)(Parameters...),
                         Arguments... arguments) {
  if (shared_bytes > 48 << 10) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = {blocks, 1, 1};
  configuration.blockDim = {threads, 1, 1};
  configuration.dynamicSmemBytes = size_t(shared_bytes);
  configuration.stream = stream;
  configuration.attrs = &overlap;
  configuration.numAttrs = card.overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&configuration, kernel, Parameters(arguments)...);
}

#if defined(__CUDACC__)
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

}  // namespace pez::cuda
