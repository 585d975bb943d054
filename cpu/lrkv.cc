// LRKV on the CPU. See core/lrkv.h for the mathematics. Two forms, chosen a sequence (cpu/lrkv_plan.h):
//   Few queries: the two-part form of cpu/lrkv_tile.h. All heads stand side by side as rows, so that the base is read
//   once; keys are cut into splits, each of which leaves the state of its rows, and a second pass merges these in
//   ascending order and applies gauge and B_hᵀ, once a row. Splits depend on the sequence's own extents alone, so
//   neither the batch nor the number of threads can change a bit of the result.
//
//   Many queries: cpu/lrkv_materialised.h.

#include "cpu/lrkv_materialised.h"
#include "cpu/lrkv_output.h"
#include "cpu/lrkv_split.h"

namespace lowrank_attention::HWY_NAMESPACE {

std::size_t lrkvWorkspaceBytes(const LrkvProblem& problem, Index threads) {
  return layOutLrkv(problem, threads, nullptr).bytes;
}

namespace {

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

// The query of one head: what meets the base, and what meets the latents. `before` are the key ranks of the heads
// before.
LA_INLINE void splitQuery(const Call& call, const Position& position, Index kvHead, Index head, Index before,
                          const QueryScratch& scratch) {
  const LrkvModel& model = call.problem.model;
  const LrkvLayout& layout = call.problem.layout;
  const FullProblem& full = call.problem.full;
  const HeadRows& query = call.sequence(position.sequence).query;
  const Index next = head + full.heads / layout.kvHeads;
  if (next < full.heads) {
    prefetch<3>(rowOf(query, full.queryType, next, position.query), full.headDim * elementBytes(full.queryType));
  }
  prepareQuery(model, full.queryType, rowOf(query, full.queryType, head, position.query), scratch);
  const Index row = call.space.plans[position.sequence].firstRow + position.query * full.heads + head;
  if (!meetsBasePlain(model)) baseQuery(model, kvHead, scratch, call.space.baseQueries + row * layout.keyBaseDim);
  latentQuery(model, kvHead, before, scratch, scaleOfQuery(full),
              call.space.latentQueries + row * call.space.queryWidth, layout.keyWidth(kvHead));
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
