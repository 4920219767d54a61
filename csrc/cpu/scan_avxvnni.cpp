#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernels.h"
#include "target.h"

PEZ_TARGET("avx2,fma,avxvnni")

namespace pez {
namespace {

inline __m256i add_products(__m256i sum, __m256i e, __m256i q) { return _mm256_dpbusd_avx_epi32(sum, e, q); }

#include "scan_ymm.h"

}  // namespace

const Kernels kAvxVnni = {"avxvnni", 127, 4, scan, dot};

}  // namespace pez

PEZ_TARGET_END

#endif
