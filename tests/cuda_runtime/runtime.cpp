// A stand-in for the CUDA runtime: the functions that compiled launchers call. No kernel runs; each launch is recorded
// with the bytes of its arguments, or refused as the real runtime refuses it. record.cpp says what cards there are.
#include <cuda.h>

#include <cstdint>
#include <cstring>

#include "state.h"

// Kernels are registered before this file's globals would be made.
stand_in::State& stand_in::state() {
  static State* const made = new State;
  return *made;
}

namespace {

using namespace stand_in;

struct Configuration {  // between <<<...>>> and the stub of the kernel
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::vector<Configuration> configurations;

cudaError_t noted(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

Device* device_at(int number) {
  auto& devices = state().devices;
  return number >= 0 && number < int(devices.size()) ? &devices[number] : nullptr;
}

// The kernel as the current device knows it.
cudaError_t find(const Kernel* kernel, Device*& device, Description*& description) {
  device = device_at(current_device);
  if (!device) return cudaErrorInvalidDevice;
  if (!kernel) return cudaErrorInvalidDeviceFunction;
  const auto found = device->kernels.find(kernel->name);
  if (found == device->kernels.end()) return cudaErrorNoKernelImageForDevice;
  description = &found->second;
  return cudaSuccess;
}

const Kernel* registered(const void* function) {
  const auto found = state().kernels.find(function);
  return found == state().kernels.end() ? nullptr : &found->second;
}

bool dimensions_valid(const dim3& grid, const dim3& block) {
  const auto within = [](unsigned value, unsigned most) { return value >= 1 && value <= most; };
  return within(grid.x, 0x7fffffff) && within(grid.y, 65535) && within(grid.z, 65535) && within(block.x, 1024) &&
         within(block.y, 1024) && within(block.z, 64) && block.x * block.y * block.z <= 1024;
}

cudaError_t read_attributes(const cudaLaunchConfig_t& configuration, Recorded& launch) {
  for (unsigned i = 0; i < configuration.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = configuration.attrs[i];
    if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      launch.overlaps = attribute.val.programmaticStreamSerializationAllowed != 0;
    } else if (attribute.id == cudaLaunchAttributeClusterDimension) {
      launch.cluster = dim3(attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z);
    } else {
      return cudaErrorNotSupported;
    }
  }
  return cudaSuccess;
}

cudaError_t check(const Recorded& launch, const Description& kernel) {
  const dim3 &grid = launch.grid, &block = launch.block;
  if (!dimensions_valid(grid, block)) return cudaErrorInvalidConfiguration;
  if (int(block.x * block.y * block.z) > kernel.most_threads) return cudaErrorInvalidValue;
  if (launch.shared_bytes > size_t(kernel.dynamic_bytes_allowed)) return cudaErrorInvalidValue;
  const dim3 cluster = launch.cluster.x ? launch.cluster : kernel.cluster;
  if (!cluster.y || !cluster.z || cluster.x * cluster.y * cluster.z > 8) return cudaErrorInvalidClusterSize;
  if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) return cudaErrorInvalidClusterSize;
  return cudaSuccess;
}

cudaError_t launch(const Kernel* kernel, const cudaLaunchConfig_t& configuration, void** arguments) {
  const Lock lock(state().mutex);
  Device* device = nullptr;
  Description* description = nullptr;
  if (const cudaError_t error = find(kernel, device, description)) return error;
  Recorded made{kernel->name, configuration.gridDim, configuration.blockDim, dim3(0, 0, 0),
                configuration.dynamicSmemBytes, false, configuration.stream, {}};
  if (const cudaError_t error = read_attributes(configuration, made)) return error;
  if (const cudaError_t error = check(made, *description)) return error;
  if (!arguments && !description->sizes.empty()) return cudaErrorInvalidValue;
  for (size_t i = 0; i < description->sizes.size(); ++i) {
    const auto* from = static_cast<const unsigned char*>(arguments[i]);
    made.arguments.emplace_back(from, from + description->sizes[i]);
  }
  state().launches.push_back(made);
  return cudaSuccess;
}

cudaError_t launch(const Kernel* kernel, dim3 grid, dim3 block, void** arguments, size_t bytes, cudaStream_t stream) {
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = grid, configuration.blockDim = block;
  configuration.dynamicSmemBytes = bytes, configuration.stream = stream;
  return noted(launch(kernel, configuration, arguments));
}

}  // namespace

// What nvcc's stubs call.
extern "C" {

void** __cudaRegisterFatBinary(void* binary) { return new void*(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void** handle) { delete handle; }

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const Lock lock(state().mutex);
  state().kernels[function] = {name};
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t bytes, CUstream_st* stream) {
  configurations.push_back({grid, block, bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* bytes, void* stream) {
  if (configurations.empty()) return noted(cudaErrorMissingConfiguration);
  const Configuration top = configurations.back();
  configurations.pop_back();
  *grid = top.grid, *block = top.block, *bytes = top.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = top.stream;
  return cudaSuccess;
}

#if CUDART_VERSION >= 12010
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  const Lock lock(state().mutex);
  const Kernel* found = registered(function);
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<Kernel*>(found));
  return noted(found ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t bytes,
                               cudaStream_t stream) {
  return launch(reinterpret_cast<const Kernel*>(kernel), grid, block, arguments, bytes, stream);
}
#endif
}

// The runtime's public functions.
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t bytes,
                             cudaStream_t stream) {
  return launch(registered(function), grid, block, arguments, bytes, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void* function, void** arguments) {
  return noted(launch(registered(function), *configuration, arguments));
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const Lock lock(state().mutex);
  Device* device = nullptr;
  Description* kernel = nullptr;
  if (const cudaError_t error = find(registered(function), device, kernel)) return noted(error);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return noted(cudaErrorNotSupported);
  if (value < 0 || value + kernel->static_bytes > device->shared_bytes) return noted(cudaErrorInvalidValue);
  kernel->dynamic_bytes_allowed = value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  const Lock lock(state().mutex);
  Device* device = nullptr;
  Description* kernel = nullptr;
  if (const cudaError_t error = find(registered(function), device, kernel)) return noted(error);
  *attributes = {};
  attributes->sharedSizeBytes = size_t(kernel->static_bytes);
  attributes->maxThreadsPerBlock = kernel->most_threads;
  attributes->ptxVersion = attributes->binaryVersion = device->ptx_version;
  attributes->maxDynamicSharedSizeBytes = kernel->dynamic_bytes_allowed;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* number) { return *number = current_device, cudaSuccess; }

cudaError_t cudaSetDevice(int number) {
  const Lock lock(state().mutex);
  if (!device_at(number)) return noted(cudaErrorInvalidDevice);
  return current_device = number, cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  const Lock lock(state().mutex);
  const Device* device = device_at(number);
  if (!device) return noted(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: return *value = device->major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: return *value = device->minor, cudaSuccess;
    case cudaDevAttrMultiProcessorCount: return *value = device->multiprocessors, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return *value = device->shared_bytes, cudaSuccess;
    default: return noted(cudaErrorNotSupported);
  }
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  return last_error = cudaSuccess, error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorInvalidClusterSize: return "cluster misconfiguration";
    case cudaErrorNotSupported: return "operation not supported";
    default: return "another error of the stand-in for the CUDA runtime";
  }
}

#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
#else
cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
#endif
  const bool known = !std::strcmp(symbol, "cuTensorMapEncodeTiled");
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  if (result) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
