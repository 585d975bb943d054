// Merging parts of attention on the CPU: one pass over all parts a row, in ascending order. See core/merge.h.
// A row that no part has seen (every lse −∞) gives zeros and lse = −∞.

#include "core/merge.h"

#include <cmath>

#include "core/execution.h"
#include "cpu/kernels.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Rows of one unit of work.
constexpr Index kMergeRows = 64;
// Elements of a row handled at once.
constexpr Index kMergeChunk = 256;

std::size_t mergeWorkspaceBytes(const MergeProblem&, Index) { return 0; }

LA_INLINE void mergeRow(const MergeProblem& problem, Index row) {
  float max = -__builtin_inff();
  for (Index p = 0; p < problem.partCount; ++p) {
    const float lse = problem.parts[p].lse[row];
    // A NaN must win, or a poisoned part would be dropped in silence.
    if (!(lse <= max)) max = lse;
  }
  double sum = 0;
  const double shift = max == -__builtin_inff() ? 0.0 : static_cast<double>(max);
  for (Index p = 0; p < problem.partCount; ++p) sum += ::exp(static_cast<double>(problem.parts[p].lse[row]) - shift);
  const double lse = max == -__builtin_inff() ? static_cast<double>(max) : shift + ::log(sum);
  problem.lse[row] = static_cast<float>(lse);

  const Index head = row / problem.length % problem.heads;
  const Index batch = row / problem.length / problem.heads;
  const Index position = row % problem.length;
  const Index place = problem.rowsBeforeHeads ? (batch * problem.length + position) * problem.heads + head : row;
  for (Index c = 0; c < problem.dim; c += kMergeChunk) {
    const Index count = minimum(kMergeChunk, problem.dim - c);
    float total[kMergeChunk] = {};
    float part[kMergeChunk];
    for (Index p = 0; p < problem.partCount; ++p) {
      const double share = ::exp(static_cast<double>(problem.parts[p].lse[row]) - shift);
      if (share == 0) continue;  // saw nothing: its row may hold anything
      const float weight = static_cast<float>(share / sum);
      convertRow(problem.type, elementAt(problem.parts[p].output, problem.type, place * problem.dim + c),
                 DataType::kFloat32, part, count);
      for (Index i = 0; i < count; ++i) total[i] += weight * part[i];
    }
    convertRow(DataType::kFloat32, total, problem.type,
               elementAt(problem.output, problem.type, place * problem.dim + c), count);
  }
}

void runMerge(const MergeProblem& problem, const Execution& execution) {
  const Index rows = problem.batch * problem.heads * problem.length;
  forEachUnit(execution, divideUp(rows, kMergeRows), [&](Index, Index unit) {
    const Index end = minimum(rows, (unit + 1) * kMergeRows);
    for (Index row = unit * kMergeRows; row < end; ++row) mergeRow(problem, row);
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE
