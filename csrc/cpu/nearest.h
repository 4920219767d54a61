// The nearest token of each query by cosine: an int8 scan, then float64 for the tokens that it cannot tell apart.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "matrix.h"
#include "parallel.h"

namespace pez {

// A vocabulary of `count` tokens (rows ids[0], ids[1], … of `weight`) as `pack` prepared it.
struct Table {
  Matrix weight;
  const int64_t* ids;
  int64_t count;
  uint8_t* values;  // (blocks, d4, 64, 4)
  float* scale;     // (blocks * 64)
  float* error;     // (blocks * 64)
  double* power;    // (count): exact power of two that brings the row into range
  double* inverse;  // (count): 1 / norm of the row times power; 0 for a row of zeros

  int64_t d4() const { return (weight.columns + 3) / 4; }
  int64_t blocks() const { return (count + kTokens - 1) / kTokens; }
};

void pack(const Table& table, const Threads& threads);

struct Undecided {
  std::vector<int64_t> rows, tokens;  // candidates that float64 cannot tell apart
  std::vector<int64_t> overflowed;    // rows whose candidates did not fit into the buffer
  int64_t certified = 0, rescored = 0, rescanned = 0;
};

// found (N): id of the nearest token, -1 for a query that is not finite, -2 for one that is undecided; cosine (N).
Undecided nearest(const Matrix& x, const Table& table, const Kernels& kernels, const Threads& threads, int64_t* found,
                  float* cosine);

// The scan's bounds on every cosine: upper and lower (N, count). For tests.
void bounds(const Matrix& x, const Table& table, const Kernels& kernels, float* upper, float* lower);

}  // namespace pez
