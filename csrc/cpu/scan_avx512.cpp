#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernels.h"
#include "target.h"

PEZ_TARGET("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")

namespace pez {
namespace {

constexpr int kPrefetchBytes = 4096;  // distance of the prefetch in the table, in bytes

inline __m512i broadcast(const int8_t* four) {
  int32_t word;
  std::memcpy(&word, four, 4);
  return _mm512_set1_epi32(word);
}

// Sums of R queries against 64 tokens, in R x 4 registers of 16 tokens. Only unrolled loops keep these in registers.
template <int R>
void multiply(const Query* queries, const Block& block, int32_t (*sums)[kTokens]) {
  __m512i sum[R][4];
  const int8_t* q[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    q[r] = queries[r].values;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[r][j] = _mm512_setzero_si512();
  }
  const uint8_t* at = block.values;
  for (int64_t k = 0; k < block.d4; ++k, at += kTokens * 4) {
    __m512i e[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchBytes + 64 * j), _MM_HINT_T0);
      e[j] = _mm512_loadu_si512(at + 64 * j);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i four = broadcast(q[r] + k * 4);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], e[j], four);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_storeu_si512(sums[r] + 16 * j, sum[r][j]);
  }
}

void compare(Query& query, const Block& block, const int32_t* sums) {
  const __m512 scale = _mm512_set1_ps(query.scale), threshold = _mm512_set1_ps(query.threshold);
  const __m512 slope = _mm512_set1_ps(query.error_slope), base = _mm512_set1_ps(query.error_base);
  const __m512i offset = _mm512_set1_epi32(query.offset);
  __m512 score[4], error[4];
  uint64_t which = 0;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 integer = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums + 16 * j), offset));
    score[j] = _mm512_mul_ps(_mm512_mul_ps(integer, _mm512_loadu_ps(block.scale + 16 * j)), scale);
    error[j] = _mm512_fmadd_ps(_mm512_loadu_ps(block.error + 16 * j), slope, base);
    which |= uint64_t(_mm512_cmp_ps_mask(_mm512_add_ps(score[j], error[j]), threshold, _CMP_GE_OQ)) << (16 * j);
  }
  if (!which) return;
  float upper[kTokens], lower[kTokens];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    _mm512_storeu_ps(upper + 16 * j, _mm512_add_ps(score[j], error[j]));
    _mm512_storeu_ps(lower + 16 * j, _mm512_sub_ps(score[j], error[j]));
  }
  query.listener->note(query, block, which, upper, lower);
}

void scan(Query* queries, int count, const Block& block) {
  int32_t sums[6][kTokens];
  switch (count) {
    case 1: multiply<1>(queries, block, sums); break;
    case 2: multiply<2>(queries, block, sums); break;
    case 3: multiply<3>(queries, block, sums); break;
    case 4: multiply<4>(queries, block, sums); break;
    case 5: multiply<5>(queries, block, sums); break;
    default: multiply<6>(queries, block, sums);
  }
  for (int r = 0; r < count; ++r) compare(queries[r], block, sums[r]);
}

double dot(const float* q, const float* e, int64_t d) {
  __m512d sum[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  int64_t i = 0;
  for (; i + 16 <= d; i += 16) {
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(q + i + 8 * j)),
                    b = _mm512_cvtps_pd(_mm256_loadu_ps(e + i + 8 * j));
      sum[j] = _mm512_fmadd_pd(a, b, sum[j]);
    }
  }
  double rest = 0;
  for (; i < d; ++i) rest += double(q[i]) * double(e[i]);
  return _mm512_reduce_add_pd(_mm512_add_pd(sum[0], sum[1])) + rest;
}

}  // namespace

const Kernels kAvx512Vnni = {"avx512vnni", 127, 6, scan, dot};

}  // namespace pez

PEZ_TARGET_END

#endif
