// Element conversion and the memory-bandwidth probe on the CPU. See core/convert.h.

#include "core/convert.h"

#include "core/execution.h"
#include "cpu/kernels.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kConvertChunk = Index{1} << 16;
constexpr Index kReadChunk = Index{1} << 20;

std::size_t convertWorkspaceBytes(const ConvertProblem&, Index) { return 0; }

void runConvert(const ConvertProblem& problem, const Execution& execution) {
  forEachUnit(execution, divideUp(problem.count, kConvertChunk), [&](Index, Index unit) {
    const Index first = unit * kConvertChunk;
    convertRow(problem.sourceType, elementAt(problem.source, problem.sourceType, first), problem.targetType,
               elementAt(problem.target, problem.targetType, first), minimum(kConvertChunk, problem.count - first));
  });
}

// One partial sum a worker, a cache line apart.
std::size_t readWorkspaceBytes(const ReadProblem&, Index threads) { return static_cast<std::size_t>(64 * threads); }

void runRead(const ReadProblem& problem, const Execution& execution) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  float* partial = reinterpret_cast<float*>(execution.workspace);
  for (Index worker = 0; worker < execution.threads; ++worker) partial[16 * worker] = 0;
  forEachUnit(execution, divideUp(problem.count, kReadChunk), [&](Index worker, Index unit) {
    const float* data = problem.data + unit * kReadChunk;
    const Index count = minimum(kReadChunk, problem.count - unit * kReadChunk);
    auto sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
    Index i = 0;
    for (; i + 4 * n <= count; i += 4 * n) {
      sum0 = hn::Add(sum0, hn::LoadU(d, data + i));
      sum1 = hn::Add(sum1, hn::LoadU(d, data + i + n));
      sum2 = hn::Add(sum2, hn::LoadU(d, data + i + 2 * n));
      sum3 = hn::Add(sum3, hn::LoadU(d, data + i + 3 * n));
    }
    float tail = 0;
    for (; i < count; ++i) tail += data[i];
    partial[16 * worker] += tail + hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
  });
  *problem.sum = 0;
  for (Index worker = 0; worker < execution.threads; ++worker) *problem.sum += partial[16 * worker];
}

}  // namespace lowrank_attention::HWY_NAMESPACE
