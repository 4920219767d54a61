// The decision on one row: of the tokens that may have won by the scan's error bound, compared exactly.
//
// `Group` is a warp on the GPU and a single thread in the simulation: lane(), size(), and sums and extremes over its lanes,
// which every lane gets.
#pragma once

#include "keys.h"
#include "../types.h"

namespace pez {

struct Row {
  const void* data;
  Type type;
  int64_t stride;  // in elements
};

struct Vocabulary {
  const void* weight;  // (V, d)
  Type type;
  int64_t row_stride, column_stride;  // in elements
  const int64_t* ids;                 // (count) rows that may be found, ascending
  int64_t count, d;

  PEZ_BOTH Row row(int64_t position) const {
    const int64_t offset = (ids ? ids[position] : position) * row_stride * size_of(type);
    return {static_cast<const char*>(weight) + offset, type, column_stride};
  }
};

// Rows of float64 are scaled by a power of two, exactly, so that their squares stay in range; the narrower types are in range.
struct Power {
  double first = 1, second = 1;  // in two steps: 2^1074 itself is not a float64
};

PEZ_BOTH double power_of_two(int64_t exponent) { return bits<double>(uint64_t(exponent + 1023) << 52); }

template <class Group>
PEZ_BOTH Power power_of(Group g, Row row, int64_t d) {
  if (row.type != Type::f64) return {};
  double largest = 0;
  for (int64_t i = g.lane(); i < d; i += g.size()) largest = fmax(largest, fabs(static_cast<const double*>(row.data)[i * row.stride]));
  largest = g.maximum(largest);
  const int64_t exponent = int64_t(bits<uint64_t>(largest) >> 52) - 1023;  // -1023 of a zero or subnormal row
  const int64_t half = exponent >> 1;
  return {power_of_two(-half), power_of_two(half - exponent)};
}

PEZ_BOTH double element(Row row, int64_t i, Power power) {
  if (row.type == Type::f64) return static_cast<const double*>(row.data)[i * row.stride] * power.first * power.second;
  return double(load(row.data, row.type, i * row.stride));
}

// <q, e> / (|q| |e|) in float64, within (d + 8) 2^-52; 0 where e is zero.
template <class Group>
PEZ_BOTH double cosine(Group g, Row q, Row e, int64_t d) {
  const Power pq = power_of(g, q, d), pe = power_of(g, e, d);
  double dot = 0, qq = 0, ee = 0;
  for (int64_t i = g.lane(); i < d; i += g.size()) {
    const double a = element(q, i, pq), b = element(e, i, pe);
    dot += a * b, qq += a * a, ee += b * b;
  }
  dot = g.sum(dot);
  const double scale = sqrt(g.sum(ee)) * sqrt(g.sum(qq));
  return scale > 0 ? dot / scale : 0;
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
  const double p = a * b;
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

template <class Group>
PEZ_BOTH WideCosine wide_cosine(Group g, Row q, Row e, int64_t d) {
  const Power pq = power_of(g, q, d), pe = power_of(g, e, d);
  Pair dot, qq, ee;
  double size = 0;
  for (int64_t i = g.lane(); i < d; i += g.size()) {
    const double a = element(q, i, pq), b = element(e, i, pe);
    const Pair product = two_product(a, b);
    dot = plus(dot, product);
    qq = plus(qq, two_product(a, a));
    ee = plus(ee, two_product(b, b));
    size += fabs(product.hi);
  }
  dot = g.sum(dot);
  const Pair square = times(g.sum(ee), g.sum(qq));
  size = g.sum(size);
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

struct Decision {
  int64_t position = 0;
  double cosine = 0;
  int state = 1;  // 1: the scan decided; 2: several were compared; 3: whole tiles were
};

// The first tile behind `after` whose best key reaches the limit; `tiles` where there is none.
template <class Group>
PEZ_BOTH int next_tile(Group g, const Key* keys, int tiles, int after, Key reached) {
  for (int start = after + 1; start < tiles; start += g.size()) {
    const int at = start + g.lane();
    const int found = g.minimum(at < tiles && keys[2 * at] >= reached ? at : tiles);
    if (found < tiles) return found;
  }
  return tiles;
}

// visit(position) for every token that may have won, ascending; the state as in Decision, if it starts as 0.
template <int kTile, class Group, class Visit>
PEZ_BOTH int each_candidate(Group g, const Key* keys, int tiles, Key reached, int64_t count, Visit visit) {
  int state = 0;
  for (int tile = next_tile(g, keys, tiles, -1, reached); tile < tiles; tile = next_tile(g, keys, tiles, tile, reached)) {
    int64_t first = int64_t(tile) * kTile, last = first + kTile < count ? first + kTile : count;
    const bool whole = keys[2 * tile + 1] >= reached;
    if (!whole) {
      first += place_of<kTile>(keys[2 * tile]);
      last = first + 1;
    }
    state = whole ? 3 : state == 0 ? 1 : state == 1 ? 2 : state;
    for (int64_t position = first; position < last; ++position) visit(position);
  }
  return state;
}

// keys (tiles, 2) of this row, the better first. The lowest of equal cosines wins; closer than wide_error (2^-90 at width 1024) counts
// as equal.
template <int kTile, class Group>
PEZ_BOTH Decision decide(Group g, Row q, const Vocabulary& v, const Key* keys, int tiles, float error) {
  Key top = kLowest;
  for (int at = g.lane(); at < tiles; at += g.size()) top = larger(top, keys[2 * at]);
  const Key reached = limit(g.maximum(top), error);
  Decision decision;
  double best = -INFINITY, runner_up = -INFINITY;
  decision.state = each_candidate<kTile>(g, keys, tiles, reached, v.count, [&](int64_t position) {
    const double c = cosine(g, q, v.row(position), v.d);
    runner_up = fmax(runner_up, fmin(best, c));
    if (c > best) best = c, decision.position = position;
  });
  decision.cosine = best;
  const double margin = 2 * double(v.d + 8) * 0x1p-52;
  if (!(runner_up >= best - margin)) return decision;
  WideCosine winner;
  bool any = false;
  each_candidate<kTile>(g, keys, tiles, reached, v.count, [&](int64_t position) {
    if (!(cosine(g, q, v.row(position), v.d) >= best - margin)) return;
    const WideCosine c = wide_cosine(g, q, v.row(position), v.d);
    const double ahead = (c.value.hi - winner.value.hi) + (c.value.lo - winner.value.lo);
    if (!any || ahead > wide_error(v.d) * (c.size + winner.size)) winner = c, decision.position = position;
    any = true;
  });
  return decision;
}

}  // namespace pez
