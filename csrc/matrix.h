// A matrix of any floating-point type and strides, like a tensor.
#pragma once

#include "types.h"

namespace pez {

struct Row {
  const void* data;
  Type type;
  int64_t stride;  // in elements
};

struct Matrix {
  const void* data;
  Type type;
  int64_t rows, columns;
  int64_t row_stride, column_stride;  // in elements

  PEZ_HOST_DEVICE Row row(int64_t i) const {
    return {static_cast<const char*>(data) + i * row_stride * size_of(type), type, column_stride};
  }

  // Whether rows consist of chunks of eight elements, each chunk on a boundary of 16 bytes.
  PEZ_HOST_DEVICE bool packed() const {
    return type != Type::f64 && column_stride == 1 && columns % 8 == 0 && row_stride % 8 == 0 &&
           reinterpret_cast<uintptr_t>(data) % 16 == 0;
  }

  bool contiguous_floats() const { return type == Type::f32 && column_stride == 1; }
  const float* floats(int64_t row) const { return static_cast<const float*>(data) + row * row_stride; }
};

}  // namespace pez
