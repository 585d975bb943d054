// The model of a call on LRKV rows: what is the same for all tokens.
#ifndef LOWRANK_ATTENTION_BINDING_LRKV_MODEL_H_
#define LOWRANK_ATTENTION_BINDING_LRKV_MODEL_H_

#include <vector>

#include "binding/full_problem.h"
#include "core/lrkv_cache.h"

namespace lowrank_attention {

// Counted from where the operands of the model begin; lib/lrkv-model.ts writes them.
struct LrkvModelOperands {
  enum : std::size_t {
    kKeyUp,              // float32 [Σ key ranks, headDim]
    kKeyGauge,           // float32 [kvHeads, keyBaseDim, headDim], or null
    kKeyRanks,           // int32 [kvHeads]
    kValueUp,            // float32 [Σ value ranks, valueDim]
    kValueGauge,         // float32 [kvHeads, valueBaseDim, valueDim], or null
    kValueRanks,         // int32 [kvHeads]
    kFrequencies,        // float64 [headDim / 2], or null without rotary embedding
    kLatentFrequencies,  // float64 [Σ key ranks / 2], or null where latents are not rotated
    kGain,               // float32 [headDim], or null
    kCount
  };
};

// Counted from where the numbers of the model begin.
struct LrkvModelNumbers {
  enum : std::size_t {
    kKvHeads,
    kHeadDim,
    kValueDim,
    kKeyBaseDim,
    kValueBaseDim,
    kRope,           // of LrkvRope
    kPairing,        // of Pairing
    kFirstPosition,  // rotary position of key 0
    kNorm,           // 1: keys are normalised
    kEpsilon,
    kGainOrder,  // of GainOrder
    kCount
  };
};

// The ranks a model points to. Copies: what the kernel touches follows from them, and the caller's may change.
struct LrkvRanks {
  std::vector<std::int32_t> key;
  std::vector<std::int32_t> value;
};

// A model whose parts fit each other, or a failure noted in `operands`. Without a failure a row has elements, stored as
// well as given, and sums of them are safe from overflow.
LrkvModel readLrkvModel(Operands& operands, std::size_t firstOperand, std::size_t firstNumber, LrkvRanks* ranks);

// Operands of rows, counted from where they begin: dense matrices of one type.
struct LrkvRowOperands {
  enum : std::size_t { kKeyBase, kKeyLatent, kValueBase, kValueLatent, kCount };
};

// Rows of the model, `count` of each batch item, one item after another.
LrkvRows readLrkvRows(Operands& operands, std::size_t firstOperand, DataType type, Index batch, Index count,
                      const LrkvModel& model, const LrkvRanks& ranks);

// The same without the first ones.
LrkvRows rowsFrom(const LrkvRows& rows, Index first, const LrkvModel& model, const LrkvRanks& ranks);

// Operations that storing so many rows takes.
double storeOperations(const LrkvModel& model, const LrkvRanks& ranks, Index count);

// Gives the problem the shapes of its model, and the layout in which rows of that are stored.
void setLayout(const LrkvLayout& layout, LrkvProblem* problem);

// Operations of attention: 2 per key and stored element that a query meets in all heads.
double operationsOf(const LrkvProblem& problem);

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_LRKV_MODEL_H_
