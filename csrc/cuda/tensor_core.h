// How tensor cores add, to the bit, on the host: fp16 products of a query with a tile of tokens, accumulated in
// float32.
//
// A block of products and the sum so far are aligned under the largest exponent among them (the exponent of a product
// is the sum of its factors', not yet normalised), truncated `bits` places behind the point, added exactly, and
// truncated to float32. Xie et al. 2025 (MMA-Sim, arXiv 2511.10909) found these rules equal to the hardware to the bit:
// blocks of 8 with 24 bits on Ampere and Ada, whose instructions of depth 16 are two such blocks, and blocks of 16 with
// 25 bits on Hopper and Blackwell.
#pragma once

#include <vector>

#include "keys.h"

namespace pez::cuda {

struct SumRule {
  int block, bits;
};

constexpr int kNoExponent = -1000;  // the exponent of zero

inline int exponent_of(Half v) {  // a subnormal has the exponent of the smallest normal
  const int field = v.raw >> 10 & 31;
  return (v.raw & 0x7fff) == 0 ? kNoExponent : (field ? field : 1) - 15;
}

// Rows of the unit table of one tile, transposed: the tokens of the tile lie side by side.
struct TransposedTile {
  std::vector<float> value;       // (width, kTile)
  std::vector<int16_t> exponent;  // (width, kTile)

  TransposedTile(const uint16_t* unit, int64_t width) : value(width * kTile), exponent(width * kTile) {
    for (int token = 0; token < kTile; ++token) {
      for (int64_t k = 0; k < width; ++k) {
        const Half half{unit[token * width + k]};
        value[k * kTile + token] = widen(half), exponent[k * kTile + token] = int16_t(exponent_of(half));
      }
    }
  }
};

// Writes score (kTile) of one query, given as the values and exponents of its elements.
void add_as_tensor_cores(SumRule rule, const float* query, const int16_t* query_exponent, const TransposedTile& tile,
                         int64_t width, float* score);

}  // namespace pez::cuda
