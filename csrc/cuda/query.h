// Queries as fp16 unit vectors. Replaces `unit = x / x.norm(); query = unit.half(); error = (unit - query).norm()`.
#pragma once

#include "rows.h"

namespace pez::cuda {

enum Kind : int32_t { kDirected, kZero, kNotFinite };

struct alignas(16) Rounded {
  float error;  // at least the length of what rounding took
  Kind kind;
  double norm;  // of a float64 row: after its scaling by a power of two
};

PEZ_BOTH Kind kind_of(double square) { return square == 0 ? kZero : square < INFINITY ? kDirected : kNotFinite; }

// What is left of one element, and in `lost` the square of what was taken beyond the rounding to float32.
PEZ_BOTH Half rounded_element(double value, double inverse, float& lost) {
  const float unit = float(value * inverse);
  const Half half = narrow(unit);
  const float off = unit - widen(half);  // exact
  lost = fmaf(off, off, lost);
  return half;
}

// 5e-4 is more than the sum in float32 is wrong by, 7e-8 more than the length of what rounding to float32 took, 2^-24.
PEZ_BOTH Rounded rounded(double square, float lost) { return {sqrtf(lost) * (1 + 5e-4f) + 7e-8f, kind_of(square), sqrt(square)}; }

// One row by one warp: put(k, half) for k from 0 to width, zeros behind d and where the row has no direction.
template <class Team, class Put>
PEZ_BOTH Rounded round_strided(Team t, Row row, int64_t d, int64_t width, Put put) {
  const Power power = power_of(t, row, d);
  double square = 0;
  for (int64_t i = t.lane(); i < d; i += t.lanes()) {
    const double a = element(row, i, power);
    square += a * a;
  }
  square = t.warp_sum(square);
  const bool directed = kind_of(square) == kDirected;
  const double inverse = directed ? 1 / sqrt(square) : 0;
  float lost = 0;
  for (int64_t i = t.lane(); i < width; i += t.lanes()) put(i, directed && i < d ? rounded_element(element(row, i, power), inverse, lost) : Half{0});
  return rounded(square, t.warp_sum(lost));
}

// The same of a packed row of float32, which is read 16 bytes at a time: put(chunk, eight halves).
template <class Team, class Put>
PEZ_BOTH Rounded round_packed(Team t, const float* row, int d, int width, Put put) {
  constexpr int kAhead = 4;  // chunks of eight on their way: a row of 1024 is read at once, and kept
  const int chunks = d / 8, all = width / 8;
  Eight<float> kept[kAhead];
  double square = 0;
  const auto fetch = [&](int start) {
PEZ_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const int chunk = start + i * t.lanes();
      kept[i] = chunk < chunks ? Eight<float>(row + 8 * chunk) : Eight<float>();
    }
  };
  const int step = kAhead * t.lanes();
  for (int start = t.lane(); start < chunks; start += step) {
    fetch(start);
PEZ_UNROLL
    for (int i = 0; i < kAhead; ++i) {
PEZ_UNROLL
      for (int k = 0; k < 8; ++k) square = fma(double(kept[i][k]), double(kept[i][k]), square);
    }
  }
  square = t.warp_sum(square);
  const bool directed = kind_of(square) == kDirected;
  const double inverse = directed ? 1 / sqrt(square) : 0;
  float lost = 0;
  for (int start = t.lane(); start < all; start += step) {
    if (all > step) fetch(start);
PEZ_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const int chunk = start + i * t.lanes();
      if (chunk >= all) continue;
      Half half[8];
PEZ_UNROLL
      for (int k = 0; k < 8; ++k) half[k] = directed ? rounded_element(double(kept[i][k]), inverse, lost) : Half{0};
      put(chunk, half);
    }
  }
  return rounded(square, t.warp_sum(lost));
}

}  // namespace pez::cuda
