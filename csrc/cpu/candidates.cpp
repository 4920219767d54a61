#include "candidates.h"

#include <algorithm>
#include <vector>

namespace pez {

double ExactQuery::cosine(int64_t position) const {
  const int64_t d = x->columns, token = table->ids[position];
  const double inverse = scaled.inverse * table->inverse[position];
  if (x->contiguous_floats() && table->weight.contiguous_floats()) {
    return kernels->dot(x->floats(row), table->weight.floats(token), d) * (scaled.power * table->power[position]) *
           inverse;
  }
  thread_local std::vector<double> scratch;
  scratch.resize(2 * d);
  double *q = scratch.data(), *e = q + d;
  load_row(*x, row, q);
  load_row(table->weight, token, e);
  const double power = table->power[position];
  double sum[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= d; i += 4) {
    for (int j = 0; j < 4; ++j) sum[j] += (q[i + j] * scaled.power) * (e[i + j] * power);
  }
  for (; i < d; ++i) sum[0] += (q[i] * scaled.power) * (e[i] * power);
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) * inverse;
}

void Candidates::tighten() {
  const double error = float64_error(exact.x->columns);
  for (int i = 0; i < count; ++i) {
    const double cosine = exact.cosine(entries[i].position);
    entries[i].upper = cosine + error;
    best = std::max(best, cosine - error);
  }
  tightened = true;
  prune();
}

void Candidates::note(Query& query, const Block& block, uint64_t which, const float* upper, const float* lower) {
  int lead = -1;
  for (uint64_t rest = which; rest; rest &= rest - 1) {
    const int t = __builtin_ctzll(rest);
    const float score = 0.5f * (upper[t] + lower[t]);
    if (score > best_score) best_score = score, lead = t;
  }
  // The token's cosine less its error is a tighter bound than its score less the error: half as many candidates remain.
  if (lead >= 0) best = std::max(best, exact.cosine(block.first + lead) - float64_error(exact.x->columns));
  for (; which; which &= which - 1) {
    const int t = __builtin_ctzll(which);
    if (upper[t] < best) continue;
    if (count == kCapacity) {
      prune();
      if (count > kCapacity / 2) tighten();
      if (count > kCapacity / 2) {
        overflowed = true;
        query.threshold = std::numeric_limits<float>::infinity();
        return;
      }
    }
    entries[count++] = {upper[t], int32_t(block.first + t)};
  }
  query.threshold = not_above(best);
}

}  // namespace pez
