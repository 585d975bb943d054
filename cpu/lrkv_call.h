// A call of LRKV as its parts see it, and how they go over its queries.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_CALL_H_
#define LOWRANK_ATTENTION_CPU_LRKV_CALL_H_

#include "core/execution.h"
#include "cpu/lrkv_plan.h"

namespace lowrank_attention::HWY_NAMESPACE {

struct Call {
  const LrkvProblem& problem;
  const LrkvWorkspace& space;
  const Execution& execution;

  LA_METHOD std::byte* worker(Index index) const { return space.workers + index * space.workerBytes; }
  LA_METHOD const FullSequence& sequence(Index s) const { return problem.full.sequences[s]; }
};

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

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_CALL_H_
