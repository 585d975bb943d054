// Matrix product C = A·B for a batch of matrices, either of them transposed if wanted.
#ifndef LOWRANK_ATTENTION_CORE_MATMUL_H_
#define LOWRANK_ATTENTION_CORE_MATMUL_H_

#include "core/types.h"

namespace lowrank_attention {

// C[b] (m × n) = A[offsetsA[b]] (m × k, or k × m when transposeA) · B[offsetsB[b]] (k × n, or n × k when transposeB).
// All row-major and dense.
struct MatmulProblem {
  DataType typeA = DataType::kFloat32;
  DataType typeB = DataType::kFloat32;
  DataType typeC = DataType::kFloat32;
  Index batch = 0;
  Index m = 0;
  Index n = 0;
  Index k = 0;
  bool transposeA = false;
  bool transposeB = false;
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  // First element of each batch item's matrix in a and b: broadcast batches repeat.
  const Index* offsetsA = nullptr;
  const Index* offsetsB = nullptr;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_MATMUL_H_
