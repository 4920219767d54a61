// Splice writes prompts into the slots of templates; its backward sums the gradient back onto the prompts.
#pragma once

#include <cstdint>

#include "matrix.h"
#include "parallel.h"

namespace pez {

struct Shape {
  int64_t rows, positions, width;  // of the templates: (B, S, d)
  int64_t prompts, slots;          // (R, L, d)
};

// out (B, S, d) is contiguous, of the template's type; `hard` already has that type. The template's strides are in
// bytes, and its last dimension is contiguous.
void splice(const char* base, int64_t row_stride, int64_t position_stride, const char* hard, const int64_t* slots,
            const int64_t* owner, const Shape& shape, int64_t item, char* out, const Threads& threads);

// total (R, L, d) of Sum = float or double: the gradient at the slots, summed over the rows of each owner in ascending
// order. Strides are in elements; the last dimension is contiguous.
void splice_backward(const void* grad, Type type, int64_t row_stride, int64_t position_stride, const int64_t* slots,
                     const int64_t* owner, const Shape& shape, void* total, const Threads& threads);

}  // namespace pez
