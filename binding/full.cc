#include "binding/full_problem.h"
#include "binding/ops.h"
#include "binding/qkv.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

// After QkvOperands come TensorScoreOperands, after QkvNumbers TensorScoreNumbers.
constexpr std::size_t kOperands = QkvOperands::kCount + TensorScoreOperands::kCount;
constexpr std::size_t kNumbers = QkvNumbers::kCount + TensorScoreNumbers::kCount;

}  // namespace

Napi::Value full(const Napi::CallbackInfo& info) {
  Operands operands(info, kOperands, kNumbers);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  const Qkv qkv = readQkv(operands);
  if (!operands.ok() || qkv.batch == 0 || qkv.queries == 0) return statusValue(info.Env(), operands.status());
  FullProblem problem = fullProblemOf(qkv);
  FullMemory memory;
  memory.pages.resize(static_cast<std::size_t>(2 * qkv.batch));
  for (Index b = 0; b < qkv.batch; ++b) {
    memory.sequences.push_back(sequenceOf(qkv, b, &memory.pages[static_cast<std::size_t>(2 * b)]));
  }
  readSequences(operands, QkvOperands::kCount, QkvNumbers::kCount, problem, memory.sequences);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());

  return runKernel(info, operands.status(), &KernelSet::full, problem, operationsOf(problem), std::move(memory));
}

}  // namespace lowrank_attention
