#include "core/matmul.h"

#include <vector>

#include "binding/operands.h"
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct MatmulOperands {
  enum : std::size_t { kA, kB, kC, kOffsets, kCount };
};

struct MatmulNumbers {
  enum : std::size_t { kTypeA, kTypeB, kTypeC, kBatch, kM, kN, kK, kTransposeA, kTransposeB, kCount };
};

}  // namespace

Napi::Value matmul(const Napi::CallbackInfo& info) {
  Operands operands(info, MatmulOperands::kCount, MatmulNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  MatmulProblem problem;
  problem.typeA = operands.dataType(MatmulNumbers::kTypeA, "a");
  problem.typeB = operands.dataType(MatmulNumbers::kTypeB, "b");
  problem.typeC = operands.dataType(MatmulNumbers::kTypeC, "out");
  problem.batch = operands.extent(MatmulNumbers::kBatch, "a");
  problem.m = operands.extent(MatmulNumbers::kM, "a");
  problem.n = operands.extent(MatmulNumbers::kN, "b");
  problem.k = operands.extent(MatmulNumbers::kK, "a");
  problem.transposeA = operands.flag(MatmulNumbers::kTransposeA);
  problem.transposeB = operands.flag(MatmulNumbers::kTransposeB);
  // Without elements no extent is bounded by memory that exists.
  if (problem.batch == 0 || problem.m == 0 || problem.n == 0) return statusValue(info.Env(), operands.status());
  problem.c =
      operands.tensor(operands.array(MatmulOperands::kC), "out", problem.typeC, {problem.batch, problem.m, problem.n});
  const Array a = operands.array(MatmulOperands::kA);
  const Array b = operands.array(MatmulOperands::kB);
  problem.a = operands.tensor(a, "a", problem.typeA, {problem.m, problem.k});
  problem.b = operands.tensor(b, "b", problem.typeB, {problem.k, problem.n});
  if (!operands.ok()) return statusValue(info.Env(), operands.status());

  // Offsets come in pairs (a, b), one a batch item.
  const auto* pairs =
      operands.optional<double>(MatmulOperands::kOffsets, "offsets", napi_float64_array, 2 * problem.batch);
  std::vector<Index> offsets(static_cast<std::size_t>(2 * problem.batch));
  for (Index item = 0; item < problem.batch && operands.ok() && pairs != nullptr; ++item) {
    const auto place = [&](double offset, const Array& array, DataType type, Index count, const char* name) {
      const Index room = static_cast<Index>(array.bytes) / elementBytes(type) - count;
      if (!(offset >= 0 && offset <= static_cast<double>(room))) {
        operands.fail(name, "an array that changed meanwhile");
        return Index{0};
      }
      return static_cast<Index>(offset);
    };
    offsets[static_cast<std::size_t>(item)] = place(pairs[2 * item], a, problem.typeA, problem.m * problem.k, "a");
    offsets[static_cast<std::size_t>(problem.batch + item)] =
        place(pairs[2 * item + 1], b, problem.typeB, problem.k * problem.n, "b");
  }
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  problem.offsetsA = offsets.data();
  problem.offsetsB = offsets.data() + problem.batch;

  const double operations = 2.0 * static_cast<double>(problem.batch) * static_cast<double>(problem.m) *
                            static_cast<double>(problem.n) * static_cast<double>(problem.k);
  return runKernel(info, operands.status(), &KernelSet::matmul, problem, operations, std::move(offsets));
}

}  // namespace lowrank_attention
