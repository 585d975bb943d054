#include "core/linalg.h"

#include "binding/operands.h"
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct LinalgOperands {
  enum : std::size_t { kMatrices, kValues, kLeft, kRight, kCount };
};
struct LinalgNumbers {
  enum : std::size_t { kDecomposition, kBatch, kRows, kColumns, kCount };
};

struct Nothing {};

}  // namespace

Napi::Value linalg(const Napi::CallbackInfo& info) {
  Operands operands(info, LinalgOperands::kCount, LinalgNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  LinalgProblem problem;
  const bool eigen = operands.flag(LinalgNumbers::kDecomposition);
  problem.decomposition = eigen ? Decomposition::kEigen : Decomposition::kSvd;
  problem.batch = operands.extent(LinalgNumbers::kBatch, "matrices", 1);
  problem.m = operands.extent(LinalgNumbers::kRows, "matrices", 1);
  problem.n = operands.extent(LinalgNumbers::kColumns, "matrices", 1);
  if (eigen && problem.m != problem.n) operands.fail("matrices", "not square");
  const auto array = [&](std::size_t index, const char* name, Index rows, Index columns) {
    return static_cast<double*>(operands.tensor(operands.array(index), name, napi_float64_array, sizeof(double),
                                                {problem.batch, rows, columns}));
  };
  const auto given = [&](std::size_t index) { return operands.array(index).present; };
  const Index rank = minimum(problem.m, problem.n);
  problem.a = array(LinalgOperands::kMatrices, "matrices", problem.m, problem.n);
  problem.values = array(LinalgOperands::kValues, "values", 1, rank);
  if (given(LinalgOperands::kLeft)) problem.left = array(LinalgOperands::kLeft, "left", problem.m, rank);
  if (given(LinalgOperands::kRight)) problem.right = array(LinalgOperands::kRight, "right", problem.n, rank);
  Status status = operands.status();
  const KernelSet* kernels = kernelsOf(info, &status);
  if (!status.ok()) return statusValue(info.Env(), status);
  const double cubed = static_cast<double>(problem.m) * static_cast<double>(problem.n) * static_cast<double>(rank);
  return runTask(info, std::make_unique<KernelTask<LinalgProblem, Nothing>>(kernels->linalg, problem, Nothing()),
                 10 * static_cast<double>(problem.batch) * cubed);
}

}  // namespace lowrank_attention
