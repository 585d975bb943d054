// Dense linear algebra of small matrices in float64, for what is computed from attention rather than in it.
#ifndef LOWRANK_ATTENTION_CORE_LINALG_H_
#define LOWRANK_ATTENTION_CORE_LINALG_H_

#include "core/types.h"

namespace lowrank_attention {

enum class LinalgOperation : std::uint8_t {
  kSvd,      // a = left·diag(values)·rightᵀ, left (m × r), right (n × r), r = min(m, n), values descending
  kEigen,    // a symmetric, m = n: a = left·diag(values)·leftᵀ, values ascending
  kProduct,  // values (n × p) = aᵀ·b, b (m × p)
};

// A batch of row-major matrices m × n, each for itself. Bases that are null are not computed; kEigen has no right one.
// A matrix that holds NaN or infinity gives NaN everywhere in its decomposition.
struct LinalgProblem {
  LinalgOperation operation = LinalgOperation::kSvd;
  Index batch = 0;
  Index m = 0;
  Index n = 0;
  Index p = 0;  // of kProduct
  const double* a = nullptr;
  const double* b = nullptr;  // of kProduct
  double* values = nullptr;
  double* left = nullptr;
  double* right = nullptr;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_LINALG_H_
