// The two-part form over all sequences: keys are cut into splits, each of which leaves the state of its rows.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_SPLIT_H_
#define LOWRANK_ATTENTION_CPU_LRKV_SPLIT_H_

#include "cpu/lrkv_call.h"

namespace lowrank_attention::HWY_NAMESPACE {

// A unit of the two-part form: one block of rows of one sequence, over one split of its keys.
struct LrkvUnit {
  Index sequence;
  Index block;
  Index split;
};

// Units lie as the plans say: the sequence of one is the last whose first unit is not beyond it.
LA_INLINE LrkvUnit unitAt(const Call& call, Index unit) {
  Index low = 0;
  for (Index high = call.problem.full.sequenceCount; high - low > 1;) {
    const Index middle = (low + high) / 2;
    (call.space.plans[middle].firstUnit <= unit ? low : high) = middle;
  }
  const LrkvPlan& plan = call.space.plans[low];
  const Index within = unit - plan.firstUnit;
  return {low, within / plan.splits, within % plan.splits};
}

// The keys of the split that rows of the block may see.
LA_INLINE KeyRange keysOfUnit(const Call& call, const LrkvUnit& unit) {
  const FullProblem& full = call.problem.full;
  const FullSequence& sequence = call.sequence(unit.sequence);
  const LrkvPlan& plan = call.space.plans[unit.sequence];
  const Index first = unit.block * plan.blockRows;
  const Index last = minimum(first + plan.blockRows, plan.rows) - 1;
  KeyRange rows = {FullProblem::kOpen, 0};
  for (Index query = first / full.heads; query <= last / full.heads; ++query) {
    const KeyRange seen = visibleKeys(full, sequence, query);
    rows = {minimum(rows.begin, seen.begin), maximum(rows.end, seen.end)};
  }
  const KeyRange split = keysOfSplit(plan, sequence, unit.split);
  return {maximum(split.begin, rows.begin), minimum(split.end, rows.end)};
}

// A sequence with the queries that meet the base.
LA_INLINE FullSequence baseSequenceOf(const Call& call, Index s) {
  FullSequence sequence = call.sequence(s);
  if (meetsBasePlain(call.problem.model)) return sequence;
  const Index columns = call.problem.layout.keyBaseDim;
  sequence.query = {call.space.baseQueries + call.space.plans[s].firstRow * columns, columns,
                    call.problem.full.heads * columns};
  return sequence;
}

// The first keys of the unit that a worker takes after one of a run. Asks for its queries, if they are others.
struct UpcomingUnit {
  const Call& call;
  const Run& run;
  Index unit;

  LA_METHOD UpcomingKeys operator()() const {
    const Index next = unit + 1 < run.end ? unit + 1 : run.upcoming();
    if (next >= call.space.units) return UpcomingKeys();
    const LrkvUnit taken = unitAt(call, next);
    const LrkvUnit current = unitAt(call, unit);
    if (taken.sequence != current.sequence || taken.block != current.block) askForQueries(taken);
    return firstTileOf(call.sequence(taken.sequence), keysOfUnit(call, taken));
  }

 private:
  LA_METHOD void askForQueries(const LrkvUnit& taken) const {
    const FullProblem base = baseProblemOf(call.problem);
    const LrkvPlan& plan = call.space.plans[taken.sequence];
    const HeadRows query = baseSequenceOf(call, taken.sequence).query;
    const Index first = taken.block * plan.blockRows;
    for (Index row = first; row < minimum(first + plan.blockRows, plan.rows); ++row) {
      prefetch<2>(rowOf(query, base.queryType, row % base.heads, row / base.heads),
                  base.headDim * elementBytes(base.queryType));
    }
  }
};

// The rows of a block as panels, which stay for all splits of it that one worker takes in a row.
struct LrkvBlock {
  Panel panels[kLrkvPanels];
  Index count = 0;
  Index first = 0;
  Index rows = 0;
};

template <class Shape>
LA_INLINE void loadBlock(const Call& call, const LrkvUnit& unit, const FullProblem& base, const FullSequence& sequence,
                         const LrkvWorker& worker, LrkvBlock& block) {
  constexpr Index width = Shape::kWidth;
  const LrkvPlan& plan = call.space.plans[unit.sequence];
  block.first = unit.block * plan.blockRows;
  block.rows = minimum(plan.blockRows, plan.rows - block.first);
  block.count = divideUp(block.rows, width);
  for (Index p = 0; p < block.count; ++p) {
    Panel& panel = block.panels[p];
    panel.firstRow = block.first + p * width;
    panel.rows = minimum(width, block.rows - p * width);
    panel.query = worker.query + p * base.headDim * width;
    placeState(base, panel, worker.states + p * stateFloats(base, width), width);
    loadQueries<Shape>(base, sequence, panel);
  }
}

// Leaves a state a row. The block is loaded first if it is not that of the unit before.
template <class Shape>
LA_INLINE void runSplit(const Call& call, const LrkvUnit& unit, bool sameBlock, const UpcomingUnit& upcoming,
                        std::byte* memory, LrkvBlock& block) {
  constexpr Index width = Shape::kWidth;
  const LrkvProblem& problem = call.problem;
  const LrkvPlan& plan = call.space.plans[unit.sequence];
  const FullProblem base = baseProblemOf(problem);
  const FullSequence sequence = baseSequenceOf(call, unit.sequence);
  Arena arena(memory);
  const LrkvWorker worker = placeLrkvWorker(problem, plan, arena);
  const Index sumWidth = widest(problem.layout.valueStarts, problem.layout.kvHeads);
  if (!sameBlock) loadBlock<Shape>(call, unit, base, sequence, worker, block);
  for (Index p = 0; p < block.count; ++p) initState<Shape>(base, block.panels[p], unit.split == 0);
  for (Index i = 0; i < block.rows * sumWidth; ++i) worker.sums[i] = 0;
  const LrkvTile tile = {problem,
                         base,
                         sequence,
                         worker.scratch,
                         call.space.latentQueries + plan.firstRow * call.space.queryWidth,
                         call.space.queryWidth,
                         sumWidth,
                         residualLoops(problem.layout.type)};
  lrkvForward<Shape>(tile, block.panels, block.count, keysOfUnit(call, unit), worker.sums, upcoming, call.execution);

  const Index floats = lrkvStateFloats(problem.layout);
  float* states = call.space.states + plan.firstState + (unit.split * plan.rows + block.first) * floats;
  constexpr Index kRows = kRowBlock<Shape>;
  float ones[kRows];
  for (float& factor : ones) factor = 1;
  for (Index p = 0; p < block.count; ++p) {
    const Panel& panel = block.panels[p];
    const auto stateOf = [&](Index lane) { return states + (p * width + lane) * floats; };
    for (Index lane = 0; lane < panel.rows; lane += kRows) {
      // Lanes without a row go where a tile's values were.
      float* targets[kRows];
      for (Index r = 0; r < kRows; ++r) {
        targets[r] = lane + r < panel.rows ? stateOf(lane + r) : worker.scratch.flash.value;
      }
      lanesToRows<kRows>(panel.output + lane, width, base.valueDim, ones, targets);
    }
    for (Index lane = 0; lane < panel.rows; ++lane) {
      float* state = stateOf(lane);
      __builtin_memcpy(state + base.valueDim, worker.sums + (p * width + lane) * sumWidth,
                       static_cast<std::size_t>(sumWidth) * sizeof(float));
      state[floats - 2] = panel.rowMax[lane];
      state[floats - 1] = panel.rowSum[lane];
    }
  }
}

// Splits that a worker takes in a row at most.
constexpr Index kLrkvRun = 8;

static void runTwoPart(const Call& call) {
  forEachRun(call.execution, call.space.units, kLrkvRun, [&](Index worker, const Run& run) {
    LrkvBlock block;
    for (Index index = run.begin; index < run.end; ++index) {
      const LrkvUnit unit = unitAt(call, index);
      const LrkvUnit before = index == run.begin ? LrkvUnit{-1, 0, 0} : unitAt(call, index - 1);
      const bool sameBlock = unit.sequence == before.sequence && unit.block == before.block;
      const UpcomingUnit upcoming = {call, run, index};
      withLrkvShape(call.space.plans[unit.sequence].rows, [&](auto shape) {
        runSplit<decltype(shape)>(call, unit, sameBlock, upcoming, call.worker(worker), block);
      });
    }
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_SPLIT_H_
