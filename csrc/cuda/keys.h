// Scores as integers that sort: of every tile of tokens the scan keeps the two best as keys.
//
// A key has the order of the float32 score, but its low bits, as many as number the tokens of a tile, hold kTile - 1 - place:
// one maximum finds the best score and the lowest token that has it.
#pragma once

#include "../types.h"

namespace pez {

using Key = int32_t;
constexpr Key kLowest = INT32_MIN;  // of what is no token

// float32 -> int32 in the same order; its own inverse on the bits.
PEZ_BOTH Key flip(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }
PEZ_BOTH Key ordered(float score) { return flip(bits<int32_t>(score)); }
PEZ_BOTH float score_of(Key key) { return bits<float>(flip(key)); }

template <int kTile>
PEZ_BOTH Key pack(float score, int place) {
  static_assert((kTile & (kTile - 1)) == 0, "a power of two");
  return (ordered(score) & -kTile) | (kTile - 1 - place);
}

template <int kTile>
PEZ_BOTH int place_of(Key key) {
  return kTile - 1 - (key & (kTile - 1));
}

// The two best keys of a set; keys of one tile are all different.
struct Best {
  Key first = kLowest, second = kLowest;
};

PEZ_BOTH Key larger(Key a, Key b) { return a > b ? a : b; }
PEZ_BOTH Key smaller(Key a, Key b) { return a < b ? a : b; }

PEZ_BOTH void add(Best& best, Key key) {
  best.second = larger(best.second, smaller(best.first, key));
  best.first = larger(best.first, key);
}

PEZ_BOTH Best merged(Best a, Best b) {
  return {larger(a.first, b.first), larger(larger(a.second, b.second), smaller(a.first, b.first))};
}

// A scanned score is within this of the true cosine. residual and error: what rounding to fp16 took from the table's rows and
// from the query. Then d products added up in float32 by tensor cores, which truncate, and the key's low bits.
PEZ_BOTH float scan_error(float residual, float error, int64_t d, int tile) {
  return residual + error * (1 + residual) + 1.01f * (1.25f * float(d) + float(tile)) * 0x1p-23f;
}

// No token whose key is below can be the nearest, `best` being the best key of the row.
PEZ_BOTH Key limit(Key best, float scan_error) { return ordered(score_of(best) - 2 * scan_error); }

}  // namespace pez
