#include <tuple>

#include "binding/full_problem.h"
#include "binding/ops.h"
#include "binding/qkv.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct FullOperands {
  enum : std::size_t { kLse = QkvOperands::kCount, kMask, kSinks, kQueryLengths, kKeyLengths, kCount };
};

struct FullNumbers {
  static constexpr std::size_t kScores = QkvNumbers::kCount;
  static constexpr std::size_t kMaskBatchStride = kScores + ScoreNumbers::kCount;
  static constexpr std::size_t kCount = kMaskBatchStride + 1;
};

}  // namespace

Napi::Value full(const Napi::CallbackInfo& info) {
  Operands operands(info, FullOperands::kCount, FullNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  const Qkv qkv = readQkv(operands);
  const auto [batch, queries, keys] = std::tuple(qkv.batch, qkv.queries, qkv.keys);
  if (!operands.ok() || batch == 0 || queries == 0) return statusValue(info.Env(), operands.status());
  FullProblem problem = fullProblemOf(qkv);
  readScores(operands, FullNumbers::kScores, problem);
  float* lse = operands.optional<float>(FullOperands::kLse, "lse", napi_float32_array, batch * problem.heads * queries);
  problem.sinks = operands.optional<float>(FullOperands::kSinks, "sinks", napi_float32_array, problem.heads);
  const auto* queryLengths =
      operands.optional<std::int32_t>(FullOperands::kQueryLengths, "queryLengths", napi_int32_array, batch);
  const auto* keyLengths =
      operands.optional<std::int32_t>(FullOperands::kKeyLengths, "keyLengths", napi_int32_array, batch);
  const Array mask = operands.array(FullOperands::kMask);
  const Index maskBatchStride = operands.extent(FullNumbers::kMaskBatchStride, "mask");
  if (!operands.ok()) return statusValue(info.Env(), operands.status());

  FullMemory memory;
  memory.sequences.resize(static_cast<std::size_t>(batch));
  memory.pages.resize(static_cast<std::size_t>(2 * batch));
  for (Index b = 0; b < batch; ++b) {
    FullSequence& sequence = memory.sequences[static_cast<std::size_t>(b)];
    sequence = sequenceOf(qkv, b, &memory.pages[static_cast<std::size_t>(2 * b)]);
    sequence.queries = queryLengths == nullptr ? queries : queryLengths[b];
    sequence.keys = keyLengths == nullptr ? keys : keyLengths[b];
    if (sequence.queries < 0 || sequence.queries > queries) operands.fail("queryLengths", "out of range");
    if (sequence.keys < 0 || sequence.keys > keys) operands.fail("keyLengths", "out of range");
    sequence.offset = readOffset(operands, FullNumbers::kScores + ScoreNumbers::kOffset, sequence);
    if (lse != nullptr) sequence.lse = lse + b * problem.heads * queries;
    sequence.mask = readMask(operands, mask, problem, b, maskBatchStride, sequence);
  }
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  problem.sequences = memory.sequences.data();

  return runKernel(info, operands.status(), &KernelSet::full, problem, operationsOf(problem), std::move(memory));
}

}  // namespace lowrank_attention
