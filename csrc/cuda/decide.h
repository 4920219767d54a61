// The decision: it compares exactly those tokens of a row that may have won by the scan's error bound.
//
// It replaces `scores.argmax(-1)` over the whole vocabulary by a look at the tokens that the scan could not exclude.
// The latency of four dependent loads bounds it: keys -> fp16 rows of the four tokens of a group -> ids -> rows of the
// one or two tokens that remain. `Team` is a block of a few warps on the GPU, each with a row of its own, and a single
// thread in the simulation. The slow cases are rare, and all warps work on them together, row after row: tiles in which
// several groups may hold the winner, and cosines that float64 cannot tell apart.
#pragma once

#include "cosine.h"
#include "keys.h"
#include "query.h"

namespace pez::cuda {

struct Search {  // the input of the decision
  Matrix x;      // (n, d)
  Vocabulary v;
  const Half* unit;        // (tiles * kTile, width)
  const float* residual;   // (1)
  const Half* query;       // (n, width)
  const Rounded* rounded;  // (n)
  const Top2* keys;        // (n, tiles)
  int width, tiles;
  float slack;
};

struct Decision {
  double cosine = -INFINITY, runner_up = -INFINITY;
  int64_t id = 0;
  int compared = 0;      // tokens compared exactly
  bool several = false;  // the row has a tile of which every group must be looked at

  // 1: the scan decided; 2: several tokens were compared; 3: whole tiles were looked at
  PEZ_HOST_DEVICE int state() const { return several ? 3 : compared > 1 ? 2 : 1; }
};

PEZ_HOST_DEVICE Decision merged(const Decision& a, const Decision& b) {
  const bool a_first = a.cosine > b.cosine || (a.cosine == b.cosine && a.id < b.id);
  const Decision &best = a_first ? a : b, &other = a_first ? b : a;
  return {best.cosine, fmax(fmax(a.runner_up, b.runner_up), other.cosine), best.id, a.compared + b.compared,
          a.several || b.several};
}

struct DoubleDoubleDecision {
  DoubleDoubleCosine best;
  int64_t id = -1;  // -1: none yet
};

// The larger of two double-double cosines, and the lower id where they are closer than their error.
PEZ_HOST_DEVICE DoubleDoubleDecision merged(const DoubleDoubleDecision& a, const DoubleDoubleDecision& b,
                                            double error) {
  if (a.id < 0 || b.id < 0) return a.id < 0 ? b : a;
  const double ahead = (a.best.value.hi - b.best.value.hi) + (a.best.value.lo - b.best.value.lo);
  const double level = error * (a.best.size + b.best.size);
  return ahead > level || (ahead >= -level && a.id < b.id) ? a : b;
}

struct Share {  // the part of one warp where several warps share the work
  int index = 0, count = 1;
};

// The passes over a row's candidates, in this order. First the row's own warp visits the tiles in which one group may
// hold the winner. Then all warps visit the tiles in which several groups may. Then all warps visit all of these again,
// if cosines are too close for float64.
enum Pass { kSingleGroups = 1, kWholeTiles = 2, kTies = kSingleGroups | kWholeTiles };

struct Task {  // the row that one warp works on
  int row;
  float score_limit;    // the nearest token's score is not below it; infinite for a row that has no nearest token
  double norm;          // of the row
  double cosine_limit;  // the nearest token's float64 cosine is not below it
};

constexpr int kKeysInFlight = 16;  // keys that a lane loads at once

// The best keys of tiles start + i * lanes() + lane(); -infinity beyond the last tile.
template <class Team>
PEZ_HOST_DEVICE void read_keys(Team t, const Top2* keys, int start, int tiles, Key (&key)[kKeysInFlight]) {
  PEZ_UNROLL
  for (int i = 0; i < kKeysInFlight; ++i) {
    const int tile = start + i * t.lanes() + t.lane();
    key[i] = tile < tiles ? keys[tile].first : -INFINITY;
  }
}

// The best key of this lane's tiles.
template <class Team>
PEZ_HOST_DEVICE Key best_key(Team t, const Top2* keys, int tiles) {
  Key best = kLowest;
  PEZ_NO_UNROLL
  for (int start = 0; start < tiles; start += kKeysInFlight * t.lanes()) {
    Key key[kKeysInFlight];
    read_keys(t, keys, start, tiles, key);
    PEZ_UNROLL
    for (int i = 0; i < kKeysInFlight; ++i) best = larger(best, key[i]);
  }
  return best;
}

// Calls visit(tile, group) for every group that may hold the winner; returns whether there were whole tiles. Each lane
// looks at every lanes()-th tile, 32 of them at a time, and keeps one bit for each tile that reaches the limit.
template <class Team, class Visit>
PEZ_HOST_DEVICE bool for_each_group(Team t, const Search& s, const Task& task, Pass pass, Share share, Visit visit) {
  const Top2* keys = s.keys + int64_t(task.row) * s.tiles;
  bool several = false;
  for (int start = 0; start < s.tiles; start += 32 * t.lanes()) {
    uint32_t reached = 0;
    PEZ_NO_UNROLL
    for (int part = 0; part < 32 && start + part * t.lanes() < s.tiles; part += kKeysInFlight) {
      Key key[kKeysInFlight];
      read_keys(t, keys, start + part * t.lanes(), s.tiles, key);
      PEZ_UNROLL
      for (int i = 0; i < kKeysInFlight; ++i) reached |= uint32_t(key[i] >= task.score_limit) << (part + i);
    }
    PEZ_NO_UNROLL
    for (uint32_t lanes = t.ballot(reached != 0); lanes; lanes &= lanes - 1) {
      const int lane = t.lowest(lanes);
      PEZ_NO_UNROLL
      for (uint32_t hits = t.from_lane(reached, lane); hits; hits &= hits - 1) {
        const int tile = start + t.lowest(hits) * t.lanes() + lane;
        const Top2 best = keys[tile];
        const bool whole = best.second >= task.score_limit;
        several |= whole;
        if (!(pass & (whole ? kWholeTiles : kSingleGroups))) continue;
        if (!whole && tile % share.count != share.index) continue;
        const int first = whole ? share.index : group_of(best.first), last = whole ? kGroups : first + 1;
        PEZ_NO_UNROLL
        for (int group = first; group < last; group += share.count) visit(tile, group);
      }
    }
  }
  return several;
}

// Computes the scores of a group's four tokens again in float32; the loads of all four are in flight together. Their
// error is below the scan's: a lane adds width / 256 sums of eight products each, and five more additions follow, so it
// is (width / 256 + 8) 2^-24 at most (the one lane of the simulation: width / 8 + 3). The tensor cores' 0.33 width
// 2^-23 is more.
template <class Team>
PEZ_HOST_DEVICE void group_scores(Team t, const Search& s, int row, int tile, int group, float (&score)[kGroup]) {
  const int chunks = s.width / 8;
  const Half *query = s.query + int64_t(row) * s.width,
             *tokens = s.unit + (int64_t(tile) * kTile + token_in_tile(group, 0)) * s.width;
  for (int j = 0; j < kGroup; ++j) score[j] = 0;
  PEZ_NO_UNROLL
  for (int start = t.lane(); start < chunks; start += kChunksInFlight * t.lanes()) {
    Vec8<Half> q[kChunksInFlight], e[kChunksInFlight][kGroup];
    PEZ_UNROLL
    for (int i = 0; i < kChunksInFlight; ++i) {
      const int chunk = start + i * t.lanes();
      if (chunk >= chunks) continue;
      q[i] = Vec8<Half>(query + 8 * chunk);
      PEZ_UNROLL
      for (int j = 0; j < kGroup; ++j) e[i][j] = Vec8<Half>(tokens + token_in_tile(0, j) * s.width + 8 * chunk);
    }
    PEZ_UNROLL
    for (int i = 0; i < kChunksInFlight; ++i) {
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

// Calls visit(position, id) for every token that may have won; returns whether there were whole tiles.
template <class Team, class Visit>
PEZ_HOST_DEVICE bool for_each_candidate(Team t, const Search& s, const Task& task, Pass pass, Share share,
                                        Visit visit) {
  return for_each_group(t, s, task, pass, share, [&](int tile, int group) {
    int64_t id[kGroup];  // loaded beside the rows
    PEZ_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const int position = tile * kTile + token_in_tile(group, j);
      id[j] = position < s.v.count ? s.v.ids[position] : -1;
    }
    float score[kGroup];
    group_scores(t, s, task.row, tile, group, score);
    PEZ_NO_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const int position = tile * kTile + token_in_tile(group, j);
      const auto of = [j](const auto(&v)[kGroup]) {
        return j == 0 ? v[0] : j == 1 ? v[1] : j == 2 ? v[2] : v[3];
      };  // an array in registers cannot be indexed
      if (of(score) >= task.score_limit && of(id) >= 0) visit(position, of(id));
    }
  });
}

// Adds what all warps found in a pass to the decision of the warp whose row it is.
template <class Team>
PEZ_HOST_DEVICE void collect(Team t, Pass pass, int owner, int64_t d, const Decision& found,
                             const DoubleDoubleDecision& wide, Decision& decision) {
  if (pass == kSingleGroups) {  // every warp worked on its own row
    decision = found;
  } else if (pass == kWholeTiles) {
    const Decision all = t.gathered(found, [](const Decision& a, const Decision& b) { return merged(a, b); });
    if (t.warp() == owner) decision = merged(decision, all);
  } else {
    const auto merge = [&](const DoubleDoubleDecision& a, const DoubleDoubleDecision& b) {
      return merged(a, b, double_double_error(d));
    };
    const DoubleDoubleDecision all = t.gathered(wide, merge);
    if (t.warp() == owner) decision.id = all.id;
  }
}

// Decides the rows of the team, one for each warp: the nearest token, the lowest id of equal ones. Cosines closer than
// double_double_error (2^-90 at width 1024) count as equal. E is as of `cosine`. One loop serves all passes, so that
// the code that reads rows exists once.
template <class E, class Team>
PEZ_HOST_DEVICE Decision decide(Team t, const Search& s, int row) {
  Task mine{row, INFINITY, 0, INFINITY};
  if (row < s.x.rows) {
    const float residual = *s.residual;
    const Rounded rounded = s.rounded[row];
    const Key top = t.warp_maximum(best_key(t, s.keys + int64_t(row) * s.tiles, s.tiles));
    if (rounded.kind == kDirected) mine.score_limit = top - 2 * scan_error(residual, rounded.error, s.slack);
    mine.norm = rounded.norm;
  }
  const int64_t d = s.v.d();
  Decision decision;  // on the warp's own row
  Task task = mine;
  Share share;
  Pass pass = kSingleGroups;
  uint32_t owners = 0;  // bits of the warps whose rows this pass has not visited yet
  int owner = 0;
  PEZ_NO_UNROLL
  for (;;) {
    Decision found;
    DoubleDoubleDecision wide;
    if (task.score_limit < INFINITY) {
      found.several = for_each_candidate(t, s, task, pass, share, [&](int position, int64_t id) {
        const double c = cosine<E>(t, {s.x.row(task.row), task.norm}, {s.v.weight.row(id), s.v.norm + position}, d);
        if (pass != kTies) {
          found = merged(found, {c, -INFINITY, id, 1, false});
        } else if (c >= task.cosine_limit) {
          wide = merged(wide, {double_double_cosine(t, s.x.row(task.row), s.v.weight.row(id), d), id},
                        double_double_error(d));
        }
      });
    }
    collect(t, pass, owner, d, found, wide, decision);
    while (owners == 0) {
      if (pass == kTies) return decision;
      pass = pass == kSingleGroups ? kWholeTiles : kTies;
      mine.cosine_limit = decision.cosine - 2 * double(d + 8) * 0x1p-52;
      const bool tied = decision.compared > 1 && decision.runner_up >= mine.cosine_limit;
      owners = t.publish(mine, pass == kWholeTiles ? decision.several : tied);
    }
    owner = t.lowest(owners);
    owners &= owners - 1;
    task = t.published(owner);
    share = {t.warp(), t.warps()};
  }
}

}  // namespace pez::cuda
