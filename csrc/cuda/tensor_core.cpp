#include "tensor_core.h"

namespace pez::cuda {

// Versions for wider registers are chosen at run time; the loops over a tile's tokens have no branches.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PEZ_WIDER __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PEZ_WIDER
#endif

PEZ_WIDER void add_as_tensor_cores(SumRule rule, const float* query, const int16_t* query_exponent,
                                   const TransposedTile& tile, int64_t width, float* score) {
  constexpr int kHalf = 8;  // the sum of so many products, none above 2^(bits + 2), fits into 32 bits
  int16_t largest[kTile];
  float scale[kTile];
  int32_t sum[2][kTile];
  for (int t = 0; t < kTile; ++t) score[t] = 0;
  for (int64_t start = 0; start < width; start += rule.block) {
    for (int t = 0; t < kTile; ++t) {
      const int32_t field = int32_t(bits<uint32_t>(score[t]) >> 23 & 255);
      largest[t] = int16_t(field ? field - 127 : kNoExponent);
    }
    for (int64_t k = start; k < start + rule.block; ++k) {
      const int16_t* exponent = tile.exponent.data() + k * kTile;
      const int16_t own = query_exponent[k];
      for (int t = 0; t < kTile; ++t) {
        const int16_t one = int16_t(own + exponent[t]);
        largest[t] = largest[t] > one ? largest[t] : one;
      }
    }
    for (int t = 0; t < kTile; ++t) {
      // Smaller exponents: everything is zero, whatever the scale.
      const int32_t top = largest[t] > -60 ? largest[t] : -60;
      scale[t] = bits<float>(uint32_t(127 + rule.bits - top) << 23);
      sum[0][t] = sum[1][t] = 0;
    }
    for (int64_t k = start; k < start + rule.block; ++k) {
      const float* value = tile.value.data() + k * kTile;
      const float own = query[k];
      int32_t* to = sum[(k - start) / kHalf];
      for (int t = 0; t < kTile; ++t)
        // A product has 22 bits, and the scale is a power of two: exact, then truncated.
        to[t] += int32_t(own * value[t] * scale[t]);
    }
    for (int t = 0; t < kTile; ++t) {
      const double total = double(sum[0][t]) + double(sum[1][t]) + double(int32_t(score[t] * scale[t]));
      const double scaled = total / double(scale[t]);
      score[t] = float(bits<double>(bits<uint64_t>(scaled) & ~((uint64_t(1) << 29) - 1)));  // truncated to 24 bits
    }
  }
}

}  // namespace pez::cuda
