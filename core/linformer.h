// Linformer: attention over keys and values projected along the sequence to a fixed number of rows (Wang et al. 2020,
// arXiv 2006.04768, equation 7), so that the cost is linear in the length:
//
//   K' = E·K, V' = F·V        E, F [projected × maxLength], of which the first `keys` columns count
//   output = softmax(scale·Q·K'ᵀ)·V'
//
// Every row of K' mixes all positions, so nothing is causal in this form. Read column by column the sums are additive,
// which is the prefix state: K' and V' of the keys so far, however many calls brought them.
#ifndef LOWRANK_ATTENTION_CORE_LINFORMER_H_
#define LOWRANK_ATTENTION_CORE_LINFORMER_H_

#include "core/qkv.h"

namespace lowrank_attention {

// Element (r, j) of the matrix of key/value head h lies at data[h·headStride + r·maxLength + j].
struct Projection {
  const void* data = nullptr;
  Index headStride = 0;  // 0: all heads share one matrix
};

struct LinformerProblem {
  // With a state either side may be missing: no queries where keys are appended only, no keys where the state is
  // attended to only.
  Qkv qkv;
  float scale = 1;  // multiplies q·k'

  DataType projectionType = DataType::kFloat32;
  Index projected = 0;
  Index maxLength = 0;
  Projection keyProjection;
  Projection valueProjection;  // of the same memory as keyProjection where keys and values share it
  Index firstColumn = 0;       // of key 0; firstColumn + keys is at most maxLength

  // [batch, keys], 0 hides: the key and the value count as rows of zeros, whatever they hold. May be null.
  const std::uint8_t* keyMask = nullptr;

  // K' [batch][kvHeads][projected][headDim], then V' [batch][kvHeads][projected][valueDim]. In float64: token by token
  // it is one long chain of additions, in which float32 would drift where the terms have one sign, as under a pooling
  // projection. Keys are added to those of stateIn, if it is not null; stateOut, if not null, gets the sums, and may be
  // stateIn.
  const double* stateIn = nullptr;
  double* stateOut = nullptr;

  // Room for the exact attention over K' and V': its sequences, one an item, whose keys and values lie at pages[2·item]
  // and pages[2·item + 1]. The kernel sets the pages.
  const FullSequence* sequences = nullptr;
  const void** pages = nullptr;
};

// The call's tensors with K' and V' in place of keys and values: float32, dense, wherever the pages say.
LA_INLINE Qkv projectedQkv(const Qkv& given, Index projected) {
  Qkv qkv = given;
  qkv.keyType = DataType::kFloat32;
  qkv.keys = projected;
  qkv.key = {nullptr, 0, projected * qkv.headDim, qkv.headDim};
  qkv.value = {nullptr, 0, projected * qkv.valueDim, qkv.valueDim};
  return qkv;
}

LA_INLINE FullProblem projectedProblem(const LinformerProblem& problem) {
  FullProblem full = fullProblemOf(projectedQkv(problem.qkv, problem.projected));
  full.scale = problem.scale;
  full.sequences = problem.sequences;
  return full;
}

LA_INLINE Index linformerStateDoubles(const LinformerProblem& problem) {
  const Qkv& qkv = problem.qkv;
  return qkv.batch * qkv.kvHeads * problem.projected * (qkv.headDim + qkv.valueDim);
}

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_LINFORMER_H_
