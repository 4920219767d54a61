// The decision, a warp for each row: see decide.h.
#include "decide.h"

#include "scan.h"
#include "team.cuh"

namespace pez {
namespace {

// E: the type of packed tokens beside packed float32 queries; double: any types and strides.
template <class E>
__global__ void __launch_bounds__(32 * kTeamWarps, 5) nearest_decide_kernel(Matrix x, Vocabulary v, Prepared p, Buffers b, int tiles, Answer out) {
  __shared__ TeamMemory memory;
  const Team team(&memory);
  const int row = int(blockIdx.x) * kTeamWarps + team.warp();
  wait_for_previous();
  Rounded rounded{0, kZero, 0};
  Task task;
  if (row < x.rows) {
    rounded = b.rounded[row];
    task.directed = rounded.kind == kDirected;
    task.query = {x.row(row), rounded.norm};
    task.scanned = {b.keys + int64_t(row) * tiles,
                    tiles,
                    reinterpret_cast<const Half*>(b.query + int64_t(row) * p.width),
                    reinterpret_cast<const Half*>(p.unit),
                    int(p.width),
                    scan_error(*p.residual, rounded.error, p.slack)};
  }
  const Decision decision = decide<E>(team, task, v);
  if (row < x.rows && team.lane() == 0) {
    out.found[row] = rounded.kind == kNotFinite ? -1 : v.ids[decision.position];
    out.cosine[row] = task.directed ? float(decision.cosine) : rounded.kind == kZero ? 0.0f : NAN;
    out.state[row] = task.directed ? decision.state() : 0;
  }
}

}  // namespace

cudaError_t decide_rows(const Matrix& x, const Vocabulary& v, const Prepared& p, const Shape& s, const Buffers& b, const Answer& out, const Card& card,
                        cudaStream_t stream) {
  const unsigned blocks = unsigned((s.n + kTeamWarps - 1) / kTeamWarps);
  const auto run = [&](auto kernel) { return launch_after(card, stream, blocks, 32 * kTeamWarps, 0, kernel, x, v, p, b, s.tiles, out); };
  switch (reading(x, v)) {
    case Type::f32: return run(nearest_decide_kernel<float>);
    case Type::f16: return run(nearest_decide_kernel<Half>);
    case Type::bf16: return run(nearest_decide_kernel<Brain>);
    default: return run(nearest_decide_kernel<double>);
  }
}

}  // namespace pez
