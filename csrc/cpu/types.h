// The floating-point types of a tensor, and each of their values as a wider one.
#pragma once

#include <cstdint>
#include <cstring>

namespace pez {

enum class Type : int { f64, f32, f16, bf16 };

struct Half {
  uint16_t raw;
};
struct Brain {
  uint16_t raw;
};

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

inline double widen(double v) { return v; }
inline float widen(float v) { return v; }
inline float widen(Brain v) { return bits<float>(uint32_t(v.raw) << 16); }

// The exponent is moved by a multiplication, which is exact and right for subnormals too.
inline float widen(Half v) {
  const uint32_t sign = uint32_t(v.raw & 0x8000) << 16;
  const uint32_t rest = uint32_t(v.raw & 0x7fff) << 13;
  const bool special = rest >= 0x0f800000;
  const float value = bits<float>(special ? (rest | 0x7f800000) : rest) * (special ? 1.0f : 0x1p112f);
  return bits<float>(bits<uint32_t>(value) | sign);
}

}  // namespace pez
