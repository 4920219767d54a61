// The kernels of a search, which nearest.cu calls. A table has `tiles` tiles of kTile rows; keys are (n,
// tiles).
#pragma once

#include "card.h"
#include "launch.h"

namespace pez::cuda {

struct Shape {
  int n, padded_rows, width, tiles;
};

// Whether the code that this card runs waits for the previous kernel. Code compiled from PTX for older cards does not.
cudaError_t code_overlaps(bool& overlaps);
cudaError_t round_queries(const Matrix& x, const Shape& s, const Buffers& b, cudaStream_t stream);
cudaError_t decide_rows(const Matrix& x, const Vocabulary& v, const Prepared& p, const Shape& s, const Buffers& b,
                        const Answer& out, const Card& card, cudaStream_t stream);

// For up to 32 queries. few_plan: rows of the tile of queries and stages of the ring buffer; 0 where that does not fit.
struct FewPlan {
  int rows = 0, stages = 0, bytes = 0;
};
FewPlan few_plan(int n, int width, int limit);
cudaError_t scan_few(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream);

int scan_sm80_bytes();
cudaError_t scan_sm80(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream);

int scan_sm90_bytes();
cudaError_t scan_sm90(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream);

}  // namespace pez::cuda
