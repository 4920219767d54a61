// Functions that run on the GPU and, in the tests' simulation, on the host.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define PEZ_HOST_DEVICE __host__ __device__ __forceinline__
#define PEZ_HOST_DEVICE_NOINLINE __host__ __device__ __noinline__  // one copy, called
#define PEZ_UNROLL _Pragma("unroll")
#define PEZ_NO_UNROLL _Pragma("unroll 1")
#else
#define PEZ_HOST_DEVICE inline
#define PEZ_HOST_DEVICE_NOINLINE inline
#define PEZ_UNROLL
#define PEZ_NO_UNROLL
#endif
