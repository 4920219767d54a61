// The launchers: addresses, sizes and a stream. Nothing here knows torch.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>
#include <vector>

#include "keys.h"
#include "query.h"

namespace pez::cuda {

constexpr int kWidth = 64;    // elements to whose multiple prepared rows are padded
constexpr int kFewRows = 32;  // most rows that the kernel for few takes

// Rows of the buffers for n queries: a whole number of the tiles that any scan reads, of pairs of them from the second on.
constexpr int padded_rows(int n) { return n <= 128 ? 128 : (n + 255) / 256 * 256; }

struct Prepared {           // what was prepared of a vocabulary
  const uint16_t* unit;     // fp16 (rows, width): unit rows, the last one repeated to a multiple of kTile
  const float* residual;    // (1): the most that rounding took from a row
  int64_t rows, width;
  float slack;              // the rest of a scanned score's error on this card: pez_fast._shared.halves.scan_slack
};

struct Buffers {            // written by one kernel and read by the next
  uint16_t* query;          // fp16 (padded rows, width)
  Rounded* rounded;         // (padded rows)
  Best* keys;               // (n, tiles)
};

struct Answer {
  int64_t* found;  // (n)
  float* cosine;   // (n)
  int32_t* state;  // (n): 0 no direction, else Decision::state
};

// x (n, d), n at most 2^30 / tiles. Three kernels on the stream: the queries as fp16 unit vectors, the scan, the decision.
cudaError_t nearest(const Matrix& x, const Vocabulary& v, const Prepared& p, const Buffers& b, const Answer& out, cudaStream_t stream);

// What the launchers would choose on a card whose blocks may use so many bytes of shared memory: kernels and their dynamic part.
std::vector<std::pair<std::string, int>> plans(int limit, int64_t width);

struct Spliced {  // template or gradient (B, S, d) of any strides, in elements; hard (R, L, d) contiguous
  const void* base;
  Type type;
  int64_t row_stride, position_stride, column_stride;
  const void* hard;
  Type hard_type;
  const int64_t *slot, *owner;                     // (L), (B)
  int64_t rows, positions, width, prompts, slots;  // B, S, d, R, L
};

// out (B, S, d) in the template's type; total (R, L, d) float32, or float64 where the gradient is.
cudaError_t splice(const Spliced& s, void* out, cudaStream_t stream);
cudaError_t splice_backward(const Spliced& s, void* total, cudaStream_t stream);

}  // namespace pez::cuda
