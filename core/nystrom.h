// Nyström attention (Xiong et al. 2021, arXiv 2102.03902): m landmarks stand for the queries and keys in two of three
// softmax matrices, whose product is taken right to left:
//
//   F = softmax(scale·Q·K̃ᵀ)  (queries × m)    A = softmax(scale·Q̃·K̃ᵀ)  (m × m)    B = softmax(scale·Q̃·Kᵀ)  (m × keys)
//   O = F·(Z·(B·V)) + depthwise convolution of V                          Z the (regularised) pseudo-inverse of A
//
// Each softmax is normalised over its own row. Q̃ and K̃ are means over segments of the positions, or chosen positions.
// Z by the third-order iteration of Razavi et al. 2014 (section 3.2 of the paper), from Aᵀ/(|A|₁·|A|∞) of that matrix
// alone, or by singular values. A landmark whose segment has no valid query or no valid key is left out: masked in A
// instead, it would make A singular.
#ifndef LOWRANK_ATTENTION_CORE_NYSTROM_H_
#define LOWRANK_ATTENTION_CORE_NYSTROM_H_

#include "core/qkv.h"

namespace lowrank_attention {

enum class PseudoInverse : std::uint8_t { kIterative, kSvd };

struct NystromProblem {
  Qkv qkv;
  float scale = 1;
  Index landmarks = 0;  // m, at most the number of queries and of keys
  // Position of each landmark, other ones each; null: segment means.
  const std::int32_t* queryPositions = nullptr;
  const std::int32_t* keyPositions = nullptr;

  PseudoInverse inverse = PseudoInverse::kIterative;
  Index iterations = 0;       // of kIterative, at least 1
  double regularization = 0;  // of kSvd: Tikhonov parameter in units of the largest singular value

  // [heads][convSize], or one filter for all heads with stride 0: adds Σₜ filter[t]·value[i + t − convSize/2] to output
  // row i, as many queries as keys. convSize is odd. Null: none.
  const float* convFilters = nullptr;
  Index convHeadStride = 0;
  Index convSize = 0;

  // 0 hides. A hidden key contributes to nothing, a hidden query to no landmark, and its output row is zero.
  const std::uint8_t* queryMask = nullptr;  // [batch, queries]
  const std::uint8_t* keyMask = nullptr;    // [batch, keys]
};

// Positions that landmark i of m is the mean of. Segments follow one another; the last `length` % m of them have one
// position more.
LA_INLINE KeyRange landmarkRange(Index length, Index landmarks, const std::int32_t* positions, Index i) {
  if (positions != nullptr) return {positions[i], positions[i] + 1};
  const Index size = length / landmarks;
  const Index firstLonger = landmarks - length % landmarks;
  const Index begin = i * size + maximum(0, i - firstLonger);
  return {begin, begin + size + (i >= firstLonger ? 1 : 0)};
}

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_NYSTROM_H_
