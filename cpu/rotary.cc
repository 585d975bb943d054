// Rotary embedding on the CPU. A unit of work is a few rows of a batch item: their sines and cosines are made once and
// serve all heads.

#include "cpu/rotary.h"

#include "cpu/arena.h"
#include "cpu/kernels.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Rows of one unit of work.
constexpr Index kRotaryRows = 16;

// Scratch of one worker.
struct RotaryScratch {
  float* cosines = nullptr;  // [kRotaryRows][dim / 2]
  float* sines = nullptr;    // [kRotaryRows][dim / 2]
  float* row = nullptr;      // [dim]
};

LA_INLINE RotaryScratch placeRotary(const RotaryProblem& problem, Arena& arena) {
  const Index pairs = problem.frequencies == nullptr ? 0 : problem.dim / 2;
  RotaryScratch scratch;
  scratch.cosines = arena.take<float>(kRotaryRows * pairs);
  scratch.sines = arena.take<float>(kRotaryRows * pairs);
  scratch.row = arena.take<float>(problem.dim);
  return scratch;
}

LA_INLINE Index rotaryWorkerBytes(const RotaryProblem& problem) {
  Arena arena(nullptr);
  placeRotary(problem, arena);
  return arena.bytes();
}

std::size_t rotaryWorkspaceBytes(const RotaryProblem& problem, Index threads) {
  return static_cast<std::size_t>(threads * rotaryWorkerBytes(problem));
}

// Rows [first, last) of all heads of a batch item.
static void rotateRows(const RotaryProblem& problem, Index item, Index first, Index last,
                       const RotaryScratch& scratch) {
  const Index pairs = problem.dim / 2;
  const bool rotated = problem.frequencies != nullptr;
  if (rotated) {
    fillTables(problem.frequencies, pairs, problem.firstPositions[item] + static_cast<double>(first), last - first,
               scratch.cosines, scratch.sines);
  }
  const bool inPlace = problem.outputType == DataType::kFloat32;
  for (Index head = 0; head < problem.heads; ++head) {
    for (Index r = first; r < last; ++r) {
      void* output = rowOf(problem.output, problem.outputType, item, head, r);
      float* row = inPlace ? static_cast<float*>(output) : scratch.row;
      convertRow(problem.inputType, rowOf(problem.input, problem.inputType, item, head, r), DataType::kFloat32, row,
                 problem.dim);
      const RotaryTable table = {scratch.cosines + (r - first) * pairs, scratch.sines + (r - first) * pairs};
      normalizeAndRotate(problem.norm, row, problem.dim, problem.pairing, rotated ? &table : nullptr);
      if (!inPlace) convertRow(DataType::kFloat32, row, problem.outputType, output, problem.dim);
    }
  }
}

void runRotary(const RotaryProblem& problem, const Execution& execution) {
  const Index perItem = divideUp(problem.rows, kRotaryRows);
  const Index workerBytes = rotaryWorkerBytes(problem);
  forEachUnit(execution, problem.batch * perItem, [&](Index worker, Index unit) {
    Arena arena(execution.workspace + worker * workerBytes);
    const Index first = unit % perItem * kRotaryRows;
    rotateRows(problem, unit / perItem, first, minimum(problem.rows, first + kRotaryRows), placeRotary(problem, arena));
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE
