#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernels.h"
#include "target.h"

PEZ_TARGET("avx2,fma")

namespace pez {
namespace {

// vpmaddubsw saturates at 2^15; the sum of two products of 255 and 63 stays below.
constexpr int kLevels = 63;

inline __m256i add_products(__m256i sum, __m256i e, __m256i q) {
  const __m256i pairs = _mm256_maddubs_epi16(e, q);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#include "scan_ymm.h"

}  // namespace

const Kernels kAvx2 = {"avx2", kLevels, 4, scan, dot};

}  // namespace pez

PEZ_TARGET_END

#endif
