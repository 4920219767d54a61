#include "simulate.h"

#include <memory>
#include <vector>

#include "decide.h"

namespace pez::cuda {
namespace {

// A team of one thread.
struct SingleThread {
  int lane() const { return 0; }
  int lanes() const { return 1; }
  int warp() const { return 0; }
  int warps() const { return 1; }
  template <class T>
  T warp_sum(T v) const {
    return v;
  }
  template <class T>
  T warp_maximum(T v) const {
    return v;
  }
  uint32_t ballot(bool mine) const { return mine; }
  int lowest(uint32_t set) const { return __builtin_ctz(set); }
  uint32_t from_lane(uint32_t v, int) const { return v; }
  uint32_t publish(const Task& mine, bool wanted) {
    task = mine;
    return wanted;
  }
  const Task& published(int) const { return task; }
  template <class T, class Merge>
  T gathered(const T& mine, Merge) const {
    return mine;
  }

  Task task;
};

Top2 top2_of_tile(const float* score) {
  Top2 best;
  for (int group = 0; group < kGroups; ++group) {
    float top = score[token_in_tile(group, 0)];
    for (int i = 1; i < kGroup; ++i) top = larger(top, score[token_in_tile(group, i)]);
    best = merged(best, {pack(top, group), kLowest});
  }
  return best;
}

struct Simulation {
  const Matrix& x;
  const Vocabulary& v;
  const uint16_t* unit;
  int64_t width;
  float residual;
  SumRule rule;
  const std::vector<std::unique_ptr<TransposedTile>>& tiles;

  Rounded round(int64_t i, std::vector<Half>& query) const {
    if (x.type == Type::f32 && x.packed()) {
      return round_packed(
          SingleThread{}, static_cast<const float*>(x.row(i).data), int(x.columns), int(width),
          [&](int chunk, const Half(&half)[8]) { std::copy(half, half + 8, query.begin() + 8 * chunk); });
    }
    return round_strided(SingleThread{}, x.row(i), x.columns, width, [&](int64_t k, Half half) { query[k] = half; });
  }

  std::vector<Top2> scan(const std::vector<Half>& query) const {
    std::vector<float> value(width);
    std::vector<int16_t> exponent(width);
    for (int64_t k = 0; k < width; ++k) value[k] = widen(query[k]), exponent[k] = int16_t(exponent_of(query[k]));
    std::vector<Top2> keys;
    for (const auto& tile : tiles) {
      float score[kTile];
      add_as_tensor_cores(rule, value.data(), exponent.data(), *tile, width, score);
      keys.push_back(top2_of_tile(score));
    }
    return keys;
  }

  // Decides row i alone, as a matrix of one row.
  Decision decided(int64_t i, const Rounded& rounded, const std::vector<Half>& query, const std::vector<Top2>& keys,
                   float slack) const {
    Matrix one = x;
    one.data = x.row(i).data, one.rows = 1;
    const Search s{one,
                   v,
                   reinterpret_cast<const Half*>(unit),
                   &residual,
                   query.data(),
                   &rounded,
                   keys.data(),
                   int(width),
                   int(keys.size()),
                   slack};
    switch (reading(x, v)) {
      case Type::f32: return decide<float>(SingleThread{}, s, 0);
      case Type::f16: return decide<Half>(SingleThread{}, s, 0);
      case Type::bf16: return decide<BFloat16>(SingleThread{}, s, 0);
      default: return decide<double>(SingleThread{}, s, 0);
    }
  }
};

}  // namespace

void simulate(const Matrix& x, const Vocabulary& v, const uint16_t* unit, int64_t width, float residual, float slack,
              float coarser, SumRule rule, const Simulated& out, const Threads& threads) {
  std::vector<std::unique_ptr<TransposedTile>> tiles((v.count + kTile - 1) / kTile);
  threads.parallel_for(int64_t(tiles.size()), 1, [&](int64_t t) {
    tiles[t] = std::make_unique<TransposedTile>(unit + t * kTile * width, width);
  });
  const Simulation simulation{x, v, unit, width, residual, rule, tiles};
  threads.parallel_for(x.rows, 1, [&](int64_t i) {
    std::vector<Half> query(width);
    const Rounded rounded = simulation.round(i, query);
    const bool directed = rounded.kind == kDirected;
    const Decision decision =
        directed ? simulation.decided(i, rounded, query, simulation.scan(query), slack + coarser) : Decision{};
    out.found[i] = directed ? decision.id : rounded.kind == kZero ? v.ids[0] : -1;
    out.cosine[i] = directed ? float(decision.cosine) : rounded.kind == kZero ? 0.0f : NAN;
    out.state[i] = directed ? decision.state() : 0;
  });
}

}  // namespace pez::cuda
