// Exact attention on the CPU: cuts a problem into units of work and runs them over the threads. See core/full.h for
// the mathematics and cpu/flash.h for the loop.
//
// A unit is a block of query rows of one key/value head, over all keys or over one split of them:
//   many rows: blocks of rows walk over all their keys and write their output; few keys have a loop of their own.
//   few rows (decode): the keys are cut into splits; every split leaves its partial state (output, max, sum), and a
//   second pass merges the splits in ascending order. Splits depend on the sequence's own extents alone, so neither
//   the batch nor the number of threads can change a bit of the result.
// Heads of one group (GQA) stand side by side as rows, so they share every key and value that is read.

#include "core/execution.h"
#include "cpu/few.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"

namespace lowrank_attention::HWY_NAMESPACE {

using WidePanel = PanelShape<Full, 2>;

// Calls body(PanelShape) with the narrowest panel that holds all rows, else the widest.
template <class Body>
LA_INLINE auto withPanelShape(Index rows, const Body& body) {
  if (rows <= 1) return body(StreamPanel<1>());
  if (rows <= 2) return body(StreamPanel<2>());
  if (rows <= kStreamRows) return body(StreamPanel<4>());
  if constexpr (kLanes<Full> >= 8) {
    if (rows <= 8) return body(PanelShape<hn::CappedTag<float, 8>, 1>());
  }
  if constexpr (kLanes<Full> >= 16) {
    if (rows <= 16) return body(PanelShape<hn::CappedTag<float, 16>, 1>());
  }
  return body(WidePanel());
}

// How one sequence is cut. Lies in the workspace, one a sequence.
struct SequencePlan {
  bool few = false;  // keys, see cpu/few.h
  Index rows = 0;    // query rows that share a key/value head
  Index width = 0;   // of its panels
  Index blockRows = 0;
  Index blocks = 0;
  Index splitKeys = 0;
  Index splits = 0;
  Index firstUnit = 0;   // units are ordered by block (the longest first), then head, then split
  Index firstState = 0;  // floats into the split states
};

// Rows of a block over few keys at most.
constexpr Index kFewBlock = 1024;
// More splits than this are merged for no gain; longer sequences get longer splits.
constexpr Index kMaxSplits = 64;

// Panels of a block at most. Those of a split hold no more than kSplitRows rows.
constexpr Index kMaxPanels = 32;

LA_INLINE SequencePlan planSequence(const FullProblem& problem, const FullSequence& sequence, Index threads) {
  SequencePlan plan;
  plan.rows = sequence.queries * (problem.heads / problem.kvHeads);
  plan.few = seesFewKeys(problem, sequence, plan.rows);
  plan.width = withPanelShape(plan.rows, [](auto shape) { return decltype(shape)::kWidth; });
  const bool split = plan.rows <= problem.splitRows;
  const Index shortest = kSplitKeys * maximum(1, divideUp(plan.rows, kSplitRows));
  plan.splitKeys = split ? maximum(shortest, roundUp(divideUp(sequence.keys, kMaxSplits), kKeyTile)) : sequence.keys;
  plan.splits = split ? maximum(1, divideUp(sequence.keys, plan.splitKeys)) : 1;
  // A key/value tile is read once a block, so large blocks keep the outer caches out of the matter, as long as their
  // panels stay in L2 (docs/performance.md).
  plan.blockRows = minimum(problem.headDim + problem.valueDim <= 256 ? 512 : 256, kMaxPanels * plan.width);
  // The same goes for bringing few keys to lanes, which is done once a block.
  if (plan.few) plan.blockRows = kFewBlock;
  // Shorter calls are cut finer, for the sake of the last thread to finish; very short ones, so that all have work.
  const auto unitsBelow = [&](Index unitsOfThread) {
    return problem.sequenceCount * problem.kvHeads * divideUp(plan.rows, plan.blockRows) * plan.splits <
           unitsOfThread * threads;
  };
  while (plan.blockRows > plan.width && unitsBelow(plan.blockRows > 128 ? 16 : 4)) {
    plan.blockRows = roundUp(plan.blockRows / 2, plan.width);
  }
  plan.blockRows = plan.rows <= kSplitRows ? maximum(plan.rows, 1) : roundUp(plan.blockRows, plan.width);
  plan.blocks = divideUp(plan.rows, plan.blockRows);
  return plan;
}

LA_INLINE Index splitStateFloats(const FullProblem& problem, const SequencePlan& plan) {
  return divideUp(plan.blockRows, plan.width) * stateFloats(problem, plan.width);
}

// Scratch of one worker: that of the loops, then queries and states of a block's panels.
LA_INLINE Index panelFloats(const FullProblem& problem, const SequencePlan& plan) {
  const Index panels = plan.few ? 1 : divideUp(plan.blockRows, plan.width);
  return flashScratchFloats(problem, plan.width) +
         panels * (problem.headDim * plan.width + stateFloats(problem, plan.width)) +
         (plan.width <= kStreamRows ? streamScratchFloats(problem) : 0);
}

// Of either loop: fewer rows or keys may come than were planned for, which brings the other one in.
LA_INLINE Index workerFloats(const FullProblem& problem, const FullSequence& sequence, const SequencePlan& plan) {
  return maximum(panelFloats(problem, plan), fewScratchFloats(problem, sequence.keys));
}

// Where everything lies in the workspace: the plans, the states of all splits, then each worker's own scratch.
struct FullWorkspace {
  SequencePlan* plans = nullptr;
  float* states = nullptr;
  float* workers = nullptr;
  Index workerFloats = 0;
  Index units = 0;
  std::size_t bytes = 0;
};

// The op's one workspace formula. Fills the plans if `memory` is not null. Sequence s is the one at s·step.
LA_INLINE FullWorkspace layOut(const FullProblem& problem, Index threads, std::byte* memory, Index step = 1) {
  FullWorkspace space;
  Index states = 0;
  space.plans = reinterpret_cast<SequencePlan*>(memory);
  for (Index s = 0; s < problem.sequenceCount; ++s) {
    SequencePlan plan = planSequence(problem, problem.sequences[s * step], threads);
    plan.firstUnit = space.units;
    plan.firstState = states;
    space.units += problem.kvHeads * plan.blocks * plan.splits;
    if (plan.splits > 1) states += problem.kvHeads * plan.blocks * plan.splits * splitStateFloats(problem, plan);
    space.workerFloats = maximum(space.workerFloats, workerFloats(problem, problem.sequences[s * step], plan));
    if (memory != nullptr) space.plans[s] = plan;
  }
  // Panels are counted in multiples of a vector, workers in multiples of a page, so that no two share a cache line.
  space.workerFloats = roundUp(space.workerFloats, 1024);
  const Index planBytes = roundUp(problem.sequenceCount * static_cast<Index>(sizeof(SequencePlan)), 64);
  states = roundUp(states, 16);
  if (memory != nullptr) {
    space.states = reinterpret_cast<float*>(memory + planBytes);
    space.workers = space.states + states;
  }
  space.bytes = static_cast<std::size_t>(planBytes + 4 * (states + threads * space.workerFloats));
  return space;
}

struct Unit {
  const FullProblem& problem;
  const FullSequence& sequence;
  const SequencePlan& plan;
  Index block;
  Index kvHead;
};

// The state that a split of the unit leaves behind.
LA_INLINE float* splitState(const Unit& unit, Index split, float* states) {
  const SequencePlan& plan = unit.plan;
  const Index index = (unit.block * unit.problem.kvHeads + unit.kvHead) * plan.splits + split;
  return states + plan.firstState + index * splitStateFloats(unit.problem, plan);
}

// Sets the panels' rows; their states follow one another from `state` on. Returns their number.
template <class Shape>
LA_INLINE Index placePanels(const Unit& unit, Panel* panels, float* state) {
  constexpr Index width = Shape::kWidth;
  const Index first = unit.block * unit.plan.blockRows;
  const Index rows = minimum(unit.plan.blockRows, unit.plan.rows - first);
  const Index count = divideUp(rows, width);
  for (Index p = 0; p < count; ++p) {
    panels[p].kvHead = unit.kvHead;
    panels[p].firstRow = first + p * width;
    panels[p].rows = minimum(width, rows - p * width);
    placeState(unit.problem, panels[p], state + p * stateFloats(unit.problem, width), width);
  }
  return count;
}

template <class Shape>
LA_INLINE void runBlock(const Unit& unit, Index split, float* states, float* memory, const Execution& execution) {
  constexpr Index width = Shape::kWidth;
  const FullProblem& problem = unit.problem;
  const SequencePlan& plan = unit.plan;
  const Index capacity = divideUp(plan.blockRows, width);
  float* streamMemory = memory + flashScratchFloats(problem, width);
  float* query = streamMemory + (width <= kStreamRows ? streamScratchFloats(problem) : 0);
  float* own = query + capacity * problem.headDim * width;
  const bool partial = plan.splits > 1;
  float* state = partial ? splitState(unit, split, states) : own;
  Panel panels[kMaxPanels];
  const Index count = placePanels<Shape>(unit, panels, state);
  KeyRange keys = {split * plan.splitKeys, minimum((split + 1) * plan.splitKeys, unit.sequence.keys)};
  KeyRange seen = {FullProblem::kOpen, 0};
  for (Index p = 0; p < count; ++p) {
    panels[p].query = query + p * problem.headDim * width;
    loadQueries<Shape>(problem, unit.sequence, panels[p]);
    initState<Shape>(problem, panels[p], split == 0);
    seen = {minimum(seen.begin, panels[p].seen.begin), maximum(seen.end, panels[p].seen.end)};
  }
  keys = {maximum(keys.begin, seen.begin), minimum(keys.end, seen.end)};
  const FlashScratch scratch = placeFlashScratch(problem, width, memory);
  if constexpr (width <= kStreamRows) {
    const StreamScratch stream = placeStreamScratch(problem, streamMemory);
    withRows<width>(panels[0].rows, [&](auto rows) {
      streamForward<Shape, decltype(rows)::value>(problem, unit.sequence, panels[0], keys, scratch, stream, execution);
    });
  } else {
    flashForward<Shape>(problem, unit.sequence, panels, count, keys, scratch, execution);
  }
  if (partial || execution.aborted()) return;
  for (Index p = 0; p < count; ++p) storeRows<Shape>(problem, unit.sequence, panels[p]);
}

// Merges the splits of one block into the first and writes the rows.
template <class Shape>
LA_INLINE void mergeBlock(const Unit& unit, float* states) {
  Panel into[kMaxPanels];
  Panel from[kMaxPanels];
  const Index count = placePanels<Shape>(unit, into, splitState(unit, 0, states));
  for (Index split = 1; split < unit.plan.splits; ++split) {
    placePanels<Shape>(unit, from, splitState(unit, split, states));
    for (Index p = 0; p < count; ++p) mergeState<Shape>(unit.problem, into[p], from[p]);
  }
  for (Index p = 0; p < count; ++p) storeRows<Shape>(unit.problem, unit.sequence, into[p]);
}

std::size_t fullWorkspaceBytes(const FullProblem& problem, Index threads) {
  return layOut(problem, threads, nullptr).bytes;
}

// The same where only the first sequence exists so far, and all others will have its extents.
std::size_t uniformFullWorkspaceBytes(const FullProblem& problem, Index threads) {
  return layOut(problem, threads, nullptr, 0).bytes;
}

void runFull(const FullProblem& problem, const Execution& execution) {
  const FullWorkspace space = layOut(problem, execution.threads, execution.workspace);
  // The sequence a unit belongs to: the last one whose first unit is not beyond it.
  const auto sequenceOf = [&](Index unit) {
    Index low = 0;
    for (Index high = problem.sequenceCount; high - low > 1;) {
      const Index middle = (low + high) / 2;
      (space.plans[middle].firstUnit <= unit ? low : high) = middle;
    }
    return low;
  };
  for (Index s = 0; s < problem.sequenceCount; ++s) clearPadding(problem, problem.sequences[s]);

  Index splitBlocks = 0;  // of the sequence with the most
  for (Index s = 0; s < problem.sequenceCount; ++s) {
    if (space.plans[s].splits > 1) splitBlocks = maximum(splitBlocks, space.plans[s].blocks);
  }

  forEachUnit(execution, space.units, [&](Index worker, Index index) {
    const Index s = sequenceOf(index);
    const SequencePlan& plan = space.plans[s];
    const Index within = index - plan.firstUnit;
    const Index perBlock = problem.kvHeads * plan.splits;
    const Unit unit{problem, problem.sequences[s], plan, plan.blocks - 1 - within / perBlock,
                    within % perBlock / plan.splits};
    float* memory = space.workers + worker * space.workerFloats;
    if (plan.few) {
      const Index first = unit.block * plan.blockRows;
      fewForward(problem, unit.sequence, unit.kvHead, first, minimum(plan.blockRows, plan.rows - first), memory,
                 execution);
      return;
    }
    withPanelShape(plan.rows, [&](auto shape) {
      runBlock<decltype(shape)>(unit, within % plan.splits, space.states, memory, execution);
    });
  });
  if (splitBlocks == 0 || execution.aborted()) return;
  const Index perSequence = problem.kvHeads * splitBlocks;
  forEachUnit(execution, problem.sequenceCount * perSequence, [&](Index, Index index) {
    const Index s = index / perSequence;
    const SequencePlan& plan = space.plans[s];
    const Unit unit{problem, problem.sequences[s], plan, index % splitBlocks, index % perSequence / splitBlocks};
    if (plan.splits == 1 || unit.block >= plan.blocks) return;
    withPanelShape(plan.rows, [&](auto shape) { mergeBlock<decltype(shape)>(unit, space.states); });
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE
