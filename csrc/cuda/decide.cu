// The decision: one warp decides each row, see decide.h.
#include "decide.h"

#include "scan.h"
#include "team.cuh"

namespace pez::cuda {
namespace {

// E is the type of packed tokens beside packed float32 queries; double stands for any types and strides.
template <class E>
__global__ void __launch_bounds__(32 * kTeamWarps, 3)
    nearest_decide_kernel(const __grid_constant__ Search s, Answer out) {
  __shared__ TeamMemory memory;
  const Team team(&memory);
  const int row = int(blockIdx.x) * kTeamWarps + team.warp();
  grid_dependency_wait();
  const Decision decision = decide<E>(team, s, row);
  if (row >= s.x.rows || team.lane() != 0) return;
  const Kind kind = s.rounded[row].kind;
  out.found[row] = kind == kDirected ? decision.id : kind == kZero ? s.v.ids[0] : -1;
  out.cosine[row] = kind == kDirected ? float(decision.cosine) : kind == kZero ? 0.0f : NAN;
  out.state[row] = kind == kDirected ? decision.state() : 0;
}

}  // namespace

cudaError_t decide_rows(const Matrix& x, const Vocabulary& v, const Prepared& p, const Shape& s, const Buffers& b,
                        const Answer& out, const Card& card, cudaStream_t stream) {
  const Search search{x,
                      v,
                      reinterpret_cast<const Half*>(p.unit),
                      p.residual,
                      reinterpret_cast<const Half*>(b.query),
                      b.rounded,
                      b.keys,
                      s.width,
                      s.tiles,
                      p.slack};
  const unsigned blocks = unsigned((s.n + kTeamWarps - 1) / kTeamWarps);
  const auto run = [&](auto kernel) {
    return launch_dependent(card, stream, blocks, 32 * kTeamWarps, 0, kernel, search, out);
  };
  switch (reading(x, v)) {
    case Type::f32: return run(nearest_decide_kernel<float>);
    case Type::f16: return run(nearest_decide_kernel<Half>);
    case Type::bf16: return run(nearest_decide_kernel<BFloat16>);
    default: return run(nearest_decide_kernel<double>);
  }
}

}  // namespace pez::cuda
