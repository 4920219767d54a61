// The scan of many queries: of every tile of tokens the two best keys of each query.
#pragma once

#include <cuda_runtime_api.h>

#include "keys.h"

namespace pez {

constexpr int kTile = 128;  // tokens of a tile

// query (query_rows, width) and table (table_rows, width) fp16, width a multiple of 64; keys (n, tiles of count, 2).
cudaError_t scan_sm80(const uint16_t* query, const uint16_t* table, int64_t width, int64_t n, int64_t count, Key* keys, cudaStream_t stream);
cudaError_t scan_sm90(const uint16_t* query, int64_t query_rows, const uint16_t* table, int64_t table_rows, int64_t width, int64_t n, int64_t count,
                      Key* keys, int multiprocessors, cudaStream_t stream);

}  // namespace pez
