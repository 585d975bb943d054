#include "core/merge.h"

#include <vector>

#include "binding/operands.h"
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct MergeNumbers {
  enum : std::size_t { kType, kParts, kBatch, kHeads, kLength, kDim, kRowsBeforeHeads, kCount };
};

}  // namespace

// Operands: output, lse, then output and lse of every part.
Napi::Value merge(const Napi::CallbackInfo& info) {
  Operands operands(info, 2, MergeNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  MergeProblem problem;
  problem.type = operands.dataType(MergeNumbers::kType, "parts");
  problem.partCount = operands.extent(MergeNumbers::kParts, "parts", 1);
  problem.batch = operands.extent(MergeNumbers::kBatch, "parts");
  problem.heads = operands.extent(MergeNumbers::kHeads, "parts");
  problem.length = operands.extent(MergeNumbers::kLength, "parts");
  problem.dim = operands.extent(MergeNumbers::kDim, "parts");
  problem.rowsBeforeHeads = operands.flag(MergeNumbers::kRowsBeforeHeads);
  // Without rows no extent is bounded by memory that exists.
  if (problem.batch == 0 || problem.heads == 0 || problem.length == 0)
    return statusValue(info.Env(), operands.status());
  const auto read = [&](std::size_t index) {
    return std::pair(operands.tensor(operands.array(index), "parts", problem.type,
                                     {problem.batch, problem.heads, problem.length, problem.dim}),
                     static_cast<float*>(operands.tensor(operands.array(index + 1), "parts", DataType::kFloat32,
                                                         {problem.batch, problem.heads, problem.length})));
  };
  std::tie(problem.output, problem.lse) = read(0);
  std::vector<MergePart> parts;
  for (Index part = 0; part < problem.partCount && operands.ok(); ++part) {
    const auto [output, lse] = read(static_cast<std::size_t>(2 + 2 * part));
    parts.push_back({output, lse});
  }
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  problem.parts = parts.data();
  const double operations =
      2.0 * static_cast<double>(problem.partCount * problem.batch * problem.heads * problem.length * problem.dim);
  return runKernel(info, operands.status(), &KernelSet::merge, problem, operations, std::move(parts));
}

}  // namespace lowrank_attention
