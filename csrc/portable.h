// Functions that run on the GPU and, in the tests' simulation, on the host.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define PEZ_BOTH __host__ __device__ __forceinline__
#define PEZ_CALLED __host__ __device__ __noinline__  // not copied into each place that calls it
#define PEZ_UNROLL _Pragma("unroll")
#define PEZ_ROLLED _Pragma("unroll 1")
#else
#define PEZ_BOTH inline
#define PEZ_CALLED inline
#define PEZ_UNROLL
#define PEZ_ROLLED
#endif
