// The scan with 32-byte registers, included by scan_avx2.cpp and scan_avxvnni.cpp behind their definition of `add_products`.

inline __m256i broadcast(const int8_t* four) {
  int32_t word;
  std::memcpy(&word, four, 4);
  return _mm256_set1_epi32(word);
}

// R queries against 16 tokens at a time: R x 2 accumulators of 8 tokens.
template <int R>
void scan_rows(Query* queries, const Block& block) {
  float upper[R][kTokens], lower[R][kTokens];
  uint64_t which[R] = {};
  for (int part = 0; part < kTokens; part += 16) {
    __m256i sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < block.d4; ++k) {
      const uint8_t* at = block.values + (k * kTokens + part) * 4;
      const __m256i e0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
      const __m256i e1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32));
      for (int r = 0; r < R; ++r) {
        const __m256i four = broadcast(queries[r].values + k * 4);
        sum[r][0] = add_products(sum[r][0], e0, four);
        sum[r][1] = add_products(sum[r][1], e1, four);
      }
    }
    for (int r = 0; r < R; ++r) {
      const Query& query = queries[r];
      const __m256 scale = _mm256_set1_ps(query.scale), threshold = _mm256_set1_ps(query.threshold);
      const __m256 slope = _mm256_set1_ps(query.error_slope), base = _mm256_set1_ps(query.error_base);
      for (int j = 0; j < 2; ++j) {
        const int t = part + 8 * j;
        const __m256 whole = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[r][j], _mm256_set1_epi32(query.offset)));
        const __m256 score = _mm256_mul_ps(_mm256_mul_ps(whole, _mm256_loadu_ps(block.scale + t)), scale);
        const __m256 error = _mm256_fmadd_ps(_mm256_loadu_ps(block.error + t), slope, base);
        const __m256 most = _mm256_add_ps(score, error);
        _mm256_storeu_ps(upper[r] + t, most);
        _mm256_storeu_ps(lower[r] + t, _mm256_sub_ps(score, error));
        which[r] |= uint64_t(_mm256_movemask_ps(_mm256_cmp_ps(most, threshold, _CMP_GE_OQ))) << t;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    if (which[r]) note(queries[r], block, which[r], upper[r], lower[r]);
  }
}

void scan(Query* queries, int count, const Block& block) {
  switch (count) {
    case 1: return scan_rows<1>(queries, block);
    case 2: return scan_rows<2>(queries, block);
    case 3: return scan_rows<3>(queries, block);
    default: return scan_rows<4>(queries, block);
  }
}

double dot(const double* q, const float* e, int64_t d) {
  __m256d sum[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
  int64_t i = 0;
  for (; i + 8 <= d; i += 8) {
    for (int j = 0; j < 2; ++j) {
      sum[j] = _mm256_fmadd_pd(_mm256_loadu_pd(q + i + 4 * j), _mm256_cvtps_pd(_mm_loadu_ps(e + i + 4 * j)), sum[j]);
    }
  }
  double parts[4], rest = 0;
  _mm256_storeu_pd(parts, _mm256_add_pd(sum[0], sum[1]));
  for (; i < d; ++i) rest += q[i] * double(e[i]);
  return (parts[0] + parts[1]) + (parts[2] + parts[3]) + rest;
}
