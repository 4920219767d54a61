#include "splice.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace pez {
namespace {

// Python has looked at the values too, but not where the caller is being compiled.
void check(const int64_t* index, int64_t count, int64_t end, const char* name) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < 0 || index[i] >= end) {
      throw std::out_of_range(std::string(name) + " must lie from 0 to " + std::to_string(end - 1) + "; got " + std::to_string(index[i]));
    }
  }
}

void check(const int64_t* slots, const int64_t* owner, const Shape& shape) {
  check(slots, shape.slots, shape.positions, "slots");
  check(owner, shape.rows, shape.prompts, "owner");
}

}  // namespace

void splice(const char* base, int64_t row_stride, int64_t position_stride, const char* hard, const int64_t* slots, const int64_t* owner,
            const Shape& shape, int64_t item, char* out, const Threads& threads) {
  check(slots, owner, shape);
  std::vector<int64_t> slot_of(shape.positions, -1);
  for (int64_t l = 0; l < shape.slots; ++l) slot_of[slots[l]] = l;
  const int64_t bytes = shape.width * item;
  const int64_t grain = bytes * shape.positions > 0 ? (256 << 10) / (bytes * shape.positions) + 1 : 1;
  threads.each(shape.rows, grain, [&](int64_t b) {
    for (int64_t s = 0; s < shape.positions; ++s) {
      const char* from = slot_of[s] < 0 ? base + b * row_stride + s * position_stride : hard + (owner[b] * shape.slots + slot_of[s]) * bytes;
      std::memcpy(out + (b * shape.positions + s) * bytes, from, bytes);
    }
  });
}

void splice_backward(const void* grad, Type type, int64_t row_stride, int64_t position_stride, const int64_t* slots, const int64_t* owner,
                     const Shape& shape, void* total, const Threads& threads) {
  check(slots, owner, shape);
  // The rows of each prompt, in ascending order: rows_of[begin[r]] to rows_of[begin[r + 1]].
  std::vector<int64_t> begin(shape.prompts + 1, 0), rows_of(shape.rows);
  for (int64_t b = 0; b < shape.rows; ++b) ++begin[owner[b] + 1];
  for (int64_t r = 0; r < shape.prompts; ++r) begin[r + 1] += begin[r];
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t b = 0; b < shape.rows; ++b) rows_of[next[owner[b]]++] = b;
  const int64_t elements = shape.prompts ? shape.width * (1 + shape.rows / shape.prompts) : 1;
  threads.each(shape.prompts * shape.slots, (64 << 10) / elements + 1, [&](int64_t task) {
    const int64_t r = task / shape.slots, l = task % shape.slots, d = shape.width;
    std::vector<double> row(d), wide(d, 0.0);
    std::vector<float> sum(d, 0.0f);
    for (int64_t i = begin[r]; i < begin[r + 1]; ++i) {
      const int64_t offset = rows_of[i] * row_stride + slots[l] * position_stride;
      if (type == Type::f64) {
        const double* from = static_cast<const double*>(grad) + offset;
        for (int64_t k = 0; k < d; ++k) wide[k] += from[k];
      } else if (type == Type::f32) {
        const float* from = static_cast<const float*>(grad) + offset;
        for (int64_t k = 0; k < d; ++k) sum[k] += from[k];
      } else {
        load_row({grad, type, 1, d, 1, 1}, offset, row.data());
        for (int64_t k = 0; k < d; ++k) sum[k] += float(row[k]);
      }
    }
    if (type == Type::f64) {
      std::memcpy(static_cast<double*>(total) + task * d, wide.data(), d * sizeof(double));
    } else {
      std::memcpy(static_cast<float*>(total) + task * d, sum.data(), d * sizeof(float));
    }
  });
}

}  // namespace pez
