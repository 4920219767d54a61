#include "nearest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "candidates.h"

namespace pez {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kBlockBytes = 384 << 10;  // of queries that are scanned against one block of tokens after the other
constexpr int64_t kChunkBytes = 16 << 20;   // of candidate buffers at once

// Rounds a query to integers. The bound that it sets also covers the float32 rounding of the scan's scores.
Scaled quantise(const Matrix& x, int64_t row, int max_level, double* scratch, int8_t* values, int64_t stride,
                Query& query) {
  const int64_t d = x.columns;
  load_row(x, row, scratch);
  const Scaled scaled = scale_row(scratch, d);
  std::fill(values, values + stride, int8_t(0));
  query = {values, 0, 0, 0, 0, kInfinity, nullptr};
  if (!scaled.finite || scaled.power == 0) return scaled;
  double largest = 0, residual = 0;
  for (int64_t i = 0; i < d; ++i) largest = std::fmax(largest, std::fabs(scratch[i]));
  const double levels =
      std::fmin(max_level, std::floor(double(std::numeric_limits<int32_t>::max()) / (255.0 * double(d))));
  query.scale = float(largest * scaled.inverse / levels);
  const double steps = scaled.inverse / query.scale;
  int64_t sum = 0;
  for (int64_t i = 0; i < d; ++i) {
    const double integer = std::fmin(levels, std::fmax(-levels, std::nearbyint(scratch[i] * steps)));
    const double off = scratch[i] * scaled.inverse - integer * query.scale;
    residual += off * off;
    sum += int64_t(integer);
    values[i] = int8_t(integer);
  }
  query.offset = int32_t(128 * sum);
  const double error = std::sqrt(residual) * (1 + 1e-6) + 1e-9;
  query.error_slope = float((1 + error) * (1 + 1e-5));
  query.error_base = float(error + 1e-6 * (1 + error));
  query.threshold = -kInfinity;
  return scaled;
}

// Scans queries `begin` to `end` against token blocks `from` to `to`.
void scan(Query* queries, int64_t begin, int64_t end, const Table& table, int64_t from, int64_t to,
          const Kernels& kernels) {
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

// The nearest among the candidates of all splits; candidates with the largest bounds are compared first.
Decision decide(const ExactQuery& exact, std::vector<Candidate>& all) {
  const double error = float64_error(exact.x->columns);
  std::sort(all.begin(), all.end(),
            [](Candidate a, Candidate b) { return a.upper != b.upper ? a.upper > b.upper : a.position < b.position; });
  std::vector<std::pair<double, int64_t>> compared;
  double best = -std::numeric_limits<double>::infinity();
  for (const Candidate& c : all) {
    if (c.upper < best - error) break;
    compared.emplace_back(exact.cosine(c.position), exact.table->ids[c.position]);
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

// Some rows of x, and a candidate buffer for each row and each split of the vocabulary.
class Chunk {
 public:
  Chunk(const Matrix& x, const Table& table, const Kernels& kernels, int64_t start, int64_t n, int64_t splits)
      : x_(x),
        table_(table),
        kernels_(kernels),
        start_(start),
        n_(n),
        splits_(splits),
        stride_(table.d4() * 4),
        values_(new int8_t[n * stride_]),
        scaled_(new Scaled[n]),
        queries_(new Query[n * splits]),
        candidates_(new Candidates[n * splits]) {}

  // Rounds row i to integers.
  void prepare(int64_t i) {
    std::unique_ptr<double[]> scratch(new double[x_.columns]);
    int8_t* values = values_.get() + i * stride_;
    scaled_[i] = quantise(x_, start_ + i, kernels_.levels, scratch.get(), values, stride_, queries_[i]);
    for (int64_t s = 0; s < splits_; ++s) {
      Candidates& c = candidates_[s * n_ + i];
      c.exact = {&x_, &table_, &kernels_, start_ + i, scaled_[i]};
      queries_[s * n_ + i] = queries_[i];
      queries_[s * n_ + i].listener = &c;
    }
  }

  // Scans rows `begin` to `end` against split s of the vocabulary.
  void scan_split(int64_t begin, int64_t end, int64_t s) {
    const int64_t from = table_.blocks() * s / splits_, to = table_.blocks() * (s + 1) / splits_;
    scan(queries_.get() + s * n_, begin, std::min(n_, end), table_, from, to, kernels_);
  }

  // Writes found and cosine of row i; adds to `undecided` under the lock.
  void decide_row(int64_t i, int64_t* found, float* cosine, Undecided& undecided, std::mutex& lock) const {
    const int64_t row = start_ + i;
    found[row] = scaled_[i].finite ? table_.ids[0] : -1;
    cosine[row] = scaled_[i].finite ? 0 : std::numeric_limits<float>::quiet_NaN();
    if (scaled_[i].power == 0) return;
    bool overflowed = false, tightened = false;
    std::vector<Candidate> all = candidates_of(i, overflowed, tightened);
    found[row] = -2;
    if (overflowed || all.empty()) {  // empty only if the table was changed after it was packed
      const std::lock_guard<std::mutex> guard(lock);
      undecided.overflowed.push_back(row);
      ++undecided.rescanned;
      return;
    }
    const Decision decision = decide(candidates_[i].exact, all);
    found[row] = decision.token;
    cosine[row] = float(decision.cosine);
    const std::lock_guard<std::mutex> guard(lock);
    ++(tightened ? undecided.rescanned : all.size() == 1 ? undecided.certified : undecided.rescored);
    if (decision.token != -2) return;
    undecided.rows.insert(undecided.rows.end(), decision.near.size(), row);
    undecided.tokens.insert(undecided.tokens.end(), decision.near.begin(), decision.near.end());
  }

 private:
  // The candidates of row i in all splits that reach the best lower bound.
  std::vector<Candidate> candidates_of(int64_t i, bool& overflowed, bool& tightened) const {
    double best = -std::numeric_limits<double>::infinity();
    for (int64_t s = 0; s < splits_; ++s) {
      const Candidates& c = candidates_[s * n_ + i];
      overflowed |= c.overflowed, tightened |= c.tightened;
      best = std::max(best, c.best);
    }
    std::vector<Candidate> all;
    for (int64_t s = 0; s < splits_; ++s) {
      const Candidates& c = candidates_[s * n_ + i];
      std::copy_if(c.entries, c.entries + c.count, std::back_inserter(all),
                   [&](const Candidate& p) { return p.upper >= best; });
    }
    return all;
  }

  const Matrix& x_;
  const Table& table_;
  const Kernels& kernels_;
  const int64_t start_, n_, splits_, stride_;
  const std::unique_ptr<int8_t[]> values_;
  const std::unique_ptr<Scaled[]> scaled_;
  const std::unique_ptr<Query[]> queries_;
  const std::unique_ptr<Candidates[]> candidates_;
};

}  // namespace

Undecided nearest(const Matrix& x, const Table& table, const Kernels& kernels, const Threads& threads, int64_t* found,
                  float* cosine) {
  Undecided undecided;
  std::mutex lock;
  const int64_t group = kernels.rows, stride = table.d4() * 4;
  const int64_t rows_of_block = std::min<int64_t>(768, std::max<int64_t>(group, kBlockBytes / stride / group * group));
  const auto blocks_for = [&](int64_t n) { return (n + rows_of_block - 1) / rows_of_block; };
  const bool split = blocks_for(x.rows) < 4 * threads.count();  // too few row blocks to keep the threads busy
  const int64_t splits = split ? std::min<int64_t>(threads.count(), table.blocks()) : 1;
  const int64_t chunk_rows = std::max<int64_t>(group, kChunkBytes / (int64_t(sizeof(Candidates)) * splits));
  for (int64_t start = 0; start < x.rows; start += chunk_rows) {
    const int64_t n = std::min(chunk_rows, x.rows - start);
    Chunk chunk(x, table, kernels, start, n, splits);
    threads.parallel_for(n, 16, [&](int64_t i) { chunk.prepare(i); });
    const int64_t row_blocks = blocks_for(n), even = (n + row_blocks - 1) / row_blocks;
    threads.parallel_for(row_blocks * splits, 1, [&](int64_t task) {
      const int64_t begin = task / splits * even;
      chunk.scan_split(begin, begin + even, task % splits);
    });
    threads.parallel_for(n, 16, [&](int64_t i) { chunk.decide_row(i, found, cosine, undecided, lock); });
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
  std::unique_ptr<double[]> scratch(new double[x.columns]);
  std::unique_ptr<int8_t[]> values(new int8_t[stride * kernels.rows]);
  std::unique_ptr<Query[]> queries(new Query[kernels.rows]);
  std::unique_ptr<Recorder[]> recorders(new Recorder[kernels.rows]);
  for (int64_t start = 0; start < x.rows; start += kernels.rows) {
    const int64_t n = std::min<int64_t>(kernels.rows, x.rows - start);
    for (int64_t i = 0; i < n; ++i) {
      quantise(x, start + i, kernels.levels, scratch.get(), values.get() + i * stride, stride, queries[i]);
      recorders[i].upper = upper + (start + i) * table.count;
      recorders[i].lower = lower + (start + i) * table.count;
      recorders[i].count = table.count;
      queries[i].listener = &recorders[i];
    }
    scan(queries.get(), 0, n, table, 0, table.blocks(), kernels);
  }
}

}  // namespace pez
