#include "simulate.h"

#include <vector>

#include "query.h"

namespace pez {
namespace {

struct Alone {
  int lane() const { return 0; }
  int size() const { return 1; }
  template <class T>
  T sum(T v) const { return v; }
  template <class T>
  T maximum(T v) const { return v; }
  int minimum(int v) const { return v; }
};

// The two best of a tile, as the lanes of a warp find them: each looks at every fourth pair of tokens, then four merge, then warps.
Best best_of_tile(const float* score, int64_t first, int64_t count) {
  Best tile;
  for (int warp = 0; warp < 4; ++warp) {
    Best lanes[4];
    for (int t = 0; t < 32; ++t) {
      const int place = warp * 32 + t;
      if (first + place < count) add(lanes[t / 2 % 4], pack<kSimulatedTile>(score[place], place));
    }
    tile = merged(tile, merged(merged(lanes[0], lanes[1]), merged(lanes[2], lanes[3])));
  }
  return tile;
}

}  // namespace

void simulate(const Vocabulary& x, int64_t n, const Vocabulary& v, const uint16_t* unit, int64_t width, float residual, float coarser,
              const Simulated& out, const Threads& threads) {
  const int64_t tiles = (v.count + kSimulatedTile - 1) / kSimulatedTile;
  std::vector<float> table(tiles * kSimulatedTile * width);
  threads.each(tiles, 1, [&](int64_t tile) {
    const int64_t begin = tile * kSimulatedTile * width;
    for (int64_t i = begin; i < begin + kSimulatedTile * width; ++i) table[i] = widen(Half{unit[i]});
  });
  threads.each(n, 1, [&](int64_t i) {
    const Row row = x.row(i);
    std::vector<float> query(width);
    const Rounded rounded = round_query(Alone{}, row, v.d, width, [&](int64_t k, Half half) { query[k] = widen(half); });
    Decision decision;
    if (rounded.kind == kDirected) {
      std::vector<Key> keys(tiles * 2);
      float score[kSimulatedTile];
      for (int64_t tile = 0; tile < tiles; ++tile) {
        for (int place = 0; place < kSimulatedTile; ++place) {
          const float* token = table.data() + (tile * kSimulatedTile + place) * width;
          float sum = 0;
          for (int64_t k = 0; k < width; k += 16) {  // an instruction adds sixteen products
            float part[4] = {0, 0, 0, 0};
            for (int j = 0; j < 16; ++j) part[j % 4] += query[k + j] * token[k + j];
            sum += (part[0] + part[1]) + (part[2] + part[3]);
          }
          score[place] = sum;
        }
        const Best best = best_of_tile(score, tile * kSimulatedTile, v.count);
        keys[2 * tile] = best.first, keys[2 * tile + 1] = best.second;
      }
      const float error = scan_error(residual, rounded.error, v.d, kSimulatedTile) + coarser;
      decision = decide<kSimulatedTile>(Alone{}, row, v, keys.data(), int(tiles), error);
    } else {
      decision.cosine = rounded.kind == kZero ? 0 : NAN;
      decision.state = 0;
    }
    out.found[i] = rounded.kind == kNotFinite ? -1 : v.ids[decision.position];
    out.cosine[i] = float(decision.cosine);
    out.state[i] = decision.state;
  });
}

}  // namespace pez
