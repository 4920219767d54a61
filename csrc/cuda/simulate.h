// The CUDA kernels' arithmetic on the host, from the same headers: rounding, the scores as tensor cores add them,
// tiles, keys, certification and decision. Data movement and synchronisation are not simulated.
#pragma once

#include "../cpu/parallel.h"
#include "rows.h"
#include "tensor_core.h"

namespace pez::cuda {

struct Simulated {
  int64_t* found;
  float* cosine;
  int32_t* state;
};

// x (n, d); unit (Kp, width) fp16, Kp a multiple of kTile; slack as in Prepared. `coarser` is added to the bound, so
// that more tokens are compared exactly.
void simulate(const Matrix& x, const Vocabulary& v, const uint16_t* unit, int64_t width, float residual, float slack,
              float coarser, SumRule rule, const Simulated& out, const Threads& threads);

}  // namespace pez::cuda
