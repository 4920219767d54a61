// Queries as fp16 unit vectors.
#pragma once

#include "finish.h"

namespace pez {

enum Kind : int32_t { kDirected, kZero, kNotFinite };

struct Rounded {
  Kind kind;
  float error;  // at least the length of what rounding took
};

// One row by one group: put(k, half) for k from 0 to width, zeros behind d and where the row has no direction.
template <class Group, class Put>
PEZ_BOTH Rounded round_query(Group g, Row row, int64_t d, int64_t width, Put put) {
  const Power power = power_of(g, row, d);
  double square = 0;
  for (int64_t i = g.lane(); i < d; i += g.size()) {
    const double a = element(row, i, power);
    square += a * a;
  }
  square = g.sum(square);
  const Kind kind = square == 0 ? kZero : square < INFINITY ? kDirected : kNotFinite;
  const double inverse = kind == kDirected ? 1 / sqrt(square) : 0;
  double lost = 0;
  for (int64_t i = g.lane(); i < width; i += g.size()) {
    const double unit = kind == kDirected && i < d ? element(row, i, power) * inverse : 0;
    const Half half = narrow(float(unit));
    const double off = unit - double(widen(half));
    lost += off * off;
    put(i, half);
  }
  // 1e-6 is more than float32 rounds by, 1e-12 more than float64 did.
  return {kind, float(sqrt(g.sum(lost)) * (1 + 1e-6) + 1e-12)};
}

}  // namespace pez
