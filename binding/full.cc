#include "binding/full_problem.h"
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct FullOperands {
  enum : std::size_t { kQuery, kKey, kValue, kOutput, kLse, kMask, kSinks, kQueryLengths, kKeyLengths, kCount };
};

// After FullNumbers.
struct TensorNumbers {
  enum : std::size_t {
    kKeyType = FullNumbers::kCount,
    kBatch,
    kKvHeads,
    kQueries,
    kKeys,
    kHeadDim,
    kValueDim,
    kRowsBeforeHeads,  // 1: [batch, length, heads, dim]
    kOffset,           // of every sequence; NaN aligns the last query with the last key
    kMaskBatchStride,
    kCount
  };
};

// Strides of one sequence in a tensor of `length` rows.
HeadRows headRows(void* data, DataType type, Index batch, Index heads, Index length, Index dim, bool rowsBeforeHeads) {
  HeadRows rows;
  rows.data = elementAt(data, type, batch * heads * length * dim);
  rows.headStride = rowsBeforeHeads ? dim : length * dim;
  rows.rowStride = rowsBeforeHeads ? heads * dim : dim;
  return rows;
}

}  // namespace

Napi::Value full(const Napi::CallbackInfo& info) {
  Operands operands(info, FullOperands::kCount, TensorNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  FullProblem problem = readFullProblem(operands);
  problem.keyType = operands.dataType(TensorNumbers::kKeyType, "k");
  const Index batch = operands.extent(TensorNumbers::kBatch, "q");
  problem.kvHeads = operands.extent(TensorNumbers::kKvHeads, "k", 1);
  const Index queries = operands.extent(TensorNumbers::kQueries, "q");
  const Index keys = operands.extent(TensorNumbers::kKeys, "k");
  problem.headDim = operands.extent(TensorNumbers::kHeadDim, "q", 1);
  problem.valueDim = operands.extent(TensorNumbers::kValueDim, "v", 1);
  const bool rowsBeforeHeads = operands.flag(TensorNumbers::kRowsBeforeHeads);
  if (problem.heads % problem.kvHeads != 0) operands.fail("k", "heads do not divide");
  // Without rows no extent is bounded by memory that exists.
  if (batch == 0 || queries == 0) return statusValue(info.Env(), operands.status());

  void* query = operands.tensor(operands.array(FullOperands::kQuery), "q", problem.queryType,
                                {batch, problem.heads, queries, problem.headDim});
  void* key = operands.tensor(operands.array(FullOperands::kKey), "k", problem.keyType,
                              {batch, problem.kvHeads, keys, problem.headDim});
  void* value = operands.tensor(operands.array(FullOperands::kValue), "v", problem.keyType,
                                {batch, problem.kvHeads, keys, problem.valueDim});
  void* output = operands.tensor(operands.array(FullOperands::kOutput), "out", problem.outputType,
                                 {batch, problem.heads, queries, problem.valueDim});
  // Products below are safe from overflow from here on: the arrays exist.
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  float* lse = operands.optional<float>(FullOperands::kLse, "lse", napi_float32_array, batch * problem.heads * queries);
  problem.sinks = operands.optional<float>(FullOperands::kSinks, "sinks", napi_float32_array, problem.heads);
  const auto* queryLengths =
      operands.optional<std::int32_t>(FullOperands::kQueryLengths, "queryLengths", napi_int32_array, batch);
  const auto* keyLengths =
      operands.optional<std::int32_t>(FullOperands::kKeyLengths, "keyLengths", napi_int32_array, batch);
  const Array mask = operands.array(FullOperands::kMask);
  const Index maskBatchStride = operands.extent(TensorNumbers::kMaskBatchStride, "mask");
  if (!operands.ok()) return statusValue(info.Env(), operands.status());

  FullMemory memory;
  memory.sequences.resize(static_cast<std::size_t>(batch));
  memory.pages.resize(static_cast<std::size_t>(2 * batch));
  for (Index b = 0; b < batch; ++b) {
    FullSequence& sequence = memory.sequences[static_cast<std::size_t>(b)];
    sequence.queryRows = queries;
    sequence.queries = queryLengths == nullptr ? queries : queryLengths[b];
    sequence.keys = keyLengths == nullptr ? keys : keyLengths[b];
    if (sequence.queries < 0 || sequence.queries > queries) operands.fail("queryLengths", "out of range");
    if (sequence.keys < 0 || sequence.keys > keys) operands.fail("keyLengths", "out of range");
    sequence.offset = readOffset(operands, TensorNumbers::kOffset, sequence);
    sequence.query = headRows(query, problem.queryType, b, problem.heads, queries, problem.headDim, rowsBeforeHeads);
    sequence.output =
        headRows(output, problem.outputType, b, problem.heads, queries, problem.valueDim, rowsBeforeHeads);
    const HeadRows keyRows = headRows(key, problem.keyType, b, problem.kvHeads, keys, problem.headDim, rowsBeforeHeads);
    const HeadRows valueRows =
        headRows(value, problem.keyType, b, problem.kvHeads, keys, problem.valueDim, rowsBeforeHeads);
    const void** pages = &memory.pages[static_cast<std::size_t>(2 * b)];
    pages[0] = keyRows.data;
    pages[1] = valueRows.data;
    sequence.key = {pages, maximum(keys, 1), keyRows.headStride, keyRows.rowStride};
    sequence.value = {pages + 1, maximum(keys, 1), valueRows.headStride, valueRows.rowStride};
    if (lse != nullptr) sequence.lse = lse + b * problem.heads * queries;
    sequence.mask = readMask(operands, mask, problem, b, maskBatchStride, sequence);
  }
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  problem.sequences = memory.sequences.data();
  problem.sequenceCount = batch;

  Status status;
  const KernelSet* kernels = kernelsOf(info, &status);
  if (kernels == nullptr) return statusValue(info.Env(), status);
  const double operations = operationsOf(problem);
  return runTask(info, std::make_unique<KernelTask<FullProblem, FullMemory>>(kernels->full, problem, std::move(memory)),
                 operations);
}

}  // namespace lowrank_attention
