// The attributes of a card that decide on launches, and launches that overlap.
#pragma once

#include <cuda_runtime_api.h>

namespace pez::cuda {

struct Card {
  int major = 0, minor = 0, multiprocessors = 0;
  int shared_bytes = 0;   // the most that a block may use
  bool overlaps = false;  // a kernel may begin before the previous kernel has ended
};

inline cudaError_t read_attributes(int device, Card& card) {
  cudaError_t error = cudaSuccess;
  const auto ask = [&](int& to, cudaDeviceAttr which) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&to, which, device);
  };
  ask(card.major, cudaDevAttrComputeCapabilityMajor);
  ask(card.minor, cudaDevAttrComputeCapabilityMinor);
  ask(card.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(card.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return error;
}

// Launches a kernel. Returns its own error: the last error of the thread may be that of an earlier call.
template <class... Parameters, class... Arguments>
cudaError_t launch(cudaLaunchConfig_t configuration, void (*kernel)(Parameters...), Arguments... arguments) {
  return cudaLaunchKernelEx(&configuration, kernel, Parameters(arguments)...);
}

inline cudaLaunchConfig_t configured(cudaStream_t stream, unsigned blocks, unsigned threads, int shared_bytes = 0) {
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = {blocks, 1, 1};
  configuration.blockDim = {threads, 1, 1};
  configuration.dynamicSmemBytes = size_t(shared_bytes);
  configuration.stream = stream;
  return configuration;
}

// Launches a kernel that begins while the previous kernel of the stream still runs (programmatic dependent launch),
// where card and code can do that (from sm_90 on). The kernel must call grid_dependency_wait() before it reads what the
// previous kernel writes. The previous kernel calls launch_dependents() when the next one may begin.
template <class... Parameters, class... Arguments>
cudaError_t launch_dependent(const Card& card, cudaStream_t stream, unsigned blocks, unsigned threads, int shared_bytes,
                             void (*kernel)(Parameters...), Arguments... arguments) {
  if (shared_bytes > 48 << 10) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t configuration = configured(stream, blocks, threads, shared_bytes);
  configuration.attrs = &overlap;
  configuration.numAttrs = card.overlaps ? 1 : 0;
  return launch(configuration, kernel, arguments...);
}

#if defined(__CUDACC__)
__device__ __forceinline__ void grid_dependency_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

}  // namespace pez::cuda
