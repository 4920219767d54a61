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

namespace pez {

struct Scanned {       // what the scan read and found of a row
  const Best* keys;    // (tiles)
  int tiles;
  const Half* query;   // (width)
  const Half* unit;    // (tiles * kTile, width)
  int width;
  float error;         // scan_error
};

struct Decision {
  double cosine = -INFINITY, runner_up = -INFINITY;
  int position = 0;
  int compared = 0;      // tokens compared exactly
  bool several = false;  // a whole tile has to be looked at, or was

  // 1: the scan decided; 2: several were compared; 3: whole tiles were looked at
  PEZ_BOTH int state() const { return several ? 3 : compared > 1 ? 2 : 1; }
};

PEZ_BOTH Decision merged(const Decision& a, const Decision& b) {
  const bool a_first = a.cosine > b.cosine || (a.cosine == b.cosine && a.position < b.position);
  const Decision &best = a_first ? a : b, &other = a_first ? b : a;
  return {best.cosine, fmax(fmax(a.runner_up, b.runner_up), other.cosine), best.position, a.compared + b.compared, a.several || b.several};
}

struct WideDecision {
  WideCosine best;
  int position = -1;  // none yet
};

// The larger of two wide cosines, the lower position where they are closer than their error.
PEZ_BOTH WideDecision merged(const WideDecision& a, const WideDecision& b, double error) {
  if (a.position < 0 || b.position < 0) return a.position < 0 ? b : a;
  const double ahead = (a.best.value.hi - b.best.value.hi) + (a.best.value.lo - b.best.value.lo);
  const double level = error * (a.best.size + b.best.size);
  return ahead > level || (ahead >= -level && a.position < b.position) ? a : b;
}

struct Share {  // a warp's part of what several warps do
  int number = 0, of = 1;
};

enum Which { kSingles = 1, kWholes = 2 };  // tiles of which one group may hold the winner, tiles of which several may

// visit(tile, group) for every group that may hold the winner; whether there were whole tiles.
template <class Team, class Visit>
PEZ_BOTH bool each_group(Team t, const Scanned& s, float limit, int which, Share share, Visit visit) {
  bool several = false;
  for (int start = 0; start < s.tiles; start += t.lanes()) {
    const Best mine = start + t.lane() < s.tiles ? s.keys[start + t.lane()] : Best{};
    for (uint32_t hits = t.ballot(mine.first >= limit); hits; hits &= hits - 1) {
      const int lane = t.lowest(hits), tile = start + lane;
      const Best best = t.from_lane(mine, lane);
      const bool whole = best.second >= limit;
      several |= whole;
      if (!(which & (whole ? kWholes : kSingles))) continue;
      const int first = whole ? share.number : group_of(best.first), last = whole ? kGroups : first + 1;
      if (!whole && tile % share.of != share.number) continue;
      PEZ_ROLLED
      for (int group = first; group < last; group += share.of) visit(tile, group);
    }
  }
  return several;
}

// The scores of a group's four tokens anew, in float32, the loads of all in flight together. Their error is below the scan's: a lane adds
// width / 256 sums of eight products each, and five more additions follow, (width / 256 + 8) 2^-24 at most (the simulation's one lane
// width / 8 + 3), which is less than the 0.33 width 2^-23 of the tensor cores.
template <class Team>
PEZ_BOTH void group_scores(Team t, const Scanned& s, int tile, int group, float (&score)[kGroup]) {
  constexpr int kAhead = 2;  // chunks of eight elements of five rows on their way
  const int chunks = s.width / 8;
  const Half* token[kGroup];
  PEZ_UNROLL
  for (int j = 0; j < kGroup; ++j) {
    token[j] = s.unit + (int64_t(tile) * kTile + place_in_tile(group, j)) * s.width;
    score[j] = 0;
  }
  PEZ_ROLLED
  for (int start = t.lane(); start < chunks; start += kAhead * t.lanes()) {
    Eight<Half> q[kAhead], e[kAhead][kGroup];
    PEZ_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const int chunk = start + i * t.lanes();
      if (chunk >= chunks) continue;
      q[i] = Eight<Half>(s.query + 8 * chunk);
      PEZ_UNROLL
      for (int j = 0; j < kGroup; ++j) e[i][j] = Eight<Half>(token[j] + 8 * chunk);
    }
    PEZ_UNROLL
    for (int i = 0; i < kAhead; ++i) {
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

// visit(position) for every token that may have won; whether there were whole tiles.
template <class Team, class Visit>
PEZ_BOTH bool each_candidate(Team t, const Scanned& s, int64_t count, float limit, int which, Share share, Visit visit) {
  return each_group(t, s, limit, which, share, [&](int tile, int group) {
    float score[kGroup];
    group_scores(t, s, tile, group, score);
    PEZ_ROLLED
    for (int j = 0; j < kGroup; ++j) {
      const int position = tile * kTile + place_in_tile(group, j);
      const float mine = j == 0 ? score[0] : j == 1 ? score[1] : j == 2 ? score[2] : score[3];  // no indexing: registers
      if (mine >= limit && position < count) visit(position);
    }
  });
}

// A row by one warp, or a warp's share of it. E as of `cosine`.
template <class E, class Team>
PEZ_CALLED Decision look(Team t, const Query& q, const Vocabulary& v, const Scanned& s, float limit, int which, Share share) {
  Decision decision;
  const bool several = each_candidate(t, s, v.count, limit, which, share, [&](int position) {
    Decision one;
    one.cosine = cosine<E>(t, q, v, position), one.position = position, one.compared = 1;
    decision = merged(decision, one);
  });
  decision.several = several;
  return decision;
}

// The winner among the candidates whose cosine in float64 is at least `enough`.
template <class E, class Team>
PEZ_CALLED WideDecision resolve_ties(Team t, const Query& q, const Vocabulary& v, const Scanned& s, float limit, double enough, Share share) {
  WideDecision decision;
  each_candidate(t, s, v.count, limit, kSingles | kWholes, share, [&](int position) {
    if (!(cosine<E>(t, q, v, position) >= enough)) return;
    decision = merged(decision, {wide_cosine(t, q.row, v.row(position), v.d()), position}, wide_error(v.d()));
  });
  return decision;
}

struct Task {  // of one warp
  Query query;
  Scanned scanned;
  bool directed = false;  // the row has a nearest token
  float limit = 0;        // a score below it cannot be the nearest's
  double enough = 0;      // a cosine below it cannot be either; float64 tells no more
  Decision decision;

  PEZ_BOTH bool tied() const { return directed && decision.runner_up >= enough; }
};

// The nearest token of the team's rows, the lowest of equal ones; cosines closer than wide_error (2^-90 at width 1024) count as equal.
template <class E, class Team>
PEZ_BOTH Decision decide(Team t, Task& task, const Vocabulary& v) {
  if (task.directed) {
    const Scanned& s = task.scanned;
    Key top = kLowest;
    for (int tile = t.lane(); tile < s.tiles; tile += t.lanes()) top = larger(top, s.keys[tile].first);
    task.limit = t.warp_maximum(top) - 2 * s.error;
    task.decision = look<E>(t, task.query, v, s, task.limit, kSingles, Share{});
  }
  const Share share{t.warp(), t.warps()};
  t.each_task(task, [&](const Task& one) { return one.decision.several; },
              [&](const Task& one) { return look<E>(t, one.query, v, one.scanned, one.limit, kWholes, share); },
              [](const Decision& a, const Decision& b) { return merged(a, b); },
              [&](const Decision& found) { task.decision = merged(task.decision, found); });
  task.enough = task.decision.cosine - 2 * double(v.d() + 8) * 0x1p-52;
  t.each_task(task, [&](const Task& one) { return one.tied(); },
              [&](const Task& one) { return resolve_ties<E>(t, one.query, v, one.scanned, one.limit, one.enough, share); },
              [&](const WideDecision& a, const WideDecision& b) { return merged(a, b, wide_error(v.d())); },
              [&](const WideDecision& found) { task.decision.position = found.position; });
  return task.decision;
}

}  // namespace pez
