// The CUDA kernels' arithmetic on the host: rounding, tiles, keys, their merging, certification and decision, from the same headers.
// What is not simulated: moving the data, synchronisation, and the order in which tensor cores add.
#pragma once

#include "../cpu/parallel.h"
#include "finish.h"

namespace pez {

constexpr int kSimulatedTile = 128;

struct Simulated {
  int64_t* found;
  float* cosine;
  int32_t* state;
};

// x rows of any strides; unit (Kp, width) fp16, Kp a multiple of 128. `coarser` is added to the bound: more tokens seem able to win.
void simulate(const Vocabulary& x, int64_t n, const Vocabulary& v, const uint16_t* unit, int64_t width, float residual, float coarser,
              const Simulated& out, const Threads& threads);

}  // namespace pez
