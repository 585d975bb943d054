// Linear attention: a feature map φ stands for the softmax kernel, φ(q)·φ(k) ≈ exp(q·k), and products are taken right
// to left, so that the cost is linear in the length (Katharopoulos et al. 2020, arXiv 2006.16236; for the update rules
// Yang et al. 2024, arXiv 2406.06484 and 2412.06464, and ONNX's LinearAttention, opset 27).
//
//   not causal      S = Σⱼ φ(kⱼ)ᵀvⱼ, z = Σⱼ φ(kⱼ) over all keys;  oᵢ = φ(qᵢ)S / (φ(qᵢ)·z + ε)
//   causal          a state S (F × valueDim), z (F) that every token updates before its query reads it:
//     linear        S ← S + kᵀv
//     gated         S ← e^g ⊙ S + kᵀv                       g ≤ 0 a head, or a feature (a row of S)
//     delta         S ← S + β·kᵀ(v − kS)
//     gated delta   S ← e^g ⊙ S, then as delta
//   A row whose denominator is 0, or has become so by underflow, gives zeros. Without `normalize` oᵢ =
//   outputScale·φ(qᵢ)S.
#ifndef LOWRANK_ATTENTION_CORE_LINEAR_H_
#define LOWRANK_ATTENTION_CORE_LINEAR_H_

#include "core/qkv.h"

namespace lowrank_attention {

enum class FeatureKind : std::uint8_t {
  kIdentity,   // x
  kElu,        // elu(x) + 1
  kRelu,       // max(W x, 0) + offset; W is the identity where there are no weights
  kFavor,      // exp(w_f·x − |x|²/2): positive random features; kept as logarithms until a maximum is subtracted
  kCosformer,  // [max(x, 0)·sin a, max(x, 0)·cos a], a = π/2·(position + 1)/period
  kHedgehog,   // [softmax(W x), softmax(−W x)], or one softmax over both halves
  kTaylor,     // 1, x, x⊗x of the second-order series of exp(q·k), each pair once
};

// φ of one side, queries or keys: x (headDim) → F features. Weights are row-major, a row of headDim for each of their
// outputs: F of them for kRelu and kFavor, F/2 for kHedgehog.
struct FeatureMap {
  float scale = 1;  // multiplies x before anything else
  const float* weights = nullptr;
  Index weightHeadStride = 0;  // 0: all heads (of this side) share them
  Index firstPosition = 0;     // of row 0, for kCosformer
};

enum class UpdateRule : std::uint8_t { kLinear, kGated, kDelta, kGatedDelta };

// What a sequence's past is reduced to, one of (batch item, key/value head): S [F][valueDim] row-major, then z [F],
// then the logarithm that all of it is divided by e^ of (kFavor's running maximum over keys and features, −∞ before the
// first key; else 0 always). In float64, as it sums without end.
LA_INLINE Index linearStateDoubles(Index features, Index valueDim) { return features * (valueDim + 1) + 1; }

struct LinearProblem {
  // Causal: as many queries as keys, query i sees keys 0 … i, or no queries where only the state is wanted. Query head
  // h reads the state of head h / (heads / kvHeads).
  Qkv qkv;

  FeatureKind kind = FeatureKind::kElu;
  Index features = 0;  // F
  FeatureMap queryMap;
  FeatureMap keyMap;
  float offset = 0;           // of kRelu
  Index period = 0;           // of kCosformer
  bool jointSoftmax = false;  // of kHedgehog

  bool causal = false;
  UpdateRule rule = UpdateRule::kLinear;  // others than kLinear are causal only
  bool normalize = true;                  // kLinear and kGated only
  float epsilon = 0;                      // ε, added to the denominator at the scale of the state's logarithm
  float outputScale = 1;                  // without `normalize`

  // g: element (b, h, j, f) at b·decayBatchStride + h·decayHeadStride + j·decayRowStride + f, the last only where
  // `decayPerFeature`. Null unless the rule is gated.
  const float* decay = nullptr;
  Index decayBatchStride = 0;
  Index decayHeadStride = 0;
  Index decayRowStride = 0;
  bool decayPerFeature = false;
  // β: element (b, h, j) at the same kind of place. Null unless the rule is a delta.
  const float* beta = nullptr;
  Index betaBatchStride = 0;
  Index betaHeadStride = 0;
  Index betaRowStride = 0;

  const std::uint8_t* keyMask = nullptr;  // [batch, keys], 0 hides: as if the key were not there, whatever it holds
  // [batch][kvHeads][linearStateDoubles]. Keys come after those of stateIn, if it is not null; stateOut, if not null,
  // gets the state after the last key. It may be stateIn itself: a head's state is written when all of it that is still
  // to be read is in registers or scratch. A call that is aborted leaves any mixture of old and new in stateOut;
  // nothing else ends it half-way.
  const double* stateIn = nullptr;
  double* stateOut = nullptr;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_LINEAR_H_
