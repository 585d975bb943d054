// Low-rank factors of attention matrices, A = softmax(scale·Q·Kᵀ) ≈ U·Vᵀ, by the randomised singular value
// decomposition (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1):
//
//   Y = A·Ω;  again and again: Z = orth(Aᵀ·orth(Y)), Y = A·Z;  P = orth(Y), B = Aᵀ·P = V·Σ·Wᵀ;  A ≈ P·Bᵀ = (P·W·Σ)·Vᵀ
//
// A is never formed. A·X is exact attention with the values X. Its rows' lse then gives the transpose,
//
//   (Aᵀ·X)ⱼ = Σᵢ exp(sᵢⱼ − lseᵢ)·Xᵢ,
//
// as exact attention with queries and keys exchanged and −lse as an additive mask, whose rows times exp of their own
// lse are the sums without the division of a softmax. What is kept of a matrix is O((queries + keys)·width).
#ifndef LOWRANK_ATTENTION_CORE_LOWRANK_H_
#define LOWRANK_ATTENTION_CORE_LOWRANK_H_

#include "core/qkv.h"

namespace lowrank_attention {

struct LowRankProblem {
  DataType queryType = DataType::kFloat32;
  DataType keyType = DataType::kFloat32;
  Index batch = 0;
  Index heads = 0;
  Index kvHeads = 0;  // divides heads; query head h reads key head h / (heads / kvHeads)
  Index queries = 0;
  Index keys = 0;
  Index headDim = 0;
  BatchRows query;  // heads × queries × headDim
  BatchRows key;    // kvHeads × keys × headDim
  float scale = 1;
  bool causal = false;  // query i sees keys j ≤ i + keys − queries

  Index rank = 0;             // singular values wanted, at most `width`
  Index width = 0;            // columns of the passes: rank and oversampling, at most min(queries, keys)
  Index powerIterations = 0;  // 2·powerIterations + 2 passes over all scores
  std::uint32_t seed = 0;     // of Ω, which all matrices share
  // 0: the factors have `rank` columns. Else the smallest number of them, for each matrix, that keeps this share of
  // ‖A‖_F² as far as float32 can tell; `energies` is present then.
  double energy = 0;

  double* singularValues = nullptr;  // [batch][heads][rank], descending
  double* energies = nullptr;        // [batch][heads] ‖A‖_F²; may be null
  std::int32_t* ranks = nullptr;     // [batch][heads] columns of each matrix's factors; 0 where `energy` is not reached
  // Dense, [batch][heads][queries] and [batch][heads][keys] rows of as many columns as the largest of `ranks`, zero
  // from the matrix's own rank on. Untouched if a rank is 0. Both null where only singular values are wanted.
  float* u = nullptr;
  float* v = nullptr;

  // Room for the passes as problems of exact attention: the workspace formula needs them before there is a workspace.
  FullSequence* sequences = nullptr;  // [2·batch·heads]
  const void** pages = nullptr;       // [4·batch·heads]
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_LOWRANK_H_
