// The delta rules a chunk at a time (Yang et al. 2024, arXiv 2406.06484, section 3; with gates arXiv 2412.06464). What key
// i writes is u_i = β_i(v_i − k_i S), S being the state just before; inside a chunk that begins with state S0
//   (I + A) U = β ⊙ (V − (carry ⊙ K) S0)      A_ij = β_i·decay_ij·(k_i·k_j) for j < i, else 0
// so U comes by forward substitution, and from there on the chunk is that of the plain rules with U for the values.
// U depends on S0, hence on all keys before: chunks follow one another. A chunk is a range of its own, so that its writes
// meet the state in float64: they take back what the state holds, and if the two were added in float32 once a thousand
// keys only, what rounding left of a large state would stay where the rule has long replaced it by a small one.
#ifndef LOWRANK_ATTENTION_CPU_LINEAR_DELTA_H_
#define LOWRANK_ATTENTION_CPU_LINEAR_DELTA_H_

#include "cpu/linear_head.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Replaces the chunk's values by U. `reads` are the keys as rows that read S0. `pairs` [chunk][kLinearChunk] holds
// decay_ij·(k_i·k_j), zero for j ≥ i, and is overwritten.
static void solveDelta(const LinearHead& head, Index first, Index count, const StateReads& reads, float* pairs,
                       float* value) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  float beta[kLinearChunk];
  for (Index i = 0; i < count; ++i) {
    beta[i] = head.hides(first + i) ? 0.0f : head.beta[(first + i) * head.problem.betaRowStride];
    for (Index j = 0; j < i; ++j) pairs[i * kLinearChunk + j] *= -beta[i];
  }
  // Where a vector of row i from a column on lies in the panels, of which all but the last are two vectors wide.
  const auto place = [&](Index row, Index column) {
    const Index panel = column / (2 * n) * (2 * n);
    const Index width = panel + n < head.shape.columns ? 2 * n : n;
    return value + panel * count + row * width + (column - panel);
  };
  readState(head.shape, count, reads, [&](Index row, Index column, Vec<Full> sum) {
    float* target = place(row, column);
    hn::Store(hn::Mul(hn::Sub(hn::Load(d, target), sum), hn::Set(d, beta[row])), d, target);
  });
  forPanels(head.shape.columns, [&](Index column, auto vectors) {
    constexpr int kVecs = decltype(vectors)::value;
    float* panel = value + column * count;
    forRowGroups<kMaxRows<kVecs>>(count, [&](Index group, auto size) {
      constexpr int kRows = decltype(size)::value;
      float* target = panel + group * kVecs * n;
      outerProduct<kRows, kVecs>(
          d, pairs + group * kLinearChunk, kLinearChunk, 1, panel, kVecs * n, group,
          [&](int r, int v) { return hn::Load(d, target + (r * kVecs + v) * n); },
          [&](int r, int v, Vec<Full> sum) { hn::Store(sum, d, target + (r * kVecs + v) * n); });
      for (Index r = 1; r < kRows; ++r) {
        for (Index v = 0; v < kVecs; ++v) {
          auto sum = hn::Load(d, target + (r * kVecs + v) * n);
          for (Index s = 0; s < r; ++s) {
            const auto factor = hn::Set(d, pairs[(group + r) * kLinearChunk + group + s]);
            sum = hn::MulAdd(factor, hn::Load(d, target + (s * kVecs + v) * n), sum);
          }
          hn::Store(sum, d, target + (r * kVecs + v) * n);
        }
      }
    });
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LINEAR_DELTA_H_
