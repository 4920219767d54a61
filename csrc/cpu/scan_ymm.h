// The scan with 32-byte registers. scan_avx2.cpp and scan_avxvnni.cpp include it behind `add_products`.

inline __m256i broadcast(const int8_t* four) {
  int32_t word;
  std::memcpy(&word, four, 4);
  return _mm256_set1_epi32(word);
}

// Sums of R queries against 64 tokens, 16 at a time, in R x 2 registers of 8 tokens.
template <int R>
void multiply(const Query* queries, const Block& block, int32_t (*sums)[kTokens]) {
  for (int part = 0; part < kTokens; part += 16) {
    __m256i sum[R][2];
    const int8_t* q[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      q[r] = queries[r].values;
      sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    }
    const uint8_t* at = block.values + part * 4;
    for (int64_t k = 0; k < block.d4; ++k, at += kTokens * 4) {
      const __m256i e0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
      const __m256i e1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256i four = broadcast(q[r] + k * 4);
        sum[r][0] = add_products(sum[r][0], e0, four);
        sum[r][1] = add_products(sum[r][1], e1, four);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums[r] + part), sum[r][0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums[r] + part + 8), sum[r][1]);
    }
  }
}

void compare(Query& query, const Block& block, const int32_t* sums) {
  const __m256 scale = _mm256_set1_ps(query.scale), threshold = _mm256_set1_ps(query.threshold);
  const __m256 slope = _mm256_set1_ps(query.error_slope), base = _mm256_set1_ps(query.error_base);
  const __m256i offset = _mm256_set1_epi32(query.offset);
  float upper[kTokens], lower[kTokens];
  uint64_t which = 0;
  for (int t = 0; t < kTokens; t += 8) {
    const __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + t));
    const __m256 integer = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
    const __m256 score = _mm256_mul_ps(_mm256_mul_ps(integer, _mm256_loadu_ps(block.scale + t)), scale);
    const __m256 error = _mm256_fmadd_ps(_mm256_loadu_ps(block.error + t), slope, base);
    const __m256 upper8 = _mm256_add_ps(score, error);
    _mm256_storeu_ps(upper + t, upper8);
    _mm256_storeu_ps(lower + t, _mm256_sub_ps(score, error));
    which |= uint64_t(_mm256_movemask_ps(_mm256_cmp_ps(upper8, threshold, _CMP_GE_OQ))) << t;
  }
  if (which) query.listener->note(query, block, which, upper, lower);
}

void scan(Query* queries, int count, const Block& block) {
  int32_t sums[4][kTokens];
  switch (count) {
    case 1: multiply<1>(queries, block, sums); break;
    case 2: multiply<2>(queries, block, sums); break;
    case 3: multiply<3>(queries, block, sums); break;
    default: multiply<4>(queries, block, sums);
  }
  for (int r = 0; r < count; ++r) compare(queries[r], block, sums[r]);
}

double dot(const float* q, const float* e, int64_t d) {
  __m256d sum[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  int64_t i = 0;
  for (; i + 8 <= d; i += 8) {
    for (int j = 0; j < 2; ++j) {
      const __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(q + i + 4 * j)), b = _mm256_cvtps_pd(_mm_loadu_ps(e + i + 4 * j));
      sum[j] = _mm256_fmadd_pd(a, b, sum[j]);
    }
  }
  double parts[4], rest = 0;
  _mm256_storeu_pd(parts, _mm256_add_pd(sum[0], sum[1]));
  for (; i < d; ++i) rest += double(q[i]) * double(e[i]);
  return (parts[0] + parts[1]) + (parts[2] + parts[3]) + rest;
}
