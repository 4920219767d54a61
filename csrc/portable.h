// Functions that run on the GPU and, in the tests' simulation, on the host.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define PEZ_BOTH __host__ __device__ __forceinline__
#else
#define PEZ_BOTH inline
#endif
