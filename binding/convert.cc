#include "core/convert.h"

#include "binding/operands.h"
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

// Operands: source, target. Numbers: source type, target type, count.
Napi::Value convert(const Napi::CallbackInfo& info) {
  Operands operands(info, 2, 3);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  ConvertProblem problem;
  problem.sourceType = operands.dataType(0, "source");
  problem.targetType = operands.dataType(1, "type");
  problem.count = operands.extent(2, "source");
  problem.source = operands.tensor(operands.array(0), "source", problem.sourceType, {problem.count});
  problem.target = operands.tensor(operands.array(1), "target", problem.targetType, {problem.count});
  return runKernel(info, operands.status(), &KernelSet::convert, problem, static_cast<double>(problem.count));
}

// Operands: data, sum [1]. Numbers: count.
Napi::Value read(const Napi::CallbackInfo& info) {
  Operands operands(info, 2, 1);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  ReadProblem problem;
  problem.count = operands.extent(0, "data");
  problem.data =
      static_cast<const float*>(operands.tensor(operands.array(0), "data", DataType::kFloat32, {problem.count}));
  problem.sum = static_cast<float*>(operands.tensor(operands.array(1), "sum", DataType::kFloat32, {1}));
  return runKernel(info, operands.status(), &KernelSet::read, problem, static_cast<double>(problem.count));
}

}  // namespace lowrank_attention
