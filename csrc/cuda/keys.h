// What a scan keeps of a row and a tile of 128 tokens: the two best of its 32 groups of four, as float32 scores that name their group.
//
// A key is the largest score of a group, its low five bits replaced by the group's number: one maximum of floats finds score and group
// together. Four tokens share a key because the epilogue of a scan costs as much per key as the decision does per token looked at:
// 7 instructions for 4 scores instead of 16. The decision looks at all four.
#pragma once

#include "../types.h"

namespace pez::cuda {

constexpr int kTile = 128, kGroup = 4, kGroups = kTile / kGroup;

using Key = float;
constexpr Key kLowest = -4;  // below every score, its low bits free

// Group 4 p + t holds the tokens 16 p + 2 t + {0, 1, 8, 9} of its tile: those whose scores lane t of four finds in its accumulators.
PEZ_BOTH int place_in_tile(int group, int i) { return 16 * (group >> 2) + 2 * (group & 3) + (i & 1) + 8 * (i >> 1); }

PEZ_BOTH Key pack(float score, int group) { return bits<float>((bits<uint32_t>(score) & uint32_t(-kGroups)) | uint32_t(group)); }
PEZ_BOTH int group_of(Key key) { return int(bits<uint32_t>(key) & (kGroups - 1)); }

struct alignas(8) Best {
  Key first = kLowest, second = kLowest;
};

PEZ_BOTH float larger(float a, float b) { return fmaxf(a, b); }
PEZ_BOTH float smaller(float a, float b) { return fminf(a, b); }

PEZ_BOTH Best best_of(Key a, Key b) { return {larger(a, b), smaller(a, b)}; }
PEZ_BOTH Best merged(Best a, Best b) { return {larger(a.first, b.first), larger(smaller(a.first, b.first), larger(a.second, b.second))}; }

// A scanned score, and one added up again in float32, is within this of the true cosine. residual and error: what rounding to fp16 took
// from the table's rows and from the query; slack: pez_fast._shared.halves.scan_slack.
PEZ_BOTH float scan_error(float residual, float error, float slack) { return residual + error * (1 + residual) + slack; }

}  // namespace pez::cuda
