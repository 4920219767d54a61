// Top-2 group keys: what a scan keeps of a row and a tile of 128 tokens, the two best of its 32 groups of four tokens.
//
// A key is the largest score of a group, a float32 whose low five bits are replaced by the group's number, so that one
// maximum of floats finds score and group together. Four tokens share a key because the epilogue of a scan costs as
// much per key as the decision costs per token that it looks at: 7 instructions for 4 scores instead of 16. The
// decision looks at all four.
#pragma once

#include "../types.h"

namespace pez::cuda {

constexpr int kTile = 128, kGroup = 4, kGroups = kTile / kGroup;

using Key = float;
constexpr Key kLowest = -4;  // below every score, and its low bits are 0

// Group 4 p + t holds the tokens 16 p + 2 t + {0, 1, 8, 9} of its tile: lane t of a quad accumulates their scores.
PEZ_HOST_DEVICE int token_in_tile(int group, int i) {
  return 16 * (group >> 2) + 2 * (group & 3) + (i & 1) + 8 * (i >> 1);
}

PEZ_HOST_DEVICE Key pack(float score, int group) {
  return bits<float>((bits<uint32_t>(score) & uint32_t(-kGroups)) | uint32_t(group));
}
PEZ_HOST_DEVICE int group_of(Key key) { return int(bits<uint32_t>(key) & (kGroups - 1)); }

struct alignas(8) Top2 {
  Key first = kLowest, second = kLowest;
};

PEZ_HOST_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
PEZ_HOST_DEVICE float smaller(float a, float b) { return fminf(a, b); }

PEZ_HOST_DEVICE Top2 top2_of(Key a, Key b) { return {larger(a, b), smaller(a, b)}; }
PEZ_HOST_DEVICE Top2 merged(Top2 a, Top2 b) {
  return {larger(a.first, b.first), larger(smaller(a.first, b.first), larger(a.second, b.second))};
}

// The bound on |score - true cosine|, of a scanned score and of one computed again in float32. residual and error: what
// rounding to fp16 took from the table's rows and from the query; slack: pez_fast._shared.halves.scan_slack.
PEZ_HOST_DEVICE float scan_error(float residual, float error, float slack) {
  return residual + error * (1 + residual) + slack;
}

}  // namespace pez::cuda
