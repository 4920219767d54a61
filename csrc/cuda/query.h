// Queries as fp16 unit vectors. Replaces `unit = x / x.norm(); query = unit.half(); error = (unit - query).norm()`.
#pragma once

#include "rows.h"

namespace pez::cuda {

enum Kind : int32_t { kDirected, kZero, kNotFinite };

struct alignas(16) Rounded {
  float error;  // at least the length of what rounding to fp16 took
  Kind kind;
  double norm;  // the norm of the row; of a float64 row after its scaling by a power of two
};

PEZ_HOST_DEVICE Kind kind_of(double square) { return square == 0 ? kZero : square < INFINITY ? kDirected : kNotFinite; }

// The rounded element. Adds to `lost` the square of what the rounding from float32 to fp16 took.
PEZ_HOST_DEVICE Half rounded_element(double value, double inverse, float& lost) {
  const float unit = float(value * inverse);
  const Half half = narrow(unit);
  const float off = unit - widen(half);  // exact
  lost = fmaf(off, off, lost);
  return half;
}

// 5e-4 covers the error of the sum in float32, 7e-8 covers what rounding to float32 took (2^-24).
PEZ_HOST_DEVICE Rounded rounded(double square, float lost) {
  return {sqrtf(lost) * (1 + 5e-4f) + 7e-8f, kind_of(square), sqrt(square)};
}

// Rounds one row by one warp. Calls put(k, half) for k from 0 to width, zeros behind d and for a row without direction.
template <class Team, class Put>
PEZ_HOST_DEVICE Rounded round_strided(Team t, Row row, int64_t d, int64_t width, Put put) {
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
  for (int64_t i = t.lane(); i < width; i += t.lanes())
    put(i, directed && i < d ? rounded_element(element(row, i, power), inverse, lost) : Half{0});
  return rounded(square, t.warp_sum(lost));
}

// The same for a packed row of float32, which is read 16 bytes at a time: put(chunk, eight halves).
template <class Team, class Put>
PEZ_HOST_DEVICE Rounded round_packed(Team t, const float* row, int d, int width, Put put) {
  // Chunks of eight that a lane loads at once: a row of 1024 is loaded at once, and kept.
  constexpr int kChunksInFlight = 4;
  const int chunks = d / 8, all = width / 8;
  Vec8<float> kept[kChunksInFlight];
  double square = 0;
  const auto fetch = [&](int start) {
    PEZ_UNROLL
    for (int i = 0; i < kChunksInFlight; ++i) {
      const int chunk = start + i * t.lanes();
      kept[i] = chunk < chunks ? Vec8<float>(row + 8 * chunk) : Vec8<float>();
    }
  };
  const int step = kChunksInFlight * t.lanes();
  for (int start = t.lane(); start < chunks; start += step) {
    fetch(start);
    PEZ_UNROLL
    for (int i = 0; i < kChunksInFlight; ++i) {
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
    for (int i = 0; i < kChunksInFlight; ++i) {
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
