// The part of a FullProblem that a call on tensors and a call on caches read alike.
#ifndef LOWRANK_ATTENTION_BINDING_FULL_PROBLEM_H_
#define LOWRANK_ATTENTION_BINDING_FULL_PROBLEM_H_

#include <vector>

#include "binding/operands.h"
#include "core/full.h"

namespace lowrank_attention {

// What a FullProblem points to beside the caller's arrays.
struct FullMemory {
  std::vector<FullSequence> sequences;
  std::vector<const void*> pages;
  // Keeps cached pages alive while the call runs.
  std::vector<std::shared_ptr<const void>> owners;
};

// What every call of the op has, counted from where these numbers begin; lib/full-options.ts writes them.
struct ScoreNumbers {
  enum : std::size_t {
    kScale,
    kSoftcap,
    kLeft,   // keys seen before the query's own position; −1 is open
    kRight,  // and after it
    kMaskKind,
    kMaskHeadStride,
    kMaskQueryStride,
    kOffset,  // of every sequence; NaN aligns the last query with the last key
    kCount
  };
};

// Key position of query 0. A number that is NaN aligns the last query with the last key.
inline Index readOffset(Operands& operands, std::size_t index, const FullSequence& sequence) {
  const double offset = operands.number(index);
  return offset == offset ? operands.position(index, "queryOffset") : sequence.keys - sequence.queries;
}

inline void readScores(Operands& operands, std::size_t first, FullProblem& problem) {
  problem.scale = static_cast<float>(operands.number(first + ScoreNumbers::kScale));
  problem.softcap = static_cast<float>(operands.number(first + ScoreNumbers::kSoftcap));
  const auto reach = [&](std::size_t index) {
    return operands.number(index) < 0 ? FullProblem::kOpen
                                      : minimum(operands.extent(index, "window"), FullProblem::kOpen);
  };
  problem.left = reach(first + ScoreNumbers::kLeft);
  problem.right = reach(first + ScoreNumbers::kRight);
  problem.maskKind = static_cast<MaskKind>(minimum(operands.extent(first + ScoreNumbers::kMaskKind, "mask"), 2));
  problem.maskHeadStride = operands.extent(first + ScoreNumbers::kMaskHeadStride, "mask");
  problem.maskQueryStride = operands.extent(first + ScoreNumbers::kMaskQueryStride, "mask");
}

// A mask operand and the first element in it of the sequence at `batch`. `last` is the furthest it will read.
inline const void* readMask(Operands& operands, const Array& array, const FullProblem& problem, Index batch,
                            Index batchStride, const FullSequence& sequence) {
  if (problem.maskKind == MaskKind::kNone) return nullptr;
  const bool additive = problem.maskKind == MaskKind::kAdditive;
  const std::size_t width = additive ? 4 : 1;
  if (sequence.queries == 0 || sequence.keys == 0) return array.data;
  const unsigned __int128 first = static_cast<unsigned __int128>(batch) * static_cast<unsigned __int128>(batchStride);
  const unsigned __int128 last =
      first +
      static_cast<unsigned __int128>(problem.heads - 1) * static_cast<unsigned __int128>(problem.maskHeadStride) +
      static_cast<unsigned __int128>(sequence.queries - 1) * static_cast<unsigned __int128>(problem.maskQueryStride) +
      static_cast<unsigned __int128>(sequence.keys - 1);
  if (!array.present || array.type != (additive ? napi_float32_array : napi_uint8_array) ||
      array.bytes / width <= last) {
    operands.fail("mask", "an array that changed meanwhile");
    return nullptr;
  }
  return static_cast<const std::byte*>(array.data) + static_cast<std::size_t>(first) * width;
}

// What a call on tensors has beside them, counted from where these operands begin; each may be null.
struct TensorScoreOperands {
  enum : std::size_t {
    kLse,  // float32 [batch, heads, queries]
    kMask,
    kSinks,         // float32 [heads]
    kQueryLengths,  // int32 [batch]
    kKeyLengths,    // int32 [batch]
    kCount
  };
};

// ScoreNumbers and after them what a mask has beside.
struct TensorScoreNumbers {
  static constexpr std::size_t kMaskBatchStride = ScoreNumbers::kCount;
  static constexpr std::size_t kCount = kMaskBatchStride + 1;
};

// Reads all that is not a tensor into the problem and its sequences, one a batch item. These have their rows already,
// and the extents of the tensors, which are the most their lengths may be.
inline void readSequences(Operands& operands, std::size_t firstOperand, std::size_t firstNumber, FullProblem& problem,
                          std::vector<FullSequence>& sequences) {
  const Index batch = static_cast<Index>(sequences.size());
  readScores(operands, firstNumber, problem);
  const Index queries = sequences.empty() ? 0 : sequences[0].queryRows;
  float* lse = operands.optional<float>(firstOperand + TensorScoreOperands::kLse, "lse", napi_float32_array,
                                        batch * problem.heads * queries);
  problem.sinks =
      operands.optional<float>(firstOperand + TensorScoreOperands::kSinks, "sinks", napi_float32_array, problem.heads);
  const auto lengths = [&](std::size_t index, const char* name) {
    return operands.optional<std::int32_t>(firstOperand + index, name, napi_int32_array, batch);
  };
  const auto* queryLengths = lengths(TensorScoreOperands::kQueryLengths, "queryLengths");
  const auto* keyLengths = lengths(TensorScoreOperands::kKeyLengths, "keyLengths");
  const Array mask = operands.array(firstOperand + TensorScoreOperands::kMask);
  const Index maskBatchStride = operands.extent(firstNumber + TensorScoreNumbers::kMaskBatchStride, "mask");
  for (Index b = 0; b < batch && operands.ok(); ++b) {
    FullSequence& sequence = sequences[static_cast<std::size_t>(b)];
    const Index keys = sequence.keys;
    if (queryLengths != nullptr) sequence.queries = queryLengths[b];
    if (keyLengths != nullptr) sequence.keys = keyLengths[b];
    if (sequence.queries < 0 || sequence.queries > queries) operands.fail("queryLengths", "out of range");
    if (sequence.keys < 0 || sequence.keys > keys) operands.fail("keyLengths", "out of range");
    sequence.offset = readOffset(operands, firstNumber + ScoreNumbers::kOffset, sequence);
    if (lse != nullptr) sequence.lse = lse + b * problem.heads * queries;
    sequence.mask = readMask(operands, mask, problem, b, maskBatchStride, sequence);
  }
  problem.sequences = sequences.data();
  problem.sequenceCount = batch;
}

// Operations of the call: 2 per key and element that a query meets in all heads, over the keys that rows may see.
inline double operationsOf(const FullProblem& problem, double elements) {
  double operations = 0;
  for (Index s = 0; s < problem.sequenceCount; ++s) {
    const FullSequence& sequence = problem.sequences[s];
    const double seen = static_cast<double>(minimum(sequence.keys, problem.left + 1 + problem.right));
    operations += 2.0 * static_cast<double>(sequence.queries) * seen * elements;
  }
  return operations;
}

inline double operationsOf(const FullProblem& problem) {
  return operationsOf(problem,
                      static_cast<double>(problem.headDim + problem.valueDim) * static_cast<double>(problem.heads));
}

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_FULL_PROBLEM_H_
