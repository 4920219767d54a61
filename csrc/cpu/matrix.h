// Rows of a matrix of any floating-point type and strides, read as float64.
#pragma once

#include <cstdint>

#include "../types.h"

namespace pez {

struct Matrix {
  const void* data;
  Type type;
  int64_t rows, columns;
  int64_t row_stride, column_stride;  // in elements

  bool contiguous_floats() const { return type == Type::f32 && column_stride == 1; }
  const float* floats(int64_t row) const { return static_cast<const float*>(data) + row * row_stride; }
};

// out (columns) = the row in float64.
void load_row(const Matrix& m, int64_t row, double* out);

struct Scaled {
  double power;    // exact power of two: power * largest |element| lies from 1/2 to 2; 0 for a row of zeros
  double inverse;  // 1 / norm of the scaled row; 0 for a row of zeros
  bool finite;
};

// Scales a row in place, so that no square leaves the range of float64, and gives its norm.
Scaled scale_row(double* row, int64_t columns);

}  // namespace pez
