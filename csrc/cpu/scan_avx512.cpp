#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernels.h"
#include "target.h"

PEZ_TARGET("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")

namespace pez {
namespace {

inline __m512i broadcast(const int8_t* four) {
  int32_t word;
  std::memcpy(&word, four, 4);
  return _mm512_set1_epi32(word);
}

// R queries against 64 tokens: R x 4 accumulators of 16 tokens.
template <int R>
void scan_rows(Query* queries, const Block& block) {
  __m512i sum[R][4];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < 4; ++j) sum[r][j] = _mm512_setzero_si512();
  }
  const int8_t* q[R];
  for (int r = 0; r < R; ++r) q[r] = queries[r].values;
  for (int64_t k = 0; k < block.d4; ++k) {
    const uint8_t* at = block.values + k * kTokens * 4;
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096 + 64), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096 + 128), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(at + 4096 + 192), _MM_HINT_T0);
    __m512i e[4];
    for (int j = 0; j < 4; ++j) e[j] = _mm512_loadu_si512(at + 64 * j);
    for (int r = 0; r < R; ++r) {
      const __m512i four = broadcast(q[r] + k * 4);
      for (int j = 0; j < 4; ++j) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], e[j], four);
    }
  }
  for (int r = 0; r < R; ++r) {
    Query& query = queries[r];
    const __m512 scale = _mm512_set1_ps(query.scale), threshold = _mm512_set1_ps(query.threshold);
    const __m512 slope = _mm512_set1_ps(query.error_slope), base = _mm512_set1_ps(query.error_base);
    const __m512i offset = _mm512_set1_epi32(query.offset);
    __m512 score[4], error[4];
    uint64_t which = 0;
    for (int j = 0; j < 4; ++j) {
      const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[r][j], offset));
      score[j] = _mm512_mul_ps(_mm512_mul_ps(whole, _mm512_loadu_ps(block.scale + 16 * j)), scale);
      error[j] = _mm512_fmadd_ps(_mm512_loadu_ps(block.error + 16 * j), slope, base);
      which |= uint64_t(_mm512_cmp_ps_mask(_mm512_add_ps(score[j], error[j]), threshold, _CMP_GE_OQ)) << (16 * j);
    }
    if (which) {
      float upper[kTokens], lower[kTokens];
      for (int j = 0; j < 4; ++j) {
        _mm512_storeu_ps(upper + 16 * j, _mm512_add_ps(score[j], error[j]));
        _mm512_storeu_ps(lower + 16 * j, _mm512_sub_ps(score[j], error[j]));
      }
      note(query, block, which, upper, lower);
    }
  }
}

void scan(Query* queries, int count, const Block& block) {
  switch (count) {
    case 1: return scan_rows<1>(queries, block);
    case 2: return scan_rows<2>(queries, block);
    case 3: return scan_rows<3>(queries, block);
    case 4: return scan_rows<4>(queries, block);
    case 5: return scan_rows<5>(queries, block);
    default: return scan_rows<6>(queries, block);
  }
}

double dot(const double* q, const float* e, int64_t d) {
  __m512d sum[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  int64_t i = 0;
  for (; i + 16 <= d; i += 16) {
    for (int j = 0; j < 2; ++j) {
      sum[j] = _mm512_fmadd_pd(_mm512_loadu_pd(q + i + 8 * j), _mm512_cvtps_pd(_mm256_loadu_ps(e + i + 8 * j)), sum[j]);
    }
  }
  double rest = 0;
  for (; i < d; ++i) rest += q[i] * double(e[i]);
  return _mm512_reduce_add_pd(_mm512_add_pd(sum[0], sum[1])) + rest;
}

}  // namespace

const Kernels kAvx512Vnni = {"avx512vnni", 127, 6, scan, dot};

}  // namespace pez

PEZ_TARGET_END

#endif
