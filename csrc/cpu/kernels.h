// What depends on the instruction set: the scan of a few queries against a block of tokens, and a dot product.
//
// Both sides are unit vectors rounded to integers: token = scale (e - 128), e from 1 to 255; query = scale q, |q| <=
// levels. The integer product I = sum q (e - 128) is exact. With error_e and error_q, the norms of what rounding took,
//
//   |<query, token> - scale_q scale_e I| <= error_q + error_e (1 + error_q).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pez {

constexpr int kTokens = 64;  // tokens of a block, packed (d / 4, 64, 4)

struct Block {
  const uint8_t* values;
  const float* scale;  // 64
  const float* error;  // 64; minus infinity in place of a token behind the last
  int64_t d4;
  int64_t first;  // position of its first token
};

struct Query;

// Receives the tokens (bits of `which`) whose upper bound reached the query's threshold.
struct Listener {
  virtual void note(Query& query, const Block& block, uint64_t which, const float* upper, const float* lower) = 0;
  virtual ~Listener() = default;
};

struct Query {
  const int8_t* values;  // d4 * 4, zeros behind d
  float scale;
  int32_t offset;     // 128 sum of values
  float error_slope;  // upper bound = score + error_e * error_slope + error_base
  float error_base;
  float threshold;  // a token whose upper bound is below it cannot be the nearest
  Listener* listener;
};

struct Kernels {
  const char* name;
  int levels;  // largest |value| of a query
  int rows;    // queries at once
  void (*scan)(Query* queries, int count, const Block& block);
  double (*dot)(const float* q, const float* e, int64_t d);  // in float64
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvxVnni, kAvx512Vnni;
#endif

// The best that this CPU can run, and one by name (nullptr if there is none or this CPU cannot run it).
const Kernels& best_kernels();
const Kernels* kernels_named(const char* name);
std::vector<std::string> kernel_names();  // of those that this CPU can run, best first

}  // namespace pez
