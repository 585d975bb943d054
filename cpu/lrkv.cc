// LRKV on the CPU. See core/lrkv.h for the mathematics. Two forms, chosen a sequence (cpu/lrkv_plan.h):
//   Few queries: the two-part form of cpu/lrkv_tile.h. All heads stand side by side as rows, so that the base is read
//   once; keys are cut into splits, each of which leaves the state of its rows, and a second pass merges these in
//   ascending order and applies gauge and B_hᵀ, once a row. Splits depend on the sequence's own extents alone, so
//   neither the batch nor the number of threads can change a bit of the result.
//
//   Many queries: cpu/lrkv_materialised.h.

#include "core/execution.h"
#include "cpu/lrkv_materialised.h"
#include "cpu/lrkv_output.h"

namespace lowrank_attention::HWY_NAMESPACE {

std::size_t lrkvWorkspaceBytes(const LrkvProblem& problem, Index threads) {
  return layOutLrkv(problem, threads, nullptr).bytes;
}

namespace {

struct Call {
  const LrkvProblem& problem;
  const LrkvWorkspace& space;
  const Execution& execution;

  LA_METHOD std::byte* worker(Index index) const { return space.workers + index * space.workerBytes; }
  LA_METHOD const FullSequence& sequence(Index s) const { return problem.full.sequences[s]; }
};

// Stores the rows of the sequences in the two-part form in pages of the workspace.
LA_INLINE void storeRows(const Call& call) {
  const LrkvProblem& problem = call.problem;
  const Index bytes = storedPageBytes(problem.layout);
  std::byte* memory = call.space.pages;
  Index pages = 0;
  for (Index s = 0; s < problem.full.sequenceCount; ++s) {
    for (Index p = 0; p < pagesOf(call.sequence(s)); ++p, ++pages) {
      if (call.space.plans[s].materialised) continue;
      problem.pages[pages] = memory;
      memory += bytes;
    }
  }
  forEachUnit(call.execution, pages, [&](Index worker, Index unit) {
    Index s = 0, page = unit;
    for (; page >= pagesOf(call.sequence(s)); ++s) page -= pagesOf(call.sequence(s));
    if (call.space.plans[s].materialised) return;
    const Index begin = page * LrkvLayout::kPageRows;
    storeLrkvRows(problem.stores[s], begin, minimum(begin + LrkvLayout::kPageRows, call.sequence(s).keys), 0,
                  problem.layout.kvHeads, problem.pages[unit], call.worker(worker));
  });
}

// One query of each head of a sequence.
struct Position {
  Index sequence;
  Index query;
};

// What is done once a query and head, for some positions and key/value heads.
struct PositionUnit {
  Position positions[kUnitPositions];
  Index count = 0;
  Index firstHead = 0;
  Index endHead = 0;
};

// Calls task(worker, PositionUnit) until every position and head of the sequences in the two-part form had its turn.
template <class Task>
LA_INLINE void forPositions(const Call& call, const Task& task) {
  const FullProblem& full = call.problem.full;
  const Index kvHeads = call.problem.layout.kvHeads;
  // Positions of all sequences are counted through by the sequence with the most.
  Index queries = 0;
  for (Index s = 0; s < full.sequenceCount; ++s) {
    if (!call.space.plans[s].materialised) queries = maximum(queries, full.sequences[s].queries);
  }
  const Index positions = full.sequenceCount * queries;
  const Index blocks = divideUp(positions, kUnitPositions);
  forEachUnit(call.execution, blocks * divideUp(kvHeads, kUnitHeads), [&](Index worker, Index index) {
    PositionUnit unit;
    unit.firstHead = index / blocks * kUnitHeads;
    unit.endHead = minimum(unit.firstHead + kUnitHeads, kvHeads);
    const Index first = index % blocks * kUnitPositions;
    for (Index p = first; p < minimum(first + kUnitPositions, positions); ++p) {
      const Position position = {p / queries, p % queries};
      if (call.space.plans[position.sequence].materialised) continue;
      if (position.query < full.sequences[position.sequence].queries) unit.positions[unit.count++] = position;
    }
    if (unit.count > 0) task(worker, unit);
  });
}

// The query of one head: what meets the base, and what meets the latents. `before` are the key ranks of the heads
// before.
LA_INLINE void splitQuery(const Call& call, const Position& position, Index kvHead, Index head, Index before,
                          const QueryScratch& scratch) {
  const LrkvModel& model = call.problem.model;
  const LrkvLayout& layout = call.problem.layout;
  const FullProblem& full = call.problem.full;
  const FullSequence& sequence = call.sequence(position.sequence);
  const float scale = scaleOfQuery(full);
  const Index at = head * sequence.query.headStride + position.query * sequence.query.rowStride;
  prepareQuery(model, full.queryType, elementAt(sequence.query.data, full.queryType, at), scratch);
  const Index row = call.space.plans[position.sequence].firstRow + position.query * full.heads + head;
  baseQuery(model, kvHead, scratch, call.space.baseQueries + row * layout.keyBaseDim);
  float* latent = call.space.latentQueries + row * call.space.queryWidth;
  latentQuery(model, kvHead, before, scratch, latent, layout.keyWidth(kvHead));
  for (Index c = 0; c < layout.keyWidth(kvHead); ++c) latent[c] *= scale;
}

void splitQueries(const Call& call) {
  const LrkvModel& model = call.problem.model;
  const Index group = call.problem.full.heads / call.problem.layout.kvHeads;
  forPositions(call, [&](Index worker, const PositionUnit& unit) {
    Arena arena(call.worker(worker));
    QueryScratch scratch[kUnitPositions];
    for (Index p = 0; p < unit.count; ++p) {
      const Position& position = unit.positions[p];
      scratch[p] = placeQueryScratch(model, arena);
      turnTo(model, position.query + call.sequence(position.sequence).offset, scratch[p]);
    }
    Index before = ranksBefore(model.key, unit.firstHead);
    for (Index kvHead = unit.firstHead; kvHead < unit.endHead; ++kvHead) {
      for (Index p = 0; p < unit.count; ++p) {
        for (Index head = kvHead * group; head < (kvHead + 1) * group; ++head) {
          splitQuery(call, unit.positions[p], kvHead, head, before, scratch[p]);
        }
      }
      before += model.key.ranks[kvHead];
    }
  });
}

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

// The first keys of the unit that a worker takes after one of a run.
struct UpcomingUnit {
  const Call& call;
  const Run& run;
  Index unit;

  LA_METHOD UpcomingKeys operator()() const {
    const Index next = unit + 1 < run.end ? unit + 1 : run.upcoming();
    if (next >= call.space.units) return UpcomingKeys();
    const LrkvUnit taken = unitAt(call, next);
    return firstTileOf(call.sequence(taken.sequence), keysOfUnit(call, taken));
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
  FullSequence sequence = call.sequence(unit.sequence);
  sequence.query = {call.space.baseQueries + plan.firstRow * base.headDim, base.headDim,
                    problem.full.heads * base.headDim};
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
    const Index at =
        (kvHead * group + row % group) * sequence.output.headStride + position.query * sequence.output.rowStride;
    convertRow(DataType::kFloat32, scratch.whole + row * wholeStride(value.dim), full.outputType,
               elementAt(sequence.output.data, full.outputType, at), value.dim);
  }
}

void finishRows(const Call& call) {
  forPositions(call, [&](Index worker, const PositionUnit& unit) {
    Arena arena(call.worker(worker));
    const OutputScratch scratch = placeOutputScratch(call.problem, arena);
    for (Index kvHead = unit.firstHead; kvHead < unit.endHead; ++kvHead) finishHead(call, unit, kvHead, scratch);
  });
}

// Splits that a worker takes in a row at most.
constexpr Index kLrkvRun = 8;

void runTwoPart(const Call& call) {
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

}  // namespace

void runLrkv(const LrkvProblem& problem, const Execution& execution) {
  const FullProblem& full = problem.full;
  const LrkvWorkspace space = layOutLrkv(problem, execution.threads, execution.workspace);
  const Call call = {problem, space, execution};
  for (Index s = 0; s < full.sequenceCount; ++s) clearPadding(full, full.sequences[s]);
  if (problem.stores != nullptr) storeRows(call);
  if (execution.aborted()) return;

  if (space.rows > 0) {
    splitQueries(call);
    if (execution.aborted()) return;
    runTwoPart(call);
    if (execution.aborted()) return;
    finishRows(call);
  }

  for (Index s = 0; s < full.sequenceCount; ++s) {
    if (!space.plans[s].materialised) continue;
    const FullSequence& sequence = full.sequences[s];
    Arena arena(space.shared);
    const MaterialisedSpace own = placeMaterialised(problem, sequence, execution.threads, arena);
    const Index step = materialisedHeads(problem, sequence, execution.threads);
    for (Index head = 0; head < problem.layout.kvHeads; head += step) {
      if (execution.aborted()) return;
      runMaterialised(problem, s, head, minimum(step, problem.layout.kvHeads - head), own, space.workers,
                      space.workerBytes, execution);
    }
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE
