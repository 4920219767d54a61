#include "kernels.h"

namespace pez {
namespace {

void scan(Query* queries, int count, const Block& block) {
  for (int r = 0; r < count; ++r) {
    Query& query = queries[r];
    int32_t sum[kTokens] = {};
    for (int64_t k = 0; k < block.d4; ++k) {
      const uint8_t* e = block.values + k * kTokens * 4;
      const int8_t* q = query.values + k * 4;
      for (int t = 0; t < kTokens; ++t) {
        sum[t] += e[t * 4] * q[0] + e[t * 4 + 1] * q[1] + e[t * 4 + 2] * q[2] + e[t * 4 + 3] * q[3];
      }
    }
    float upper[kTokens], lower[kTokens];
    uint64_t which = 0;
    for (int t = 0; t < kTokens; ++t) {
      const float score = float(sum[t] - query.offset) * block.scale[t] * query.scale;
      const float error = block.error[t] * query.error_slope + query.error_base;
      upper[t] = score + error;
      lower[t] = score - error;
      which |= uint64_t(upper[t] >= query.threshold) << t;
    }
    if (which) query.listener->note(query, block, which, upper, lower);
  }
}

double dot(const float* q, const float* e, int64_t d) {
  double sum[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= d; i += 4) {
    for (int j = 0; j < 4; ++j) sum[j] += double(q[i + j]) * double(e[i + j]);
  }
  for (; i < d; ++i) sum[0] += double(q[i]) * double(e[i]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

const Kernels kPortable = {"portable", 127, 1, scan, dot};

}  // namespace pez
