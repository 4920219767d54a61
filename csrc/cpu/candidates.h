// The tokens that may still be the nearest of one query, in a buffer of fixed capacity.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "nearest.h"

namespace pez {

struct Candidate {
  double upper;      // bound on the token's cosine with the query
  int32_t position;  // in the table
};

// Bound on the rounding of a cosine computed in float64 from scaled rows.
inline double float64_error(int64_t d) { return double(d + 16) * 0x1p-52; }

// A query for exact comparison with tokens: a row of x, and how it is scaled.
struct ExactQuery {
  const Matrix* x;
  const Table* table;
  const Kernels* kernels;
  int64_t row;
  Scaled scaled;

  // The cosine with a token in float64, within float64_error.
  double cosine(int64_t position) const;
};

constexpr int kCapacity = 256;

struct Candidates : Listener {
  ExactQuery exact;
  double best = -std::numeric_limits<double>::infinity();  // a lower bound on the largest cosine
  // The largest scanned score so far; its token was compared in float64.
  float best_score = -std::numeric_limits<float>::infinity();
  int count = 0;
  bool tightened = false;   // the buffer was full, so all entries were compared in float64
  bool overflowed = false;  // comparing them left too many entries: the row is given up
  Candidate entries[kCapacity];

  void prune() {
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      if (entries[i].upper >= best) entries[kept++] = entries[i];
    }
    count = kept;
  }

  void tighten();
  void note(Query& query, const Block& block, uint64_t which, const float* upper, const float* lower) override;
};

// The largest float that is not above v, so that no comparison with it drops a candidate.
inline float not_above(double v) {
  const float f = float(v);
  return double(f) > v ? std::nextafter(f, -std::numeric_limits<float>::infinity()) : f;
}

}  // namespace pez
