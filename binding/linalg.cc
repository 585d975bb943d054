#include "core/linalg.h"

#include "binding/operands.h"
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct LinalgOperands {
  enum : std::size_t { kMatrices, kValues, kLeft, kRight, kFactors, kCount };
};
struct LinalgNumbers {
  enum : std::size_t { kOperation, kBatch, kRows, kColumns, kFactorColumns, kTransposed, kSymmetric, kCount };
};

}  // namespace

Napi::Value linalg(const Napi::CallbackInfo& info) {
  Operands operands(info, LinalgOperands::kCount, LinalgNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  LinalgProblem problem;
  problem.operation = static_cast<LinalgOperation>(minimum(operands.extent(LinalgNumbers::kOperation, "matrices"), 3));
  const bool product = problem.operation == LinalgOperation::kProduct;
  problem.batch = operands.extent(LinalgNumbers::kBatch, "matrices", 1);
  problem.m = operands.extent(LinalgNumbers::kRows, "matrices", 1);
  problem.n = operands.extent(LinalgNumbers::kColumns, "matrices", 1);
  if (problem.operation == LinalgOperation::kEigen && problem.m != problem.n) operands.fail("matrices", "not square");
  if (problem.operation == LinalgOperation::kBasis && problem.m < problem.n) operands.fail("matrices", "too few rows");
  const Index rank = minimum(problem.m, problem.n);
  const auto required = [&](std::size_t index, const char* name, Index rows, Index columns) {
    return operands.required<double>(index, name, napi_float64_array, {problem.batch, rows, columns});
  };
  const auto optional = [&](std::size_t index, const char* name, Index rows) {
    return operands.optional<double>(index, name, napi_float64_array, {problem.batch, rows, rank});
  };
  problem.a = required(LinalgOperands::kMatrices, "matrices", problem.m, problem.n);
  if (product) {
    problem.p = operands.extent(LinalgNumbers::kFactorColumns, "factors", 1);
    problem.transposeA = operands.flag(LinalgNumbers::kTransposed);
    problem.symmetric = operands.flag(LinalgNumbers::kSymmetric);
    const Index depth = problem.transposeA ? problem.m : problem.n;
    const Index rows = problem.transposeA ? problem.n : problem.m;
    if (problem.symmetric && rows != problem.p) operands.fail("factors", "a product that is not square");
    problem.b = required(LinalgOperands::kFactors, "factors", depth, problem.p);
    problem.values = required(LinalgOperands::kValues, "values", rows, problem.p);
  } else {
    const Index rows = problem.operation == LinalgOperation::kBasis ? problem.m : 1;
    problem.values = required(LinalgOperands::kValues, "values", rows, rank);
  }
  problem.left = optional(LinalgOperands::kLeft, "left", problem.m);
  problem.right = optional(LinalgOperands::kRight, "right", problem.n);
  const double third = static_cast<double>(product ? problem.p : 5 * rank);
  const double cubed = static_cast<double>(problem.m) * static_cast<double>(problem.n) * third;
  return runKernel(info, operands.status(), &KernelSet::linalg, problem,
                   2 * static_cast<double>(problem.batch) * cubed);
}

}  // namespace lowrank_attention
