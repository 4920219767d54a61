// What the stand-in for the CUDA runtime knows: devices, registered kernels, recorded launches.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace stand_in {

struct Description {  // what a card knows of a kernel
  std::vector<int> sizes;
  int static_bytes, most_threads;
  dim3 cluster;               // 1 x 1 x 1 where the kernel requires none
  int dynamic_bytes_allowed;  // the attribute
};

struct Device {
  int major, minor, multiprocessors, shared_bytes, ptx_version;
  std::map<std::string, Description> kernels;
};

struct Kernel {  // registered; its address is the cudaKernel_t
  std::string name;
};

struct Recorded {
  std::string kernel;
  dim3 grid, block, cluster;  // cluster: of the launch; all 0 where it asks for none
  size_t shared_bytes;
  bool overlaps;
  cudaStream_t stream;
  std::vector<std::vector<unsigned char>> arguments;
};

struct State {
  std::recursive_mutex mutex;
  std::vector<Device> devices;
  std::map<const void*, Kernel> kernels;
  std::vector<Recorded> launches;
};

State& state();

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace stand_in
