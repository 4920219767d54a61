// The decision: of each row, the tokens that may have won by the scan's error bound, compared exactly.
//
// Replaces `scores.argmax(-1)` over the whole vocabulary by a look at what the scan could not exclude. Bound by the latency of four
// dependent loads: keys -> fp16 rows of the four tokens of a group -> ids -> rows of the one or two that remain. `Team` is a block of
// some warps on the GPU, each with a row of its own, and a single thread in the simulation. What takes long is rare and is done by all
// warps together, row after row: a tile in which several groups may hold the winner, and cosines that float64 cannot tell apart.
#pragma once

#include "cosine.h"
#include "keys.h"
#include "query.h"

namespace pez::cuda {

struct Search {            // what the decision reads
  Matrix x;                // (n, d)
  Vocabulary v;
  const Half* unit;        // (tiles * kTile, width)
  const float* residual;   // (1)
  const Half* query;       // (n, width)
  const Rounded* rounded;  // (n)
  const Best* keys;        // (n, tiles)
  int width, tiles;
  float slack;
};

struct Decision {
  double cosine = -INFINITY, runner_up = -INFINITY;
  int64_t id = 0;
  int compared = 0;      // tokens compared exactly
  bool several = false;  // a whole tile has to be looked at, or was

  // 1: the scan decided; 2: several were compared; 3: whole tiles were looked at
  PEZ_BOTH int state() const { return several ? 3 : compared > 1 ? 2 : 1; }
};

PEZ_BOTH Decision merged(const Decision& a, const Decision& b) {
  const bool a_first = a.cosine > b.cosine || (a.cosine == b.cosine && a.id < b.id);
  const Decision &best = a_first ? a : b, &other = a_first ? b : a;
  return {best.cosine, fmax(fmax(a.runner_up, b.runner_up), other.cosine), best.id, a.compared + b.compared, a.several || b.several};
}

struct WideDecision {
  WideCosine best;
  int64_t id = -1;  // none yet
};

// The larger of two wide cosines, the lower id where they are closer than their error.
PEZ_BOTH WideDecision merged(const WideDecision& a, const WideDecision& b, double error) {
  if (a.id < 0 || b.id < 0) return a.id < 0 ? b : a;
  const double ahead = (a.best.value.hi - b.best.value.hi) + (a.best.value.lo - b.best.value.lo);
  const double level = error * (a.best.size + b.best.size);
  return ahead > level || (ahead >= -level && a.id < b.id) ? a : b;
}

struct Share {  // a warp's part of what several warps do
  int number = 0, of = 1;
};

// Over a row's candidates, in this order: those of tiles in which one group may hold the winner, by the row's own warp; those of tiles in
// which several may, by all warps; all of them once more where cosines are too close for float64, by all warps.
enum Pass { kSingles = 1, kWholes = 2, kTies = kSingles | kWholes };

struct Task {  // of one warp
  int row;
  float limit;    // a score below it cannot be the nearest's; infinite for a row that has none
  double norm;    // of the row
  double enough;  // a cosine below it cannot be the nearest's; float64 tells no more
};

constexpr int kKeysTogether = 16;  // keys that a lane has on their way at once

// The best keys of tiles start + i * lanes(), of what is no tile something lower.
template <class Team>
PEZ_BOTH void read_keys(Team t, const Best* keys, int start, int tiles, Key (&key)[kKeysTogether]) {
  PEZ_UNROLL
  for (int i = 0; i < kKeysTogether; ++i) {
    const int tile = start + i * t.lanes() + t.lane();
    key[i] = tile < tiles ? keys[tile].first : -INFINITY;
  }
}

// Of this lane's tiles.
template <class Team>
PEZ_BOTH Key best_key(Team t, const Best* keys, int tiles) {
  Key best = kLowest;
  PEZ_ROLLED
  for (int start = 0; start < tiles; start += kKeysTogether * t.lanes()) {
    Key key[kKeysTogether];
    read_keys(t, keys, start, tiles, key);
    PEZ_UNROLL
    for (int i = 0; i < kKeysTogether; ++i) best = larger(best, key[i]);
  }
  return best;
}

// visit(tile, group) for every group that may hold the winner; whether there were whole tiles. Each lane looks at every so many-th tile, 32 of
// them at once, and remembers those that reach the limit as bits.
template <class Team, class Visit>
PEZ_BOTH bool each_group(Team t, const Search& s, const Task& task, Pass pass, Share share, Visit visit) {
  const Best* keys = s.keys + int64_t(task.row) * s.tiles;
  bool several = false;
  for (int start = 0; start < s.tiles; start += 32 * t.lanes()) {
    uint32_t reached = 0;
    PEZ_ROLLED
    for (int part = 0; part < 32 && start + part * t.lanes() < s.tiles; part += kKeysTogether) {
      Key key[kKeysTogether];
      read_keys(t, keys, start + part * t.lanes(), s.tiles, key);
      PEZ_UNROLL
      for (int i = 0; i < kKeysTogether; ++i) reached |= uint32_t(key[i] >= task.limit) << (part + i);
    }
    PEZ_ROLLED
    for (uint32_t lanes = t.ballot(reached != 0); lanes; lanes &= lanes - 1) {
      const int lane = t.lowest(lanes);
      PEZ_ROLLED
      for (uint32_t hits = t.from_lane(reached, lane); hits; hits &= hits - 1) {
        const int tile = start + t.lowest(hits) * t.lanes() + lane;
        const Best best = keys[tile];
        const bool whole = best.second >= task.limit;
        several |= whole;
        if (!(pass & (whole ? kWholes : kSingles))) continue;
        if (!whole && tile % share.of != share.number) continue;
        const int first = whole ? share.number : group_of(best.first), last = whole ? kGroups : first + 1;
        PEZ_ROLLED
        for (int group = first; group < last; group += share.of) visit(tile, group);
      }
    }
  }
  return several;
}

// The scores of a group's four tokens anew, in float32, the loads of all in flight together. Their error is below the scan's: a lane adds
// width / 256 sums of eight products each, and five more additions follow, (width / 256 + 8) 2^-24 at most (the simulation's one lane
// width / 8 + 3), which is less than the 0.33 width 2^-23 of the tensor cores.
template <class Team>
PEZ_BOTH void group_scores(Team t, const Search& s, int row, int tile, int group, float (&score)[kGroup]) {
  const int chunks = s.width / 8;
  const Half *query = s.query + int64_t(row) * s.width, *tokens = s.unit + (int64_t(tile) * kTile + place_in_tile(group, 0)) * s.width;
  for (int j = 0; j < kGroup; ++j) score[j] = 0;
  PEZ_ROLLED
  for (int start = t.lane(); start < chunks; start += kTogether * t.lanes()) {
    Eight<Half> q[kTogether], e[kTogether][kGroup];
    PEZ_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      const int chunk = start + i * t.lanes();
      if (chunk >= chunks) continue;
      q[i] = Eight<Half>(query + 8 * chunk);
      PEZ_UNROLL
      for (int j = 0; j < kGroup; ++j) e[i][j] = Eight<Half>(tokens + place_in_tile(0, j) * s.width + 8 * chunk);
    }
    PEZ_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      PEZ_UNROLL
      for (int j = 0; j < kGroup; ++j) {
        float sum = 0;
        PEZ_UNROLL
        for (int k = 0; k < 8; ++k) sum = fmaf(q[i][k], e[i][j][k], sum);
        score[j] += sum;
      }
    }
  }
  PEZ_UNROLL
  for (int j = 0; j < kGroup; ++j) score[j] = t.warp_sum(score[j]);
}

// visit(position, id) for every token that may have won; whether there were whole tiles.
template <class Team, class Visit>
PEZ_BOTH bool each_candidate(Team t, const Search& s, const Task& task, Pass pass, Share share, Visit visit) {
  return each_group(t, s, task, pass, share, [&](int tile, int group) {
    int64_t id[kGroup];  // read beside the rows
    PEZ_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const int position = tile * kTile + place_in_tile(group, j);
      id[j] = position < s.v.count ? s.v.ids[position] : -1;
    }
    float score[kGroup];
    group_scores(t, s, task.row, tile, group, score);
    PEZ_ROLLED
    for (int j = 0; j < kGroup; ++j) {
      const int position = tile * kTile + place_in_tile(group, j);
      const auto of = [j](const auto(&v)[kGroup]) { return j == 0 ? v[0] : j == 1 ? v[1] : j == 2 ? v[2] : v[3]; };  // registers have no index
      if (of(score) >= task.limit && of(id) >= 0) visit(position, of(id));
    }
  });
}

// The nearest tokens of the team's rows, of its warp's one the decision, the lowest of equal ones; cosines closer than wide_error (2^-90 at
// width 1024) count as equal. E as of `cosine`. One loop serves all passes, so that there is one copy of what reads the rows.
template <class E, class Team>
PEZ_BOTH Decision decide(Team t, const Search& s, int row) {
  Task mine{row, INFINITY, 0, INFINITY};
  if (row < s.x.rows) {
    const float residual = *s.residual;
    const Rounded rounded = s.rounded[row];
    const Key top = t.warp_maximum(best_key(t, s.keys + int64_t(row) * s.tiles, s.tiles));
    if (rounded.kind == kDirected) mine.limit = top - 2 * scan_error(residual, rounded.error, s.slack);
    mine.norm = rounded.norm;
  }
  const int64_t d = s.v.d();
  Decision decision;  // on mine
  Task task = mine;
  Share share;
  Pass pass = kSingles;
  uint32_t owners = 0;  // warps whose rows this pass has still to see
  int owner = 0;
  PEZ_ROLLED
  for (;;) {
    Decision found;
    WideDecision wide;
    if (task.limit < INFINITY) {
      found.several = each_candidate(t, s, task, pass, share, [&](int position, int64_t id) {
        const double c = cosine<E>(t, {s.x.row(task.row), task.norm}, {s.v.weight.row(id), s.v.norm + position}, d);
        if (pass != kTies) {
          found = merged(found, {c, -INFINITY, id, 1, false});
        } else if (c >= task.enough) {
          wide = merged(wide, {wide_cosine(t, s.x.row(task.row), s.v.weight.row(id), d), id}, wide_error(d));
        }
      });
    }
    if (pass == kSingles) {
      decision = found;
    } else if (pass == kWholes) {
      const Decision all = t.gathered(found, [](const Decision& a, const Decision& b) { return merged(a, b); });
      if (t.warp() == owner) decision = merged(decision, all);
    } else {
      const WideDecision all = t.gathered(wide, [&](const WideDecision& a, const WideDecision& b) { return merged(a, b, wide_error(d)); });
      if (t.warp() == owner) decision.id = all.id;
    }
    while (owners == 0) {
      if (pass == kTies) return decision;
      pass = pass == kSingles ? kWholes : kTies;
      mine.enough = decision.cosine - 2 * double(d + 8) * 0x1p-52;
      const bool tied = decision.compared > 1 && decision.runner_up >= mine.enough;
      owners = t.publish(mine, pass == kWholes ? decision.several : tied);
    }
    owner = t.lowest(owners);
    owners &= owners - 1;
    task = t.published(owner);
    share = {t.warp(), t.warps()};
  }
}

}  // namespace pez::cuda
