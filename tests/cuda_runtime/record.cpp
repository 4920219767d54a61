// The functions that a test calls by ctypes. It adds a device for every card that it plays, and the kernels that the
// card has code for: void** does not tell how large the arguments of a launch are. Then it reads the launches.
#include <cstdint>

#include "state.h"

#define RECORD_API extern "C" __attribute__((visibility("default")))

using namespace stand_in;

// Dynamic and static shared memory that a kernel has without asking.
constexpr int kUsualSharedBytes = 48 << 10;  // dynamic and static shared memory that needs no attribute

// Adds a card and returns its number; no number is used twice. Errors of earlier cards are forgotten.
RECORD_API int record_add_device(int major, int minor, int multiprocessors, int shared_bytes, int ptx_version) {
  const Lock lock(state().mutex);
  cudaGetLastError();
  state().devices.push_back({major, minor, multiprocessors, shared_bytes, ptx_version, {}});
  return int(state().devices.size()) - 1;
}

// Tells a card that it has code for a kernel, and what the launch of it must know. cluster: three numbers.
RECORD_API void record_add_kernel(int device, const char* name, int parameters, const int* sizes, int static_bytes,
                                  int most_threads, const int* cluster) {
  const Lock lock(state().mutex);
  const int usual = static_bytes < kUsualSharedBytes ? kUsualSharedBytes - static_bytes : 0;
  state().devices.at(device).kernels[name] = {
      {sizes, sizes + parameters}, static_bytes, most_threads,
      dim3(unsigned(cluster[0]), unsigned(cluster[1]), unsigned(cluster[2])), usual};
}

RECORD_API int record_count() { return int(state().launches.size()); }
RECORD_API void record_clear() { state().launches.clear(); }
RECORD_API const char* record_kernel(int launch) { return state().launches.at(launch).kernel.c_str(); }

// Writes grid, block, cluster (0 without), shared memory, overlaps, stream, number of arguments: 13 numbers.
RECORD_API void record_numbers(int launch, uint64_t* to) {
  const Recorded& made = state().launches.at(launch);
  for (const dim3& size : {made.grid, made.block, made.cluster}) *to++ = size.x, *to++ = size.y, *to++ = size.z;
  *to++ = made.shared_bytes, *to++ = made.overlaps;
  *to++ = uint64_t(reinterpret_cast<uintptr_t>(made.stream)), *to++ = made.arguments.size();
}

RECORD_API const unsigned char* record_argument(int launch, int argument, int* bytes) {
  const auto& found = state().launches.at(launch).arguments.at(argument);
  return *bytes = int(found.size()), found.data();
}
