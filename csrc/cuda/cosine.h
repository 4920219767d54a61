// Exact comparison: cosines in float64, and beyond it as unevaluated sums of two float64.
//
// `Team` is a block on the GPU and a single thread in the simulation; a row is read by one of its warps.
#pragma once

#include "rows.h"

namespace pez::cuda {

struct Query {
  Row row;
  double norm;  // like the token's, of no use where a row is float64
};

struct Token {
  Row row;
  const double* norm;  // still to be read
};

constexpr int kTogether = 4;  // chunks of eight elements that a lane has on their way at once: a row of 1024

// <q, e> of packed rows in float64: products of two float32 are exact there.
template <class E, class Team>
PEZ_BOTH double dot(Team t, const float* q, const E* e, int d) {
  const int chunks = d / 8;
  double sum = 0;
  for (int start = t.lane(); start < chunks; start += kTogether * t.lanes()) {
    Eight<float> a[kTogether];
    Eight<E> b[kTogether];
PEZ_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      const int chunk = start + i * t.lanes();
      if (chunk < chunks) a[i] = Eight<float>(q + 8 * chunk), b[i] = Eight<E>(e + 8 * chunk);
    }
PEZ_UNROLL
    for (int i = 0; i < kTogether; ++i) {
PEZ_UNROLL
      for (int k = 0; k < 8; ++k) sum = fma(double(a[i][k]), double(b[i][k]), sum);
    }
  }
  return t.warp_sum(sum);
}

// <q, e> / (|q| |e|) of rows of any type and stride.
template <class Team>
PEZ_CALLED double strided_cosine(Team t, Row q, Row e, int64_t d) {
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

// The cosine in float64, within (d + 8) 2^-52; 0 where e is zero. E: the type of packed tokens, double where nothing is packed.
template <class E, class Team>
PEZ_BOTH double cosine(Team t, const Query& q, const Token& e, int64_t d) {
  if constexpr (sizeof(E) == 8) {
    return strided_cosine(t, q.row, e.row, d);
  } else {
    const double scale = q.norm * *e.norm;
    const double product = dot<E>(t, static_cast<const float*>(q.row.data), static_cast<const E*>(e.row.data), int(d));
    return scale > 0 ? product / scale : 0;
  }
}

// Unevaluated sums hi + lo (Dekker 1971).
struct Pair {
  double hi = 0, lo = 0;
};

PEZ_BOTH Pair two_sum(double a, double b) {
  const double s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

PEZ_BOTH Pair two_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  const double p = __dmul_rn(a, b);  // never fused with what is done to p next
#else
  const double p = a * b;
#endif
  return {p, fma(a, b, -p)};
}

PEZ_BOTH Pair plus(Pair x, Pair y) {
  const Pair s = two_sum(x.hi, y.hi);
  return two_sum(s.hi, s.lo + (x.lo + y.lo));
}

PEZ_BOTH Pair times(Pair x, Pair y) {
  const Pair p = two_product(x.hi, y.hi);
  return two_sum(p.hi, p.lo + (x.hi * y.lo + x.lo * y.hi));
}

struct WideCosine {
  Pair value;
  double size = 0;  // sum |q_k e_k| / (|q| |e|), to which the error is proportional
};

template <class Team>
PEZ_CALLED WideCosine wide_cosine(Team t, Row q, Row e, int64_t d) {
  const Power pq = power_of(t, q, d), pe = power_of(t, e, d);
  Pair dot, qq, ee;
  double size = 0;
  for (int64_t i = t.lane(); i < d; i += t.lanes()) {
    const double a = element(q, i, pq), b = element(e, i, pe);
    const Pair product = two_product(a, b);
    dot = plus(dot, product);
    qq = plus(qq, two_product(a, a));
    ee = plus(ee, two_product(b, b));
    size += fabs(product.hi);
  }
  dot = t.warp_sum(dot);
  const Pair square = times(t.warp_sum(ee), t.warp_sum(qq));
  size = t.warp_sum(size);
  if (!(square.hi > 0)) return {};
  const double root = sqrt(square.hi);
  const Pair back = two_product(root, root);
  const Pair norm = two_sum(root, ((square.hi - back.hi) - back.lo + square.lo) / (2 * root));
  const double first = dot.hi / norm.hi;
  const Pair rest = times(norm, {first, 0});
  return {two_sum(first, ((dot.hi - rest.hi) + (dot.lo - rest.lo)) / norm.hi), size / root};
}

// Error of a wide cosine in units of its size: every addition is wrong by less than 2^-104.
PEZ_BOTH double wide_error(int64_t d) { return double(d + 32) * 0x1p-102; }

}  // namespace pez::cuda
