// The tokens that may still be the nearest of one query: a fixed number of places.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "nearest.h"

namespace pez {

struct Candidate {
  double upper;      // bound on its cosine with the query
  int32_t position;  // in the table
};

// Bound on the rounding of a cosine computed in float64 from scaled rows.
inline double float64_error(int64_t d) { return double(d + 16) * 0x1p-52; }

// A query against a table: x's row, and 1 / its norm once it is scaled.
struct Asked {
  const Matrix* x;
  const Table* table;
  const Kernels* kernels;
  int64_t row;
  Scaled scaled;

  // The cosine with a token in float64, within float64_error.
  double cosine(int64_t position) const;
};

constexpr int kPlaces = 256;

struct Candidates : Listener {
  Asked asked;
  double best = -std::numeric_limits<double>::infinity();  // no more than the largest cosine
  float leader = -std::numeric_limits<float>::infinity();  // largest scanned score so far; its token was compared in float64
  int count = 0;
  bool tightened = false;  // all were compared in float64 on the way, for want of places
  bool crowded = false;    // that did not make room either: the row is given up
  Candidate places[kPlaces];

  void drop() {
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      if (places[i].upper >= best) places[kept++] = places[i];
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
