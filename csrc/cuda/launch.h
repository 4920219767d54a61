// The launchers take addresses, sizes and a stream; nothing here knows torch.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>
#include <vector>

#include "keys.h"
#include "query.h"

namespace pez::cuda {

constexpr int kWidth = 64;    // prepared rows are padded to a multiple of so many elements
constexpr int kFewRows = 32;  // the kernel for few queries takes at most so many

// Rows of the buffers for n queries: a multiple of the tiles that any scan reads, and of pairs of tiles above one tile.
constexpr int padded_rows(int n) { return n <= 128 ? 128 : (n + 255) / 256 * 256; }

struct Prepared {         // a prepared vocabulary
  const uint16_t* unit;   // fp16 (rows, width): unit rows; the last one is repeated up to a multiple of kTile
  const float* residual;  // (1): the most that rounding to fp16 took from a row
  int64_t rows, width;
  float slack;  // the rest of a scanned score's error on this card: pez_fast._shared.halves.scan_slack
};

struct Buffers {     // one kernel writes them and the next one reads them
  uint16_t* query;   // fp16 (padded rows, width)
  Rounded* rounded;  // (padded rows)
  Top2* keys;        // (n, tiles)
};

struct Answer {
  int64_t* found;  // (n)
  float* cosine;   // (n)
  int32_t* state;  // (n): 0 if the row has no direction, else Decision::state
};

// Searches for x (n, d), n at most 2^30 / tiles, by three kernels on the stream: the queries as fp16 unit vectors, the
// scan, the decision.
cudaError_t nearest(const Matrix& x, const Vocabulary& v, const Prepared& p, const Buffers& b, const Answer& out,
                    cudaStream_t stream);

// The kernels that the launchers would take on a card whose blocks may use `limit` bytes of shared memory, and the
// dynamic shared memory of each.
std::vector<std::pair<std::string, int>> plans(int limit, int64_t width);

struct SpliceArgs {  // base: template or gradient (B, S, d) of any strides, in elements; hard: (R, L, d) contiguous
  const void* base;
  Type type;
  int64_t row_stride, position_stride, column_stride;
  const void* hard;
  Type hard_type;
  const int64_t *slot, *owner;                     // (L), (B)
  int64_t rows, positions, width, prompts, slots;  // B, S, d, R, L
};

// out is (B, S, d) in the template's type; total is (R, L, d) float32, or float64 where the gradient is.
cudaError_t splice(const SpliceArgs& s, void* out, cudaStream_t stream);
cudaError_t splice_backward(const SpliceArgs& s, void* total, cudaStream_t stream);

}  // namespace pez::cuda
