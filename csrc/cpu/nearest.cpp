#include "nearest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "candidates.h"

namespace pez {
namespace {

constexpr float kNever = std::numeric_limits<float>::infinity();
constexpr int64_t kBlockBytes = 384 << 10;  // of queries that are scanned against one block of tokens after the other
constexpr int64_t kChunkBytes = 16 << 20;   // of places for candidates at once

// Rounds a query to whole numbers; what the scan adds to its scores covers the rounding of float32 there.
Scaled quantise(const Matrix& x, int64_t row, int most, double* room, int8_t* values, int64_t stride, Query& query) {
  const int64_t d = x.columns;
  load_row(x, row, room);
  const Scaled scaled = scale_row(room, d);
  std::fill(values, values + stride, int8_t(0));
  query = {values, 0, 0, 0, 0, kNever, nullptr};
  if (!scaled.finite || scaled.power == 0) return scaled;
  double largest = 0, residual = 0;
  for (int64_t i = 0; i < d; ++i) largest = std::fmax(largest, std::fabs(room[i]));
  const double levels = std::fmin(most, std::floor(double(std::numeric_limits<int32_t>::max()) / (255.0 * double(d))));
  query.scale = float(largest * scaled.inverse / levels);
  const double steps = scaled.inverse / query.scale;
  int64_t sum = 0;
  for (int64_t i = 0; i < d; ++i) {
    const double whole = std::fmin(levels, std::fmax(-levels, std::nearbyint(room[i] * steps)));
    const double off = room[i] * scaled.inverse - whole * query.scale;
    residual += off * off;
    sum += int64_t(whole);
    values[i] = int8_t(whole);
  }
  query.offset = int32_t(128 * sum);
  const double error = std::sqrt(residual) * (1 + 1e-6) + 1e-9;
  query.error_slope = float((1 + error) * (1 + 1e-5));
  query.error_base = float(error + 1e-6 * (1 + error));
  query.threshold = -kNever;
  return scaled;
}

// Scans queries `begin` to `end` against token blocks `from` to `to`.
void scan(Query* queries, int64_t begin, int64_t end, const Table& table, int64_t from, int64_t to, const Kernels& kernels) {
  const int64_t d4 = table.d4();
  for (int64_t b = from; b < to; ++b) {
    const int64_t first = b * kTokens;
    const Block block{table.values + first * d4 * 4, table.scale + first, table.error + first, d4, first};
    for (int64_t i = begin; i < end; i += kernels.rows) {
      kernels.scan(queries + i, int(std::min<int64_t>(kernels.rows, end - i)), block);
    }
  }
}

struct Decision {
  double cosine = 0;
  int64_t token = -2;
  std::vector<int64_t> near;  // tokens that float64 cannot tell apart
};

// The nearest among the candidates of several stretches of the vocabulary, those with the best bounds compared first.
Decision decide(const Asked& asked, std::vector<Candidate>& all) {
  const double error = float64_error(asked.x->columns);
  std::sort(all.begin(), all.end(), [](Candidate a, Candidate b) { return a.upper != b.upper ? a.upper > b.upper : a.position < b.position; });
  std::vector<std::pair<double, int64_t>> compared;
  double best = -std::numeric_limits<double>::infinity();
  for (const Candidate& c : all) {
    if (c.upper < best - error) break;
    compared.emplace_back(asked.cosine(c.position), asked.table->ids[c.position]);
    best = std::max(best, compared.back().first);
  }
  Decision decision;
  decision.cosine = best;
  for (const auto& [cosine, token] : compared) {
    if (cosine >= best - 2 * error) decision.near.push_back(token);
  }
  if (decision.near.size() == 1) decision.token = decision.near[0];
  return decision;
}

}  // namespace

Undecided nearest(const Matrix& x, const Table& table, const Kernels& kernels, const Threads& threads, int64_t* found, float* cosine) {
  const int64_t d = x.columns, stride = table.d4() * 4;
  Undecided undecided;
  std::mutex lock;
  const int64_t group = kernels.rows;
  const int64_t rows_of_block = std::min<int64_t>(768, std::max<int64_t>(group, kBlockBytes / stride / group * group));
  const auto splits_for = [&](int64_t n) {
    const int64_t row_blocks = (n + rows_of_block - 1) / rows_of_block;
    return row_blocks < 4 * threads.count() ? std::min<int64_t>(threads.count(), table.blocks()) : 1;
  };
  const int64_t most = std::max<int64_t>(group, kChunkBytes / (int64_t(sizeof(Candidates)) * splits_for(x.rows)));
  for (int64_t start = 0; start < x.rows; start += most) {
    const int64_t n = std::min(most, x.rows - start), splits = splits_for(x.rows);
    std::unique_ptr<int8_t[]> values(new int8_t[n * stride]);
    std::unique_ptr<Scaled[]> scaled(new Scaled[n]);
    std::unique_ptr<Query[]> queries(new Query[n * splits]);
    std::unique_ptr<Candidates[]> candidates(new Candidates[n * splits]);
    threads.each(n, 16, [&](int64_t i) {
      std::unique_ptr<double[]> room(new double[d]);
      scaled[i] = quantise(x, start + i, kernels.levels, room.get(), values.get() + i * stride, stride, queries[i]);
      for (int64_t s = 0; s < splits; ++s) {
        Candidates& c = candidates[s * n + i];
        c.asked = {&x, &table, &kernels, start + i, scaled[i]};
        queries[s * n + i] = queries[i];
        queries[s * n + i].listener = &c;
      }
    });
    const int64_t row_blocks = (n + rows_of_block - 1) / rows_of_block, even = (n + row_blocks - 1) / row_blocks;
    threads.each(row_blocks * splits, 1, [&](int64_t task) {
      const int64_t s = task % splits, begin = task / splits * even;
      scan(queries.get() + s * n, begin, std::min(n, begin + even), table, table.blocks() * s / splits, table.blocks() * (s + 1) / splits,
           kernels);
    });
    threads.each(n, 16, [&](int64_t i) {
      found[start + i] = scaled[i].finite ? table.ids[0] : -1;
      cosine[start + i] = scaled[i].finite ? 0 : std::numeric_limits<float>::quiet_NaN();
      if (scaled[i].power == 0) return;
      bool crowded = false, tightened = false;
      double best = -std::numeric_limits<double>::infinity();
      for (int64_t s = 0; s < splits; ++s) {
        const Candidates& c = candidates[s * n + i];
        crowded |= c.crowded, tightened |= c.tightened;
        best = std::max(best, c.best);
      }
      std::vector<Candidate> all;
      for (int64_t s = 0; s < splits; ++s) {
        const Candidates& c = candidates[s * n + i];
        std::copy_if(c.places, c.places + c.count, std::back_inserter(all), [&](const Candidate& p) { return p.upper >= best; });
      }
      found[start + i] = -2;
      if (crowded || all.empty()) {  // empty only if the table was changed after it was packed
        const std::lock_guard<std::mutex> guard(lock);
        undecided.crowded.push_back(start + i);
        ++undecided.rescanned;
        return;
      }
      const Decision decision = decide(candidates[i].asked, all);
      found[start + i] = decision.token;
      cosine[start + i] = float(decision.cosine);
      const std::lock_guard<std::mutex> guard(lock);
      ++(tightened ? undecided.rescanned : all.size() == 1 ? undecided.certified : undecided.rescored);
      if (decision.token != -2) return;
      undecided.rows.insert(undecided.rows.end(), decision.near.size(), start + i);
      undecided.tokens.insert(undecided.tokens.end(), decision.near.begin(), decision.near.end());
    });
  }
  return undecided;
}

void bounds(const Matrix& x, const Table& table, const Kernels& kernels, float* upper, float* lower) {
  struct Recorder : Listener {
    float *upper, *lower;
    int64_t count;
    void note(Query&, const Block& block, uint64_t which, const float* up, const float* low) override {
      for (; which; which &= which - 1) {
        const int t = __builtin_ctzll(which);
        if (block.first + t < count) upper[block.first + t] = up[t], lower[block.first + t] = low[t];
      }
    }
  };
  const int64_t stride = table.d4() * 4;
  std::unique_ptr<double[]> room(new double[x.columns]);
  std::unique_ptr<int8_t[]> values(new int8_t[stride * kernels.rows]);
  std::unique_ptr<Query[]> queries(new Query[kernels.rows]);
  std::unique_ptr<Recorder[]> recorders(new Recorder[kernels.rows]);
  for (int64_t start = 0; start < x.rows; start += kernels.rows) {
    const int64_t n = std::min<int64_t>(kernels.rows, x.rows - start);
    for (int64_t i = 0; i < n; ++i) {
      quantise(x, start + i, kernels.levels, room.get(), values.get() + i * stride, stride, queries[i]);
      recorders[i].upper = upper + (start + i) * table.count;
      recorders[i].lower = lower + (start + i) * table.count;
      recorders[i].count = table.count;
      queries[i].listener = &recorders[i];
    }
    scan(queries.get(), 0, n, table, 0, table.blocks(), kernels);
  }
}

}  // namespace pez
