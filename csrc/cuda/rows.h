// Rows of the queries and of the vocabulary: of any type and stride, or packed, so that 16 bytes are read at once.
#pragma once

#include "../matrix.h"

namespace pez::cuda {

struct Vocabulary {
  Matrix weight;       // (V, d)
  const int64_t* ids;  // (count) rows that may be found, ascending
  const double* norm;  // (count) the norms of these rows; not read where a row is float64
  int64_t count;

  PEZ_HOST_DEVICE int64_t d() const { return weight.columns; }
};

// The type of the tokens' elements if the decision reads them 16 bytes at a time; f64 if it reads element by element.
PEZ_HOST_DEVICE Type reading(const Matrix& x, const Vocabulary& v) {
  return x.type == Type::f32 && x.packed() && v.weight.packed() ? v.weight.type : Type::f64;
}

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

PEZ_HOST_DEVICE Bytes16 load16(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
#else
  Bytes16 v;
  memcpy(&v, from, sizeof v);
  return v;
#endif
}

// Eight elements from an address that is a multiple of 16 bytes. They are loaded in their own type and widened when
// they are used, which takes fewer registers meanwhile.
template <class T>
struct Vec8 {
  Bytes16 raw;
  PEZ_HOST_DEVICE explicit Vec8(const T* from) : raw(load16(from)) {}
  PEZ_HOST_DEVICE Vec8() : raw{{0, 0, 0, 0}} {}
  PEZ_HOST_DEVICE float operator[](int i) const { return widen(T{uint16_t(raw.word[i / 2] >> 16 * (i % 2))}); }
};

template <>
struct Vec8<float> {
  Bytes16 raw[2];
  PEZ_HOST_DEVICE explicit Vec8(const float* from) : raw{load16(from), load16(from + 4)} {}
  PEZ_HOST_DEVICE Vec8() : raw{{{0, 0, 0, 0}}, {{0, 0, 0, 0}}} {}
  PEZ_HOST_DEVICE float operator[](int i) const { return bits<float>(raw[i / 4].word[i % 4]); }
};

// Rows of float64 are scaled by a power of two, exactly, so that squares stay in range; narrower types are in range.
struct Power {
  double first = 1, second = 1;  // in two steps: 2^1074 itself is not a float64
};

PEZ_HOST_DEVICE double power_of_two(int64_t exponent) { return bits<double>(uint64_t(exponent + 1023) << 52); }

template <class Team>
PEZ_HOST_DEVICE Power power_of(Team t, Row row, int64_t d) {
  if (row.type != Type::f64) return {};
  double largest = 0;
  for (int64_t i = t.lane(); i < d; i += t.lanes())
    largest = fmax(largest, fabs(static_cast<const double*>(row.data)[i * row.stride]));
  largest = t.warp_maximum(largest);
  const int64_t exponent = int64_t(bits<uint64_t>(largest) >> 52) - 1023;  // -1023 for a zero or subnormal row
  const int64_t half = exponent >> 1;
  return {power_of_two(-half), power_of_two(half - exponent)};
}

PEZ_HOST_DEVICE double element(Row row, int64_t i, Power power) {
  if (row.type == Type::f64) return static_cast<const double*>(row.data)[i * row.stride] * power.first * power.second;
  return double(load(row.data, row.type, i * row.stride));
}

}  // namespace pez::cuda
