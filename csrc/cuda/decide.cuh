// What the kernels of this folder do with a row by one warp.
#pragma once

#include "launch.h"
#include "query.h"
#include "warp.cuh"

namespace pez {

// The decision on one row by one warp, written.
__device__ __forceinline__ void finish(const Queries& x, const Vocabulary& v, int64_t row, Rounded rounded, float residual, const Key* keys,
                                       int tiles, const Answer& out) {
  Decision decision;
  if (rounded.kind == kDirected) {
    decision = decide<kTile>(Warp{}, x.row(row), v, keys, tiles, scan_error(residual, rounded.error, v.d, kTile));
  } else {
    decision.cosine = rounded.kind == kZero ? 0 : NAN;
    decision.state = 0;
  }
  if (Warp{}.lane() == 0) {
    out.found[row] = rounded.kind == kNotFinite ? -1 : v.ids[decision.position];
    out.cosine[row] = float(decision.cosine);
    out.state[row] = decision.state;
  }
}

}  // namespace pez
