#include "simulate.h"

#include <memory>
#include <vector>

#include "decide.h"

namespace pez {
namespace {

// One thread as a team.
struct Alone {
  int lane() const { return 0; }
  int lanes() const { return 1; }
  int warp() const { return 0; }
  int warps() const { return 1; }
  template <class T>
  T warp_sum(T v) const { return v; }
  template <class T>
  T warp_maximum(T v) const { return v; }
  uint32_t ballot(bool mine) const { return mine; }
  int lowest(uint32_t) const { return 0; }
  Best from_lane(Best best, int) const { return best; }
  template <class Chosen, class Work, class Merge, class Take>
  void each_task(const Task& mine, Chosen chosen, Work work, Merge, Take take) const {
    if (chosen(mine)) take(work(mine));
  }
};

Best best_of_tile(const float* score) {
  Best best;
  for (int group = 0; group < kGroups; ++group) {
    float top = score[place_in_tile(group, 0)];
    for (int i = 1; i < kGroup; ++i) top = larger(top, score[place_in_tile(group, i)]);
    best = merged(best, {pack(top, group), kLowest});
  }
  return best;
}

struct Search {
  const Matrix& x;
  const Vocabulary& v;
  const uint16_t* unit;
  int64_t width;
  float residual, slack;
  SumRule rule;
  const std::vector<std::unique_ptr<TransposedTile>>& tiles;

  Rounded round(int64_t i, std::vector<Half>& query) const {
    if (x.type == Type::f32 && x.packed()) {
      return round_packed(Alone{}, static_cast<const float*>(x.row(i).data), int(x.columns), int(width),
                          [&](int chunk, const Half(&half)[8]) { std::copy(half, half + 8, query.begin() + 8 * chunk); });
    }
    return round_strided(Alone{}, x.row(i), x.columns, width, [&](int64_t k, Half half) { query[k] = half; });
  }

  std::vector<Best> scan(const std::vector<Half>& query) const {
    std::vector<float> value(width);
    std::vector<int16_t> exponent(width);
    for (int64_t k = 0; k < width; ++k) value[k] = widen(query[k]), exponent[k] = int16_t(exponent_of(query[k]));
    std::vector<Best> keys;
    for (const auto& tile : tiles) {
      float score[kTile];
      add_as_tensor_cores(rule, value.data(), exponent.data(), *tile, width, score);
      keys.push_back(best_of_tile(score));
    }
    return keys;
  }

  Decision decided(Task& task) const {
    switch (reading(x, v)) {
      case Type::f32: return decide<float>(Alone{}, task, v);
      case Type::f16: return decide<Half>(Alone{}, task, v);
      case Type::bf16: return decide<Brain>(Alone{}, task, v);
      default: return decide<double>(Alone{}, task, v);
    }
  }
};

}  // namespace

void simulate(const Matrix& x, const Vocabulary& v, const uint16_t* unit, int64_t width, float residual, float slack, float coarser, SumRule rule,
              const Simulated& out, const Threads& threads) {
  std::vector<std::unique_ptr<TransposedTile>> tiles((v.count + kTile - 1) / kTile);
  threads.each(int64_t(tiles.size()), 1, [&](int64_t t) { tiles[t] = std::make_unique<TransposedTile>(unit + t * kTile * width, width); });
  const Search search{x, v, unit, width, residual, slack, rule, tiles};
  threads.each(x.rows, 1, [&](int64_t i) {
    std::vector<Half> query(width);
    const Rounded rounded = search.round(i, query);
    Task task;
    task.directed = rounded.kind == kDirected;
    std::vector<Best> keys;
    if (task.directed) {
      keys = search.scan(query);
      task.query = {x.row(i), rounded.norm};
      task.scanned = {keys.data(), int(keys.size()), query.data(), reinterpret_cast<const Half*>(unit), int(width),
                      scan_error(residual, rounded.error, slack) + coarser};
    }
    const Decision decision = search.decided(task);
    out.found[i] = rounded.kind == kNotFinite ? -1 : v.ids[decision.position];
    out.cosine[i] = task.directed ? float(decision.cosine) : rounded.kind == kZero ? 0.0f : NAN;
    out.state[i] = task.directed ? decision.state() : 0;
  });
}

}  // namespace pez
