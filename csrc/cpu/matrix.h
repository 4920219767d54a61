// Rows of a matrix, read as float64.
#pragma once

#include <cstdint>

#include "../matrix.h"

namespace pez {

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
