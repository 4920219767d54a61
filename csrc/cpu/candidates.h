// The tokens that may still be the nearest of one query: a fixed number of places.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "nearest.h"

namespace pez {

struct Candidate {
  float upper;       // bound on its cosine with the query
  int32_t position;  // in the table
};

// Bound on the rounding of a cosine computed in float64 from scaled rows.
inline double float64_error(int64_t d) { return double(d + 16) * 0x1p-52; }

// The cosine in float64 of a scaled query with a token.
inline double exact_cosine(const double* query, double inverse, const Table& table, const Kernels& kernels, int64_t position, double* room) {
  const int64_t d = table.weight.columns, row = table.ids[position];
  if (table.weight.contiguous_floats()) {
    return kernels.dot(query, table.weight.floats(row), d) * table.power[position] * table.inverse[position] * inverse;
  }
  load_row(table.weight, row, room);
  const double power = table.power[position];
  double sum[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= d; i += 4) {
    for (int j = 0; j < 4; ++j) sum[j] += query[i + j] * (room[i + j] * power);
  }
  for (; i < d; ++i) sum[0] += query[i] * (room[i] * power);
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) * table.inverse[position] * inverse;
}

constexpr int kPlaces = 256;

struct Candidates {
  const Matrix* x;
  const Table* table;
  const Kernels* kernels;
  int64_t row;
  double best = -std::numeric_limits<double>::infinity();  // no more than the largest cosine
  int count = 0;
  bool tightened = false;  // some were compared in float64, for want of places
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
};

// The largest float that is not above v, so that no comparison with it drops a candidate.
inline float not_above(double v) {
  const float f = float(v);
  return double(f) > v ? std::nextafter(f, -std::numeric_limits<float>::infinity()) : f;
}

inline float not_below(double v) { return -not_above(-v); }

}  // namespace pez
