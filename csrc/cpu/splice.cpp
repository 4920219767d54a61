#include "splice.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace pez {
namespace {

// Python has checked these values too, except where the caller is being compiled.
void check(const int64_t* index, int64_t count, int64_t end, const char* name) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < 0 || index[i] >= end) {
      throw std::out_of_range(std::string(name) + " must lie from 0 to " + std::to_string(end - 1) + "; got " +
                              std::to_string(index[i]));
    }
  }
}

void check(const int64_t* slots, const int64_t* owner, const Shape& shape) {
  check(slots, shape.slots, shape.positions, "slots");
  check(owner, shape.rows, shape.prompts, "owner");
}

// The rows of each prompt in ascending order: rows[begin[r]] to rows[begin[r + 1]].
struct Carriers {
  std::vector<int64_t> begin, rows;

  Carriers(const int64_t* owner, const Shape& shape) : begin(shape.prompts + 1, 0), rows(shape.rows) {
    for (int64_t b = 0; b < shape.rows; ++b) ++begin[owner[b] + 1];
    for (int64_t r = 0; r < shape.prompts; ++r) begin[r + 1] += begin[r];
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t b = 0; b < shape.rows; ++b) rows[next[owner[b]]++] = b;
  }
};

template <class T, class Sum>
void gather(const void* grad, int64_t row_stride, int64_t position_stride, const int64_t* slots,
            const Carriers& carriers, const Shape& shape, void* total, const Threads& threads) {
  const int64_t d = shape.width, elements = shape.prompts ? d * (1 + shape.rows / shape.prompts) : 1;
  threads.parallel_for(shape.prompts * shape.slots, (64 << 10) / (elements + 1) + 1, [&](int64_t task) {
    const int64_t r = task / shape.slots, l = task % shape.slots;
    Sum* sum = static_cast<Sum*>(total) + task * d;
    for (int64_t k = 0; k < d; ++k) sum[k] = 0;
    for (int64_t i = carriers.begin[r]; i < carriers.begin[r + 1]; ++i) {
      const T* from = static_cast<const T*>(grad) + carriers.rows[i] * row_stride + slots[l] * position_stride;
      for (int64_t k = 0; k < d; ++k) sum[k] += widen(from[k]);
    }
  });
}

}  // namespace

void splice(const char* base, int64_t row_stride, int64_t position_stride, const char* hard, const int64_t* slots,
            const int64_t* owner, const Shape& shape, int64_t item, char* out, const Threads& threads) {
  check(slots, owner, shape);
  std::vector<int64_t> slot_of(shape.positions, -1);
  for (int64_t l = 0; l < shape.slots; ++l) slot_of[slots[l]] = l;
  const int64_t bytes = shape.width * item;
  const int64_t grain = bytes * shape.positions > 0 ? (256 << 10) / (bytes * shape.positions) + 1 : 1;
  threads.parallel_for(shape.rows, grain, [&](int64_t b) {
    for (int64_t s = 0; s < shape.positions; ++s) {
      const char* from = slot_of[s] < 0 ? base + b * row_stride + s * position_stride
                                        : hard + (owner[b] * shape.slots + slot_of[s]) * bytes;
      std::memcpy(out + (b * shape.positions + s) * bytes, from, bytes);
    }
  });
}

void splice_backward(const void* grad, Type type, int64_t row_stride, int64_t position_stride, const int64_t* slots,
                     const int64_t* owner, const Shape& shape, void* total, const Threads& threads) {
  check(slots, owner, shape);
  const Carriers carriers(owner, shape);
  const auto run = [&](auto* kernel) {
    kernel(grad, row_stride, position_stride, slots, carriers, shape, total, threads);
  };
  switch (type) {
    case Type::f64: return run(&gather<double, double>);
    case Type::f32: return run(&gather<float, float>);
    case Type::f16: return run(&gather<Half, float>);
    case Type::bf16: return run(&gather<BFloat16, float>);
  }
}

}  // namespace pez
