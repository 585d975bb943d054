// Dense linear algebra off the hot path, by Eigen, compiled once for the baseline processor (Eigen's templates would give
// the kernel rows symbols that the linker merges). All matrices are row-major. Serial: callers share matrices over
// threads.
#ifndef LOWRANK_ATTENTION_CPU_LINALG_H_
#define LOWRANK_ATTENTION_CPU_LINALG_H_

#include "core/types.h"

namespace lowrank_attention {

// z (n × m) = V·diag(σ / (σ² + λ²))·Uᵀ of a = U·diag(σ)·Vᵀ (m × n), λ = regularization·σ₁: the Tikhonov-regularised
// inverse. With regularization 0 it is the pseudo-inverse; singular values below ε·max(m, n)·σ₁ count as zero.
// In float64. False if `a` holds NaN or infinity, and then z is NaN.
bool regularizedInverse(const float* a, Index m, Index n, double regularization, float* z);

// a (m × n) = u (m × r)·diag(s)·vᵀ, v (n × r), r = min(m, n), s descending. u and v may both be null. NaN where `a`
// holds NaN or infinity.
void svd(const double* a, Index m, Index n, double* u, double* s, double* v);

// The symmetric a (n × n) = v·diag(w)·vᵀ, w ascending. v may be null. Reads the lower triangle.
void eigenSymmetric(const double* a, Index n, double* w, double* v);

// Replaces a (m × n, m ≥ n, row stride n) by an orthonormal basis of its columns (Householder QR). `scratch` holds
// m·n floats.
void orthonormalize(float* a, Index m, Index n, float* scratch);

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CPU_LINALG_H_
