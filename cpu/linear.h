// Linear attention on the CPU: cuts a problem into units of work and runs them over the threads. See core/linear.h for the
// mathematics and cpu/linear_chunk.h for the loop.
//
// Keys are cut into ranges, whose sums are float32 and start from zero; the state between ranges is float64. Where there
// are heads enough, a unit is a head: range after range. Else ranges are units too, in three passes: the sums of all
// ranges, then for every head the state before each range, then the rows of the queries. Both do the same arithmetic in
// the same order, so that the choice, which depends on the threads and the batch, cannot show in a bit of the result. The
// delta rules, whose sums need the state before them, know the first way only. A few tokens that continue a state go
// another way, see cpu/linear_step.h.
#ifndef LOWRANK_ATTENTION_CPU_LINEAR_H_
#define LOWRANK_ATTENTION_CPU_LINEAR_H_

#include "cpu/linear_chunk.h"
#include "cpu/linear_step.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kLinearRange = 512;
// More ranges than this are summed for no gain; longer sequences get longer ranges.
constexpr Index kMaxLinearRanges = 64;
// Query rows of a unit where all queries read the same state.
constexpr Index kLinearQueries = 256;
// Rows of a unit of angles.
constexpr Index kAngleRows = 1024;

// Keys of a range: so many that the sums of all ranges take no more memory than the keys and values. Those of the delta
// rules are never kept, see cpu/linear_delta.h.
LA_INLINE Index rangeKeys(const LinearProblem& problem) {
  if (isDelta(problem)) return kLinearChunk;
  const Qkv& qkv = problem.qkv;
  const Index least = divideUp(problem.features * qkv.valueDim, qkv.headDim + qkv.valueDim);
  return roundUp(maximum(maximum(least, divideUp(qkv.keys, kMaxLinearRanges)), 1), kLinearRange);
}

// How the work is shared.
struct LinearPlan {
  bool step = false;
  Index heads = 0;  // key/value heads of all batch items
  Index rangeKeys = 0;
  Index ranges = 0;
  bool byHead = true;  // a unit is a head
};

LA_INLINE LinearPlan planLinear(const LinearProblem& problem, Index threads) {
  const Qkv& qkv = problem.qkv;
  LinearPlan plan;
  plan.step = isStep(problem);
  plan.heads = qkv.batch * qkv.kvHeads;
  plan.rangeKeys = rangeKeys(problem);
  plan.ranges = divideUp(qkv.keys, plan.rangeKeys);
  if (plan.step || threads == 1 || isDelta(problem)) return plan;
  const Index finest =
      problem.causal ? plan.ranges : maximum(plan.ranges, divideUp(qkv.queries, kLinearQueries) * qkv.heads / qkv.kvHeads);
  if (finest <= 1) return plan;
  // The last heads leave threads idle; ranges do not, but of a causal call, which computes their sums twice, half as much
  // again is to be done.
  const Index rounds = divideUp(plan.heads, threads) * threads;
  plan.byHead = problem.causal && problem.qkv.queries > 0 ? 2 * rounds <= 3 * plan.heads : 8 * rounds <= 9 * plan.heads;
  return plan;
}

// Where everything lies in the workspace.
struct LinearWorkspace {
  LinearShared shared;
  RangeSum* sums = nullptr;  // [heads][ranges], with their memory after them
  std::byte* workers = nullptr;
  Index workerBytes = 0;
  std::size_t bytes = 0;
};

LA_INLINE RangeSum placeSum(const LinearProblem& problem, Arena& arena) {
  RangeSum sum;
  sum.state = arena.take<float>(StateShape(problem).size);
  if (problem.decay != nullptr && problem.decayPerFeature) sum.featureDecay = arena.take<double>(problem.features);
  return sum;
}

LA_INLINE LinearScratch placeScratch(const LinearProblem& problem, Arena& arena) {
  const StateShape shape(problem);
  const Index rows = tileRowsOf(problem);
  const Index stride = featureStride(shape.features);
  LinearScratch scratch;
  // A vector may be read from any element of the last row on.
  scratch.features.input = arena.take<float>(rows * inputStride(problem) + 16);
  scratch.features.projected = arena.take<float>(rows * featureStride(projectedWidth(problem)) + 16);
  scratch.key = arena.take<float>(rows * stride);
  scratch.keyLog = arena.take<float>(rows);
  scratch.query = arena.take<float>(rows * stride);
  scratch.queryLog = arena.take<float>(rows);
  scratch.value = arena.take<float>(rows * shape.columns);
  scratch.valueRow = arena.take<float>(shape.columns);
  scratch.output = arena.take<float>(rows * shape.columns);
  if (problem.causal) {
    scratch.keyLanes = arena.take<float>(kLinearChunk * shape.features);
    if (problem.decayPerFeature) scratch.decays = arena.take<float>(decayFloats(shape.features));
  }
  scratch.keep = arena.take<float>(roundUp(shape.features, 16));
  scratch.carry = arena.take<float>(roundUp(shape.features, 16));
  scratch.sum = placeSum(problem, arena);
  scratch.state = arena.take<float>(shape.size);
  scratch.past = arena.take<float>(shape.size);
  scratch.total = arena.take<double>(shape.size);
  return scratch;
}

// The op's one workspace formula.
LA_INLINE LinearWorkspace layOutLinear(const LinearProblem& problem, const LinearPlan& plan, Index threads,
                                       std::byte* memory) {
  const Qkv& qkv = problem.qkv;
  LinearWorkspace space;
  Arena arena(memory);
  const auto placePanels = [&](const FeatureMap& map, Index heads) {
    // For the few rows of a step packing would be most of the work.
    if (map.weights == nullptr || plan.step) return static_cast<float*>(nullptr);
    return arena.take<float>((map.weightHeadStride == 0 ? 1 : heads) * panelFloats(problem));
  };
  space.shared.queryPanels = placePanels(problem.queryMap, qkv.heads);
  space.shared.keyPanels = placePanels(problem.keyMap, qkv.kvHeads);
  if (problem.kind == FeatureKind::kCosformer) {
    space.shared.queryAngles = arena.take<float>(2 * qkv.queries);
    space.shared.keyAngles = arena.take<float>(2 * qkv.keys);
  }
  if (!plan.byHead) {
    const Index sums = plan.heads * maximum(plan.ranges, 1);
    Arena one(nullptr);
    placeSum(problem, one);
    space.sums = arena.take<RangeSum>(sums);
    auto* states = arena.take<std::byte>(sums * one.bytes());
    for (Index i = 0; states != nullptr && i < sums; ++i) {
      Arena own(states + i * one.bytes());
      space.sums[i] = placeSum(problem, own);
    }
  }
  Arena worker(nullptr);
  if (plan.step) {
    placeStep(problem, worker);
  } else {
    placeScratch(problem, worker);
  }
  // No two workers share a page.
  space.workerBytes = roundUp(worker.bytes(), 4096);
  space.workers = arena.take<std::byte>(threads * space.workerBytes);
  space.bytes = static_cast<std::size_t>(arena.bytes());
  return space;
}

static std::size_t linearWorkspaceBytes(const LinearProblem& problem, Index threads) {
  return layOutLinear(problem, planLinear(problem, threads), threads, nullptr).bytes;
}

// One call: the problem, how it is shared, and where things are.
struct LinearCall {
  const LinearProblem& problem;
  const LinearPlan& plan;
  const LinearWorkspace& space;
  const Execution& execution;

  LA_METHOD LinearHead head(Index index) const {
    return {problem, space.shared, index / problem.qkv.kvHeads, index % problem.qkv.kvHeads};
  }
  LA_METHOD LinearScratch scratch(Index worker) const {
    Arena arena(space.workers + worker * space.workerBytes);
    return placeScratch(problem, arena);
  }
  LA_METHOD KeyRange range(Index index) const {
    return {index * plan.rangeKeys, minimum((index + 1) * plan.rangeKeys, problem.qkv.keys)};
  }
};

// Packs weights and fills in angles.
static void prepareMaps(const LinearCall& call) {
  const LinearProblem& problem = call.problem;
  const Qkv& qkv = problem.qkv;
  const LinearShared& shared = call.space.shared;
  const auto pack = [&](const FeatureMap& map, Index heads, float* panels) {
    if (panels == nullptr) return;
    forEachUnit(call.execution, map.weightHeadStride == 0 ? 1 : heads, [&](Index, Index head) {
      packWeights(map.weights + head * map.weightHeadStride, projectedWidth(problem), qkv.headDim,
                  panels + head * panelFloats(problem));
    });
  };
  pack(problem.queryMap, qkv.heads, shared.queryPanels);
  pack(problem.keyMap, qkv.kvHeads, shared.keyPanels);
  const auto fill = [&](const FeatureMap& map, Index rows, float* angles) {
    if (angles == nullptr) return;
    forEachUnit(call.execution, divideUp(rows, kAngleRows), [&](Index, Index unit) {
      const Index first = unit * kAngleRows;
      fillAngles(problem, map, first, minimum(kAngleRows, rows - first), angles);
    });
  };
  fill(problem.queryMap, qkv.queries, shared.queryAngles);
  fill(problem.keyMap, qkv.keys, shared.keyAngles);
}

// The state before the first key, and its logarithm.
static float beginState(const LinearHead& head, double* state) {
  const double* source = head.stateIn();
  if (source == nullptr) {
    clearState(head.shape, state);
    return emptyLog(head.problem);
  }
  loadState(head.shape, source, state);
  return static_cast<float>(source[linearStateDoubles(head.shape.features, head.shape.valueDim) - 1]);
}

LA_INLINE void endState(const LinearHead& head, const double* state, float log) {
  if (head.stateOut() != nullptr) storeState(head.shape, state, log, head.stateOut());
}

// Query rows [begin, end) of a head that read one state, not causal.
static void attendState(const LinearCall& call, const LinearHead& head, Index queryHead, Index begin, Index end,
                        const float* state, const LinearScratch& scratch) {
  const FeatureRows rows = head.queryRows(queryHead);
  for (Index first = begin; first < end; first += kLinearTile) {
    if (call.execution.aborted()) return;
    const Index count = minimum(kLinearTile, end - first);
    makeFeatures(head.problem, rows, first, count, scratch.query, scratch.queryLog, scratch.features);
    StateReads reads;
    reads.rows = scratch.query;
    reads.state = state;
    writeRows(head, queryHead, first, count, reads, nullptr, scratch);
  }
}

static void runHead(const LinearCall& call, Index index, const LinearScratch& placed) {
  const LinearProblem& problem = call.problem;
  const LinearHead head = call.head(index);
  LinearScratch scratch = placed;
  const Index queries = problem.qkv.queries;
  PastState past{nullptr, emptyLog(problem)};
  float log = past.log;
  const auto round = [&] {
    roundState(head.shape, scratch.total, scratch.past);
    past = {scratch.past, log};
  };
  if (call.plan.ranges == 0 && head.stateOut() == nullptr) {
    // Only to be read.
    if (head.stateIn() == nullptr) {
      clearState(head.shape, scratch.past);
    } else {
      loadState(head.shape, head.stateIn(), scratch.past);
    }
    past.state = scratch.past;
  } else {
    log = beginState(head, scratch.total);
    if (!problem.causal || head.stateIn() != nullptr) round();
  }
  for (Index range = 0; range < call.plan.ranges; ++range) {
    runRange(head, call.range(range), problem.causal ? past : PastState{nullptr, emptyLog(problem)},
             problem.causal && queries > 0, scratch.sum, scratch, call.execution);
    if (call.execution.aborted()) return;
    addSum(head.shape, scratch.sum, scratch.total, &log);
    round();
  }
  endState(head, scratch.total, log);
  if (problem.causal) return;
  for (Index g = 0; g < head.queryHeads(); ++g) {
    attendState(call, head, head.kvHead * head.queryHeads() + g, 0, queries, past.state, scratch);
  }
}

// The sums of all ranges.
static void sumRanges(const LinearCall& call) {
  const Index ranges = call.plan.ranges;
  // Nobody reads what comes after the last range.
  const Index used = call.problem.causal && call.problem.stateOut == nullptr ? ranges - 1 : ranges;
  forEachUnit(call.execution, call.plan.heads * used, [&](Index worker, Index unit) {
    const Index index = unit / used;
    const Index range = unit % used;
    runRange(call.head(index), call.range(range), {nullptr, emptyLog(call.problem)}, false,
             call.space.sums[index * ranges + range], call.scratch(worker), call.execution);
  });
}

// Puts in the place of every range's sum the state before it; not causal, in that of the first the state after all.
static void addRanges(const LinearCall& call) {
  const LinearProblem& problem = call.problem;
  const Index ranges = call.plan.ranges;
  const Index used = problem.causal && problem.stateOut == nullptr ? ranges - 1 : ranges;
  forEachUnit(call.execution, call.plan.heads, [&](Index worker, Index index) {
    const LinearHead head = call.head(index);
    const LinearScratch scratch = call.scratch(worker);
    RangeSum* sums = call.space.sums + index * maximum(ranges, 1);
    float log = beginState(head, scratch.total);
    for (Index range = 0; range < ranges; ++range) {
      const float before = log;
      roundState(head.shape, scratch.total, scratch.past);
      if (range < used) addSum(head.shape, sums[range], scratch.total, &log);
      __builtin_memcpy(sums[range].state, scratch.past, static_cast<std::size_t>(4 * head.shape.size));
      sums[range].log = before;
    }
    if (!problem.causal) roundState(head.shape, scratch.total, sums[0].state);
    endState(head, scratch.total, log);
  });
}

static void attendRanges(const LinearCall& call) {
  const LinearProblem& problem = call.problem;
  const Index ranges = call.plan.ranges;
  if (problem.causal) {
    forEachUnit(call.execution, call.plan.heads * ranges, [&](Index worker, Index unit) {
      LinearScratch scratch = call.scratch(worker);
      const LinearHead head = call.head(unit / ranges);
      const RangeSum& before = call.space.sums[unit];
      const bool empty = unit % ranges == 0 && head.stateIn() == nullptr;
      runRange(head, call.range(unit % ranges), {empty ? nullptr : before.state, before.log}, true, scratch.sum, scratch,
               call.execution);
    });
    return;
  }
  const Index queries = problem.qkv.queries;
  const Index blocks = divideUp(queries, kLinearQueries);
  forEachUnit(call.execution, problem.qkv.batch * problem.qkv.heads * blocks, [&](Index worker, Index unit) {
    const Index queryHead = unit / blocks % problem.qkv.heads;
    const Index item = unit / blocks / problem.qkv.heads;
    const Index index = item * problem.qkv.kvHeads + queryHead / (problem.qkv.heads / problem.qkv.kvHeads);
    const Index first = unit % blocks * kLinearQueries;
    attendState(call, call.head(index), queryHead, first, minimum(first + kLinearQueries, queries),
                call.space.sums[index * maximum(ranges, 1)].state, call.scratch(worker));
  });
}

static void runLinear(const LinearProblem& problem, const Execution& execution) {
  const LinearPlan plan = planLinear(problem, execution.threads);
  const LinearWorkspace space = layOutLinear(problem, plan, execution.threads, execution.workspace);
  const LinearCall call{problem, plan, space, execution};
  prepareMaps(call);
  if (execution.aborted()) return;
  if (plan.step) {
    forEachUnit(execution, plan.heads, [&](Index worker, Index index) {
      Arena arena(space.workers + worker * space.workerBytes);
      runStep(call.head(index), placeStep(problem, arena));
    });
  } else if (plan.byHead) {
    forEachUnit(execution, plan.heads, [&](Index worker, Index index) { runHead(call, index, call.scratch(worker)); });
  } else {
    sumRanges(call);
    if (execution.aborted()) return;
    addRanges(call);
    if (execution.aborted()) return;
    if (problem.qkv.queries > 0) attendRanges(call);
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LINEAR_H_
