// Outputs back from the stored form of values, some rows of one key/value head at a time: the states that the splits
// left are merged, and gauge and B_hᵀ applied, once a row whatever the number of keys.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_OUTPUT_H_
#define LOWRANK_ATTENTION_CPU_LRKV_OUTPUT_H_

#include "cpu/lrkv_call.h"

namespace lowrank_attention::HWY_NAMESPACE {

// out[c] = Σ_k factors[k]·rows[k][c]; rows are `stride` apart.
LA_INLINE void weightedSum(const float* factors, Index count, const float* rows, Index stride, Index columns,
                           float* out) {
  const auto sums = [&](Index c, auto d) {
    auto sum = hn::Mul(hn::Set(d, factors[0]), hn::LoadU(d, rows + c));
    for (Index k = 1; k < count; ++k) {
      sum = hn::MulAdd(hn::Set(d, factors[k]), hn::LoadU(d, rows + k * stride + c), sum);
    }
    hn::StoreU(sum, d, out + c);
  };
  constexpr Index n = kLanes<Full>;
  Index c = 0;
  for (; c + n <= columns; c += n) sums(c, Full());
  for (; c < columns; ++c) sums(c, hn::CappedTag<float, 1>());
}

// What a row saw of its keys.
struct RowSeen {
  float max = 0;  // of the scores, in units of log2
  float sum = 0;  // Σ 2^(score − max)
};

// Merges the states of a row over all splits, in ascending order, and divides by the sum of weights.
LA_INLINE RowSeen mergeRow(const LrkvPlan& plan, const LrkvLayout& layout, const float* states, float* base,
                           float* latents) {
  const Index floats = lrkvStateFloats(layout);
  const Index stride = plan.rows * floats;
  const hn::CappedTag<float, 1> one;
  const auto maxOf = [&](Index split) { return hn::Set(one, states[split * stride + floats - 2]); };
  auto max = maxOf(0);
  for (Index split = 1; split < plan.splits; ++split) max = hn::Max(max, maxOf(split));
  // Where all states are empty, 0 in place of the maximum makes every factor 0.
  const auto safe = hn::IfThenElse(hn::Eq(max, hn::Set(one, -kInfinity)), hn::Zero(one), max);
  float factors[kLrkvSplits];
  RowSeen seen;
  seen.max = hn::GetLane(max);
  for (Index split = 0; split < plan.splits; ++split) {
    factors[split] = hn::GetLane(exp2NonPositive(one, hn::Sub(maxOf(split), safe)));
    seen.sum += states[split * stride + floats - 1] * factors[split];
  }
  const float inverse = seen.sum == 0 ? 0.0f : 1.0f / seen.sum;
  for (Index split = 0; split < plan.splits; ++split) factors[split] *= inverse;
  weightedSum(factors, plan.splits, states, stride, layout.valueBaseDim, base);
  weightedSum(factors, plan.splits, states + layout.valueBaseDim, stride, floats - 2 - layout.valueBaseDim, latents);
  return seen;
}

// Asks for the states that mergeRow will read of `rows` rows that follow each other.
LA_INLINE void askForStates(const LrkvPlan& plan, const LrkvLayout& layout, const float* states, Index rows) {
  const Index floats = lrkvStateFloats(layout);
  for (Index split = 0; split < plan.splits; ++split) {
    prefetch<3>(states + split * plan.rows * floats, rows * floats * static_cast<Index>(sizeof(float)));
  }
}

// Outputs and lse of all rows of some positions that read one key/value head.
LA_INLINE void finishHead(const Call& call, const PositionUnit& unit, Index kvHead, const OutputScratch& scratch) {
  const LrkvProblem& problem = call.problem;
  const FullProblem& full = problem.full;
  const LrkvLayout& layout = problem.layout;
  const LrkvFactors& value = problem.model.value;
  const Index group = full.heads / layout.kvHeads;
  const Index sumWidth = widest(layout.valueStarts, layout.kvHeads);
  const auto statesOf = [&](const Position& position, Index head) {
    return call.space.states + call.space.plans[position.sequence].firstState +
           (position.query * full.heads + head) * lrkvStateFloats(layout);
  };
  for (Index p = 0; p < unit.count; ++p) {
    const Position& position = unit.positions[p];
    const FullSequence& sequence = call.sequence(position.sequence);
    const LrkvPlan& plan = call.space.plans[position.sequence];
    if (kvHead + 1 < unit.endHead) askForStates(plan, layout, statesOf(position, (kvHead + 1) * group), group);
    for (Index g = 0; g < group; ++g) {
      const Index head = kvHead * group + g;
      const Index row = p * group + g;
      const RowSeen seen = mergeRow(plan, layout, statesOf(position, head), scratch.base + row * layout.valueBaseDim,
                                    scratch.latents + row * sumWidth);
      if (sequence.lse != nullptr) {
        sequence.lse[head * sequence.queryRows + position.query] = lseOf(full, seen.max, seen.sum);
      }
    }
  }
  const Index rows = unit.count * group;
  wholeFromBase(value, kvHead, scratch.base, rows, scratch.whole, scratch.strip);
  addLatents(value, kvHead, ranksBefore(value, kvHead), {scratch.latents, sumWidth, 1}, rows, scratch.whole,
             scratch.strip);
  for (Index row = 0; row < rows; ++row) {
    const Position& position = unit.positions[row / group];
    const FullSequence& sequence = call.sequence(position.sequence);
    convertRow(DataType::kFloat32, scratch.whole + row * wholeStride(value.dim), full.outputType,
               rowOf(sequence.output, full.outputType, kvHead * group + row % group, position.query), value.dim);
  }
}

static void finishRows(const Call& call) {
  forPositions(call, [&](Index worker, const PositionUnit& unit) {
    Arena arena(call.worker(worker));
    const OutputScratch scratch = placeOutputScratch(call.problem, arena);
    for (Index kvHead = unit.firstHead; kvHead < unit.endHead; ++kvHead) finishHead(call, unit, kvHead, scratch);
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_OUTPUT_H_
