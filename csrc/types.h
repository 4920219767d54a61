// The floating-point types of a tensor, and conversions of their values to wider types.
#pragma once

#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "portable.h"

namespace pez {

enum class Type : int { f64, f32, f16, bf16 };

struct Half {
  uint16_t raw;
};
struct BFloat16 {
  uint16_t raw;
};

template <class To, class From>
PEZ_HOST_DEVICE To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To out;
  memcpy(&out, &value, sizeof out);
  return out;
}

PEZ_HOST_DEVICE double widen(double v) { return v; }
PEZ_HOST_DEVICE float widen(float v) { return v; }
PEZ_HOST_DEVICE float widen(BFloat16 v) { return bits<float>(uint32_t(v.raw) << 16); }

// A multiplication moves the exponent; it is exact, and right for subnormals too.
PEZ_HOST_DEVICE float widen(Half v) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(v.raw));
#else
  const uint32_t sign = uint32_t(v.raw & 0x8000) << 16;
  const uint32_t rest = uint32_t(v.raw & 0x7fff) << 13;
  const bool special = rest >= 0x0f800000;
  const float value = bits<float>(special ? (rest | 0x7f800000) : rest) * (special ? 1.0f : 0x1p112f);
  return bits<float>(bits<uint32_t>(value) | sign);
#endif
}

// float32 to fp16, to the nearest, ties to even.
PEZ_HOST_DEVICE Half narrow(float v) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(v))};
#else
  const uint32_t raw = bits<uint32_t>(v), sign = raw >> 16 & 0x8000, rest = raw & 0x7fffffff;
  if (rest > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (rest >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
  if (rest < 0x38800000) {  // subnormal in fp16: adding 2^-1 makes float32 round at its last place
    return {uint16_t(sign | (bits<uint32_t>(bits<float>(rest) + 0.5f) - bits<uint32_t>(0.5f)))};
  }
  return {uint16_t(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13))};
#endif
}

PEZ_HOST_DEVICE int size_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }

// An element of one of the three narrower types.
PEZ_HOST_DEVICE float load(const void* data, Type type, int64_t at) {
  if (type == Type::f32) return static_cast<const float*>(data)[at];
  return type == Type::f16 ? widen(static_cast<const Half*>(data)[at]) : widen(static_cast<const BFloat16*>(data)[at]);
}

}  // namespace pez
