// Exact comparison: cosines in float64, and beyond float64 as unevaluated sums of two float64 (double-double).
//
// `Team` is a block on the GPU and a single thread in the simulation; one warp of the team reads a row.
#pragma once

#include "rows.h"

namespace pez::cuda {

struct Query {
  Row row;
  double norm;  // not used where a row is float64; the same holds for the token's
};

struct Token {
  Row row;
  const double* norm;  // not yet loaded
};

constexpr int kChunksInFlight = 4;  // chunks of eight elements that a lane loads at once: 32 lanes load a row of 1024

// <q, e> of packed rows in float64. Products of two float32 are exact in float64.
template <class E, class Team>
PEZ_HOST_DEVICE double dot(Team t, const float* q, const E* e, int d) {
  const int chunks = d / 8;
  double sum = 0;
  for (int start = t.lane(); start < chunks; start += kChunksInFlight * t.lanes()) {
    Vec8<float> a[kChunksInFlight];
    Vec8<E> b[kChunksInFlight];
    PEZ_UNROLL
    for (int i = 0; i < kChunksInFlight; ++i) {
      const int chunk = start + i * t.lanes();
      if (chunk < chunks) a[i] = Vec8<float>(q + 8 * chunk), b[i] = Vec8<E>(e + 8 * chunk);
    }
    PEZ_UNROLL
    for (int i = 0; i < kChunksInFlight; ++i) {
      PEZ_UNROLL
      for (int k = 0; k < 8; ++k) sum = fma(double(a[i][k]), double(b[i][k]), sum);
    }
  }
  return t.warp_sum(sum);
}

// <q, e> / (|q| |e|) of rows of any type and stride.
template <class Team>
PEZ_HOST_DEVICE_NOINLINE double strided_cosine(Team t, Row q, Row e, int64_t d) {
  const Power pq = power_of(t, q, d), pe = power_of(t, e, d);
  double dot = 0, qq = 0, ee = 0;
  for (int64_t i = t.lane(); i < d; i += t.lanes()) {
    const double a = element(q, i, pq), b = element(e, i, pe);
    dot += a * b, qq += a * a, ee += b * b;
  }
  dot = t.warp_sum(dot);
  const double scale = sqrt(t.warp_sum(ee)) * sqrt(t.warp_sum(qq));
  return scale > 0 ? dot / scale : 0;
}

// The cosine in float64, within (d + 8) 2^-52; 0 where e is zero. E is the type of packed tokens, and double where
// nothing is packed.
template <class E, class Team>
PEZ_HOST_DEVICE double cosine(Team t, const Query& q, const Token& e, int64_t d) {
  if constexpr (sizeof(E) == 8) {
    return strided_cosine(t, q.row, e.row, d);
  } else {
    const double scale = q.norm * *e.norm;
    const double product = dot<E>(t, static_cast<const float*>(q.row.data), static_cast<const E*>(e.row.data), int(d));
    return scale > 0 ? product / scale : 0;
  }
}

// An unevaluated sum hi + lo (Dekker 1971).
struct DoubleDouble {
  double hi = 0, lo = 0;
};

PEZ_HOST_DEVICE DoubleDouble two_sum(double a, double b) {
  const double s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

PEZ_HOST_DEVICE DoubleDouble two_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  const double p = __dmul_rn(a, b);  // __dmul_rn is never fused with the subtraction below
#else
  const double p = a * b;
#endif
  return {p, fma(a, b, -p)};
}

PEZ_HOST_DEVICE DoubleDouble add(DoubleDouble x, DoubleDouble y) {
  const DoubleDouble s = two_sum(x.hi, y.hi);
  return two_sum(s.hi, s.lo + (x.lo + y.lo));
}

PEZ_HOST_DEVICE DoubleDouble multiply(DoubleDouble x, DoubleDouble y) {
  const DoubleDouble p = two_product(x.hi, y.hi);
  return two_sum(p.hi, p.lo + (x.hi * y.lo + x.lo * y.hi));
}

struct DoubleDoubleCosine {
  DoubleDouble value;
  double size = 0;  // sum |q_k e_k| / (|q| |e|); the error is proportional to it
};

template <class Team>
PEZ_HOST_DEVICE_NOINLINE DoubleDoubleCosine double_double_cosine(Team t, Row q, Row e, int64_t d) {
  const Power pq = power_of(t, q, d), pe = power_of(t, e, d);
  DoubleDouble dot, qq, ee;
  double size = 0;
  for (int64_t i = t.lane(); i < d; i += t.lanes()) {
    const double a = element(q, i, pq), b = element(e, i, pe);
    const DoubleDouble product = two_product(a, b);
    dot = add(dot, product);
    qq = add(qq, two_product(a, a));
    ee = add(ee, two_product(b, b));
    size += fabs(product.hi);
  }
  dot = t.warp_sum(dot);
  const DoubleDouble square = multiply(t.warp_sum(ee), t.warp_sum(qq));
  size = t.warp_sum(size);
  if (!(square.hi > 0)) return {};
  const double root = sqrt(square.hi);
  const DoubleDouble back = two_product(root, root);
  const DoubleDouble norm = two_sum(root, ((square.hi - back.hi) - back.lo + square.lo) / (2 * root));
  const double first = dot.hi / norm.hi;
  const DoubleDouble rest = multiply(norm, {first, 0});
  return {two_sum(first, ((dot.hi - rest.hi) + (dot.lo - rest.lo)) / norm.hi), size / root};
}

// The error of a double-double cosine in units of its size: every addition is wrong by less than 2^-104.
PEZ_HOST_DEVICE double double_double_error(int64_t d) { return double(d + 32) * 0x1p-102; }

}  // namespace pez::cuda
