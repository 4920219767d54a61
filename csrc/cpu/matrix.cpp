#include "matrix.h"

#include <cmath>

namespace pez {
namespace {

template <class T>
void load(const Matrix& m, int64_t row, double* out) {
  const T* from = static_cast<const T*>(m.data) + row * m.row_stride;
  if (m.column_stride == 1) {
    for (int64_t i = 0; i < m.columns; ++i) out[i] = widen(from[i]);
  } else {
    for (int64_t i = 0; i < m.columns; ++i) out[i] = widen(from[i * m.column_stride]);
  }
}

}  // namespace

void load_row(const Matrix& m, int64_t row, double* out) {
  switch (m.type) {
    case Type::f64: return load<double>(m, row, out);
    case Type::f32: return load<float>(m, row, out);
    case Type::f16: return load<Half>(m, row, out);
    case Type::bf16: return load<BFloat16>(m, row, out);
  }
}

Scaled scale_row(double* row, int64_t columns) {
  double largest = 0, nonfinite = 0;
  for (int64_t i = 0; i < columns; ++i) {
    const double a = std::fabs(row[i]);
    largest = a > largest ? a : largest;
    nonfinite += a * 0;  // NaN if an element is not finite
  }
  if (nonfinite != 0) return {0, 0, false};
  if (largest == 0) return {0, 0, true};
  const uint64_t exponent = bits<uint64_t>(largest) >> 52;
  const double power = bits<double>((exponent < 2046 ? 2046 - exponent : 1) << 52);
  double square[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= columns; i += 4) {
    for (int j = 0; j < 4; ++j) {
      row[i + j] *= power;
      square[j] += row[i + j] * row[i + j];
    }
  }
  for (; i < columns; ++i) {
    row[i] *= power;
    square[0] += row[i] * row[i];
  }
  return {power, 1 / std::sqrt((square[0] + square[1]) + (square[2] + square[3])), true};
}

}  // namespace pez
