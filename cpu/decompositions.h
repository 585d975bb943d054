// Decompositions of dense matrices, by Eigen, compiled once for the baseline processor: Eigen's templates would give
// the kernel rows symbols that the linker merges. All matrices are row-major. Serial: callers share matrices over
// threads. Every function returns false when there is no memory.
#ifndef LOWRANK_ATTENTION_CPU_DECOMPOSITIONS_H_
#define LOWRANK_ATTENTION_CPU_DECOMPOSITIONS_H_

#include "core/types.h"

namespace lowrank_attention {

// z (n × m) = V·diag(σ / (σ² + λ²))·Uᵀ of a = U·diag(σ)·Vᵀ (m × n), λ = regularization·σ₁: the Tikhonov-regularised
// inverse, computed in float64. With regularization 0 it is the pseudo-inverse, and singular values up to
// max(m, n)·2⁻²⁴·σ₁, which a float32 matrix cannot tell from zero, count as zero. NaN where `a` holds NaN or infinity.
bool regularizedInverse(const float* a, Index m, Index n, double regularization, float* z);

// As `LinalgProblem` (core/linalg.h) has it, for one matrix.
bool svd(const double* a, Index m, Index n, double* values, double* left, double* right);
bool eigenSymmetric(const double* a, Index n, double* values, double* vectors);
bool basis(const double* a, Index m, Index n, double* basis);

// Replaces a (m × n, m ≥ n) by an orthonormal basis of its columns, or of a space that holds them if they are dependent
// (Householder QR). `scratch` holds m·n floats.
bool orthonormalize(float* a, Index m, Index n, float* scratch);

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CPU_DECOMPOSITIONS_H_
