// A search: the queries as fp16 unit vectors, the scan that suits their number and the card, the decision.
#include <map>

#include "scan.h"

namespace pez::cuda {
namespace {

// The current device. Each thread asks the driver once for each device.
cudaError_t current_card(Card& card) {
  thread_local std::map<int, Card> known;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const auto found = known.find(device);
  if (found != known.end()) return card = found->second, cudaSuccess;
  error = read_attributes(device, card);
  if (error == cudaSuccess) error = code_overlaps(card.overlaps);
  if (error == cudaSuccess) known[device] = card;
  return error;
}

// wgmma where the build has code for sm_90a and the card runs it.
cudaError_t scan_many(const Shape& s, const Prepared& p, const Buffers& b, const Card& card, cudaStream_t stream) {
#if defined(PEZ_SM90A)
  if (card.major == 9 && card.minor == 0) return scan_sm90(s, p, b, card, stream);
#endif
  return scan_sm80(s, p, b, card, stream);
}

}  // namespace

cudaError_t nearest(const Matrix& x, const Vocabulary& v, const Prepared& p, const Buffers& b, const Answer& out,
                    cudaStream_t stream) {
  Card card;
  cudaError_t error = current_card(card);
  if (error != cudaSuccess) return error;
  const int n = int(x.rows), width = int(p.width);
  const Shape s{n, padded_rows(n), width, int((v.count + kTile - 1) / kTile)};
  error = round_queries(x, s, b, stream);
  if (error != cudaSuccess) return error;
  const bool few = few_plan(n, width, card.shared_bytes).rows > 0;
  error = few ? scan_few(s, p, b, card, stream) : scan_many(s, p, b, card, stream);
  return error != cudaSuccess ? error : decide_rows(x, v, p, s, b, out, card, stream);
}

std::vector<std::pair<std::string, int>> plans(int limit, int64_t width) {
  std::vector<std::pair<std::string, int>> found;
  for (int n : {16, 32}) {
    const FewPlan few = few_plan(n, int(width), limit);
    if (few.rows)
      found.push_back({"nearest_few " + std::to_string(few.rows) + " " + std::to_string(few.stages), few.bytes});
  }
  found.push_back({"nearest_scan_sm80", scan_sm80_bytes()});
#if defined(PEZ_SM90A)
  if (limit >= 227 << 10)
    found.push_back({"nearest_scan_sm90", scan_sm90_bytes()});  // every card that runs sm_90a code has so much
#endif
  return found;
}

}  // namespace pez::cuda
