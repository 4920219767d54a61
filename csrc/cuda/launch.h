// The launchers: addresses, sizes and a stream. Nothing here knows torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "finish.h"
#include "scan.h"

namespace pez {

struct Queries {  // x (n, d)
  const void* data;
  Type type;
  int64_t n, row_stride, column_stride;

  PEZ_BOTH Row row(int64_t i) const {
    return {static_cast<const char*>(data) + i * row_stride * size_of(type), type, column_stride};
  }
};

struct Prepared {  // what was prepared of a vocabulary
  const uint16_t* unit;   // fp16 (Kp, width): unit rows, padded with zeros
  const float* residual;  // (1): the most that rounding took from a row
  int64_t rows, width;   // Kp, a multiple of 128; a multiple of 64
};

struct Answer {
  int64_t* found;  // (n)
  float* cosine;   // (n)
  int32_t* state;  // (n): 0 no direction, else Decision::state
};

// Up to few_rows(...) queries, in one launch: `keys` has room for n * tiles * 2, `ready` (1) is 0 before and after.
int few_rows(int64_t width, int device);
cudaError_t nearest_few(const Queries& x, const Vocabulary& v, const Prepared& p, Key* keys, unsigned* ready, const Answer& out, cudaStream_t stream);

// Any number, in three: query (n rounded up to 256, width) fp16, error (the same) float32.
cudaError_t nearest_many(const Queries& x, const Vocabulary& v, const Prepared& p, uint16_t* query, float* error, Key* keys,
                         const Answer& out, cudaStream_t stream);

struct Spliced {  // template or gradient (B, S, d) of any strides, in elements; hard (R, L, d) and added (S, d) contiguous
  const void* base;
  Type type;
  int64_t row_stride, position_stride, column_stride;
  const void* hard;
  Type hard_type;
  const void* added;  // or nullptr
  Type added_type;
  const int64_t *slot, *owner;                      // (L), (B)
  int64_t rows, positions, width, prompts, slots;  // B, S, d, R, L
};

// out (B, S, d) in the template's type; total (R, L, d) float32, or float64 where the gradient is.
cudaError_t splice(const Spliced& s, void* out, cudaStream_t stream);
cudaError_t splice_backward(const Spliced& s, void* total, cudaStream_t stream);

}  // namespace pez
