// Dense linear algebra in float64, for what is computed from attention rather than in it.
#ifndef LOWRANK_ATTENTION_CORE_LINALG_H_
#define LOWRANK_ATTENTION_CORE_LINALG_H_

#include "core/types.h"

namespace lowrank_attention {

enum class LinalgOperation : std::uint8_t {
  kSvd,      // a = left·diag(values)·rightᵀ, left (m × r), right (n × r), r = min(m, n), values descending
  kEigen,    // a symmetric, m = n: a = left·diag(values)·leftᵀ, values ascending
  kBasis,    // values (m × n), n ≤ m: an orthonormal basis of a space that holds a's columns
  kProduct,  // values = aᵀ·b (n × p), b (m × p); or a·b (m × p), b (n × p)
};

// A batch of row-major matrices m × n, each for itself. Bases that are null are not computed; kEigen has no right one.
// A matrix that holds NaN or infinity gives NaN everywhere in its decomposition. Sums of a product run in the order of
// their terms, whatever the number of threads.
struct LinalgProblem {
  LinalgOperation operation = LinalgOperation::kSvd;
  Index batch = 0;
  Index m = 0;
  Index n = 0;
  const double* a = nullptr;
  // Of kProduct. A product that is known to be symmetric is computed from its diagonal down, and mirrored.
  const double* b = nullptr;
  Index p = 0;
  bool transposeA = false;
  bool symmetric = false;
  double* values = nullptr;
  double* left = nullptr;
  double* right = nullptr;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_LINALG_H_
