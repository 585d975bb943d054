// LRKV on the CPU. See core/lrkv.h for the mathematics. Two forms, chosen a sequence (cpu/lrkv_plan.h):
//   Few queries: the two-part form of cpu/lrkv_tile.h. All heads stand side by side as rows, so that the base is read
//   once; keys are cut into splits, each of which leaves the state of its rows, and a second pass merges these in
//   ascending order and applies gauge and B_hᵀ, once a row. Splits depend on the sequence's own extents alone, so
//   neither the batch nor the number of threads can change a bit of the result.
//
//   Many queries: cpu/lrkv_materialised.h.

#include "core/execution.h"
#include "cpu/lrkv_materialised.h"

namespace lowrank_attention::HWY_NAMESPACE {

std::size_t lrkvWorkspaceBytes(const LrkvProblem& problem, Index threads) {
  return layOutLrkv(problem, threads, nullptr).bytes;
}

namespace {

// Key/value heads whose queries make one unit: all of B_hᵀ has to be read for a position's.
constexpr Index kQueryHeads = 8;

struct Call {
  const LrkvProblem& problem;
  const LrkvWorkspace& space;
  const Execution& execution;

  LA_METHOD std::byte* worker(Index index) const { return space.workers + index * space.workerBytes; }
  LA_METHOD const FullSequence& sequence(Index s) const { return problem.full.sequences[s]; }
};

// Stores the rows of all sequences in pages of the workspace.
LA_INLINE void storeRows(const Call& call) {
  const FullProblem& full = call.problem.full;
  const Index bytes = storedPageBytes(call.problem.layout);
  Index pages = 0;
  for (Index s = 0; s < full.sequenceCount; ++s) pages += pagesOf(call.sequence(s));
  for (Index p = 0; p < pages; ++p) call.problem.pages[p] = call.space.pages + p * bytes;
  forEachUnit(call.execution, pages, [&](Index worker, Index unit) {
    Index s = 0;
    for (; unit >= pagesOf(call.sequence(s)); ++s) unit -= pagesOf(call.sequence(s));
    const Index begin = unit * LrkvLayout::kPageRows;
    storeLrkvRows(call.problem.stores[s], begin, minimum(begin + LrkvLayout::kPageRows, call.sequence(s).keys),
                  call.worker(worker));
  });
}

// The queries of one position of a sequence, of the heads that read some key/value heads: what meets the base, and what
// meets the latents.
LA_INLINE void splitQueries(const Call& call, Index s, Index query, Index firstHead, std::byte* memory) {
  const LrkvModel& model = call.problem.model;
  const LrkvLayout& layout = call.problem.layout;
  const FullProblem& full = call.problem.full;
  const FullSequence& sequence = call.sequence(s);
  const Index group = full.heads / layout.kvHeads;
  const float scale = scaleOfQuery(full);
  Arena arena(memory);
  const QueryScratch scratch = placeQueryScratch(model, arena);
  turnTo(model, query + sequence.offset, scratch);
  Index before = ranksBefore(model.key, firstHead);
  for (Index kvHead = firstHead; kvHead < minimum(firstHead + kQueryHeads, layout.kvHeads); ++kvHead) {
    for (Index head = kvHead * group; head < (kvHead + 1) * group; ++head) {
      const Index at = head * sequence.query.headStride + query * sequence.query.rowStride;
      prepareQuery(model, full.queryType, elementAt(sequence.query.data, full.queryType, at), scratch);
      const Index row = call.space.plans[s].firstRow + query * full.heads + head;
      baseQuery(model, kvHead, scratch, call.space.baseQueries + row * layout.keyBaseDim);
      float* latent = call.space.latentQueries + row * call.space.queryWidth;
      latentQuery(model, kvHead, before, scratch, latent, layout.keyWidth(kvHead));
      for (Index c = 0; c < layout.keyWidth(kvHead); ++c) latent[c] *= scale;
    }
    before += model.key.ranks[kvHead];
  }
}

// One block of rows of one sequence over one split of its keys. Leaves a state a row.
template <class Shape>
LA_INLINE void runSplit(const Call& call, Index s, Index block, Index split, std::byte* memory) {
  constexpr Index width = Shape::kWidth;
  const LrkvProblem& problem = call.problem;
  const LrkvPlan& plan = call.space.plans[s];
  const FullProblem base = baseProblemOf(problem);
  FullSequence sequence = call.sequence(s);
  sequence.query = {call.space.baseQueries + plan.firstRow * base.headDim, base.headDim,
                    problem.full.heads * base.headDim};
  Arena arena(memory);
  const LrkvWorker worker = placeLrkvWorker(problem, plan, arena);
  const Index sumWidth = widest(problem.layout.valueStarts, problem.layout.kvHeads);
  const Index first = block * plan.blockRows;
  const Index rows = minimum(plan.blockRows, plan.rows - first);
  const Index count = divideUp(rows, width);

  Panel panels[kLrkvPanels];
  KeyRange seen = {FullProblem::kOpen, 0};
  for (Index p = 0; p < count; ++p) {
    Panel& panel = panels[p];
    panel.firstRow = first + p * width;
    panel.rows = minimum(width, rows - p * width);
    panel.query = worker.query + p * base.headDim * width;
    placeState(base, panel, worker.states + p * stateFloats(base, width), width);
    loadQueries<Shape>(base, sequence, panel);
    initState<Shape>(base, panel, split == 0);
    seen = {minimum(seen.begin, panel.seen.begin), maximum(seen.end, panel.seen.end)};
  }
  for (Index i = 0; i < rows * sumWidth; ++i) worker.sums[i] = 0;
  const KeyRange keys = {maximum(split * plan.splitKeys, seen.begin),
                         minimum(minimum((split + 1) * plan.splitKeys, sequence.keys), seen.end)};
  const LrkvTile tile = {problem,
                         base,
                         sequence,
                         worker.scratch,
                         call.space.latentQueries + plan.firstRow * call.space.queryWidth,
                         call.space.queryWidth,
                         sumWidth,
                         residualLoops(problem.layout.type)};
  lrkvForward<Shape>(tile, panels, count, keys, worker.sums, call.execution);

  const Index floats = lrkvStateFloats(problem.layout);
  float* states = call.space.states + plan.firstState + (split * plan.rows + first) * floats;
  constexpr Index kRows = kRowBlock<Shape>;
  float ones[kRows];
  for (float& factor : ones) factor = 1;
  for (Index p = 0; p < count; ++p) {
    const Panel& panel = panels[p];
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

// Merges the states of a row over the splits into the first one.
LA_INLINE void mergeRow(const LrkvPlan& plan, float* first, Index floats) {
  const auto state = [&](Index split) { return first + split * plan.rows * floats; };
  const hn::CappedTag<float, 1> one;
  auto max = hn::Set(one, -kInfinity);
  for (Index split = 0; split < plan.splits; ++split) max = hn::Max(max, hn::Set(one, state(split)[floats - 2]));
  // Where all states are empty, 0 in place of the maximum makes every factor 0.
  const auto safe = hn::IfThenElse(hn::Eq(max, hn::Set(one, -kInfinity)), hn::Zero(one), max);
  for (Index split = 0; split < plan.splits; ++split) {
    const float* from = state(split);
    const float factor = hn::GetLane(exp2NonPositive(one, hn::Sub(hn::Set(one, from[floats - 2]), safe)));
    if (split == 0) {
      for (Index c = 0; c < floats - 2; ++c) first[c] *= factor;
      first[floats - 1] *= factor;
    } else {
      for (Index c = 0; c < floats - 2; ++c) first[c] += from[c] * factor;
      first[floats - 1] += from[floats - 1] * factor;
    }
  }
  first[floats - 2] = hn::GetLane(max);
}

// Output and lse of all rows of a sequence that read one key/value head.
LA_INLINE void finishHead(const Call& call, Index s, Index kvHead, float* output) {
  const LrkvProblem& problem = call.problem;
  const FullProblem& full = problem.full;
  const FullSequence& sequence = call.sequence(s);
  const LrkvPlan& plan = call.space.plans[s];
  const Index floats = lrkvStateFloats(problem.layout);
  const Index group = full.heads / problem.layout.kvHeads;
  const Index before = ranksBefore(problem.model.value, kvHead);
  for (Index query = 0; query < sequence.queries; ++query) {
    for (Index head = kvHead * group; head < (kvHead + 1) * group; ++head) {
      float* state = call.space.states + plan.firstState + (query * full.heads + head) * floats;
      mergeRow(plan, state, floats);
      const float sum = state[floats - 1];
      const float inverse = sum == 0 ? 0.0f : 1.0f / sum;
      for (Index c = 0; c < floats - 2; ++c) state[c] *= inverse;
      outputOf(problem.model.value, kvHead, before, state, state + problem.layout.valueBaseDim, output);
      const Index at = head * sequence.output.headStride + query * sequence.output.rowStride;
      convertRow(DataType::kFloat32, output, full.outputType, elementAt(sequence.output.data, full.outputType, at),
                 full.valueDim);
      if (sequence.lse != nullptr) {
        sequence.lse[head * sequence.queryRows + query] = lseOf(full, state[floats - 2], sum);
      }
    }
  }
}

void runTwoPart(const Call& call) {
  const FullProblem& full = call.problem.full;
  // The sequence a unit belongs to: the last one whose first unit is not beyond it.
  const auto sequenceOfUnit = [&](Index unit) {
    Index low = 0;
    for (Index high = full.sequenceCount; high - low > 1;) {
      const Index middle = (low + high) / 2;
      (call.space.plans[middle].firstUnit <= unit ? low : high) = middle;
    }
    return low;
  };
  forEachUnit(call.execution, call.space.units, [&](Index worker, Index unit) {
    const Index s = sequenceOfUnit(unit);
    const LrkvPlan& plan = call.space.plans[s];
    const Index within = unit - plan.firstUnit;
    withLrkvShape(plan.rows, [&](auto shape) {
      runSplit<decltype(shape)>(call, s, within / plan.splits, within % plan.splits, call.worker(worker));
    });
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
    // Units are positions; those of all sequences are counted through by the sequence with the most.
    Index queries = 0;
    for (Index s = 0; s < full.sequenceCount; ++s) {
      if (!space.plans[s].materialised) queries = maximum(queries, full.sequences[s].queries);
    }
    // Heads come last to change, here and at the end, so that all sequences find a head's B_hᵀ in the cache.
    const Index positions = full.sequenceCount * queries;
    forEachUnit(execution, positions * divideUp(problem.layout.kvHeads, kQueryHeads), [&](Index worker, Index unit) {
      const Index s = unit % positions / queries;
      const Index query = unit % queries;
      if (space.plans[s].materialised || query >= full.sequences[s].queries) return;
      splitQueries(call, s, query, unit / positions * kQueryHeads, call.worker(worker));
    });
    if (execution.aborted()) return;
    runTwoPart(call);
    if (execution.aborted()) return;
    forEachUnit(execution, full.sequenceCount * problem.layout.kvHeads, [&](Index worker, Index unit) {
      const Index s = unit % full.sequenceCount;
      if (space.plans[s].materialised) return;
      finishHead(call, s, unit / full.sequenceCount, reinterpret_cast<float*>(call.worker(worker)));
    });
  }

  for (Index s = 0; s < full.sequenceCount; ++s) {
    if (!space.plans[s].materialised) continue;
    const FullSequence& sequence = full.sequences[s];
    Arena arena(space.shared);
    const MaterialisedSpace own = placeMaterialised(problem, sequence, execution.threads, arena);
    const Index step = materialisedHeads(problem, sequence, execution.threads);
    for (Index head = 0; head < problem.layout.kvHeads; head += step) {
      if (execution.aborted()) return;
      runMaterialised(problem, sequence, head, minimum(step, problem.layout.kvHeads - head), own, space.workers,
                      space.workerBytes, execution);
    }
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE
