#include "core/rotary.h"

#include "binding/ops.h"
#include "binding/qkv.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct RotaryOperands {
  enum : std::size_t { kInput, kOutput, kFrequencies, kFirstPositions, kGain, kCount };
};

struct RotaryNumbers {
  enum : std::size_t {
    kInputType,
    kOutputType,
    kBatch,
    kHeads,
    kRows,
    kDim,
    kRowsBeforeHeads,
    kPairing,
    kNorm,  // 1: on
    kEpsilon,
    kGainOrder,
    kCount
  };
};

}  // namespace

Napi::Value rotary(const Napi::CallbackInfo& info) {
  Operands operands(info, RotaryOperands::kCount, RotaryNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  RotaryProblem problem;
  problem.inputType = operands.dataType(RotaryNumbers::kInputType, "x");
  problem.outputType = operands.dataType(RotaryNumbers::kOutputType, "out");
  problem.batch = operands.extent(RotaryNumbers::kBatch, "x");
  problem.heads = operands.extent(RotaryNumbers::kHeads, "x");
  problem.rows = operands.extent(RotaryNumbers::kRows, "x");
  problem.dim = operands.extent(RotaryNumbers::kDim, "x", 1);
  const bool rowsBeforeHeads = operands.flag(RotaryNumbers::kRowsBeforeHeads);
  problem.pairing = operands.flag(RotaryNumbers::kPairing) ? Pairing::kInterleaved : Pairing::kHalf;
  problem.norm.on = operands.flag(RotaryNumbers::kNorm);
  problem.norm.epsilon = operands.number(RotaryNumbers::kEpsilon);
  problem.norm.order =
      operands.flag(RotaryNumbers::kGainOrder) ? GainOrder::kAfterRotation : GainOrder::kBeforeRotation;
  // Without rows no extent is bounded by memory that exists.
  if (!operands.ok() || problem.batch == 0 || problem.heads == 0 || problem.rows == 0)
    return statusValue(info.Env(), operands.status());
  const auto rows = [&](std::size_t index, const char* name, DataType type) {
    return readRows(operands, index, name, type, problem.batch, problem.heads, problem.rows, problem.dim,
                    rowsBeforeHeads);
  };
  problem.input = rows(RotaryOperands::kInput, "x", problem.inputType);
  problem.output = rows(RotaryOperands::kOutput, "out", problem.outputType);
  problem.frequencies =
      operands.optional<double>(RotaryOperands::kFrequencies, "rope", napi_float64_array, problem.dim / 2);
  problem.firstPositions =
      operands.required<double>(RotaryOperands::kFirstPositions, "positions", napi_float64_array, {problem.batch});
  problem.norm.gain = operands.optional<float>(RotaryOperands::kGain, "norm", napi_float32_array, problem.dim);
  if (problem.frequencies != nullptr && problem.dim % 2 != 0) operands.fail("x", "an odd head size");
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  const double elements = static_cast<double>(problem.batch * problem.heads * problem.rows * problem.dim);
  return runKernel(info, operands.status(), &KernelSet::rotary, problem, 8 * elements);
}

}  // namespace lowrank_attention
