// What both forms of the matrix product share: the extents of their blocks, and how rows of A get there and rows of C
// leave.
#ifndef LOWRANK_ATTENTION_CPU_MATMUL_BLOCK_H_
#define LOWRANK_ATTENTION_CPU_MATMUL_BLOCK_H_

#include "core/matmul.h"
#include "cpu/simd.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kMatmulDepth = 256;    // inner dimension of a block
constexpr Index kMatmulColumns = 256;  // columns of a unit: a packed strip of B is 256 KiB
constexpr Index kMatmulRows = 288;     // rows of a unit, a multiple of 6 and of 12

// How a block of A lies in the scratch, so that rows are copied as they lie in memory.
template <bool kTransposed>
struct BlockOfA {
  static constexpr Index kRowStride = kTransposed ? 1 : kMatmulDepth;
  static constexpr Index kDepthStride = kTransposed ? kMatmulRows : 1;
};

// rowsOfA[i·kRowStride + k·kDepthStride] = A[i0 + i][k0 + k] as float32.
template <bool kTransposed>
LA_INLINE void packRows(const MatmulProblem& problem, const void* a, Index i0, Index rows, Index k0, Index depth,
                        float* rowsOfA) {
  const Index count = kTransposed ? depth : rows;
  const Index length = kTransposed ? rows : depth;
  for (Index r = 0; r < count; ++r) {
    const Index first = kTransposed ? (k0 + r) * problem.m + i0 : (i0 + r) * problem.k + k0;
    convertRow(problem.typeA, elementAt(a, problem.typeA, first), DataType::kFloat32,
               rowsOfA + r * (kTransposed ? kMatmulRows : kMatmulDepth), length);
  }
}

// Rows of C from their sums, `stride` apart.
LA_INLINE void storeRows(const MatmulProblem& problem, const float* sums, Index stride, Index rows, Index columns,
                         void* c) {
  for (Index i = 0; i < rows; ++i) {
    convertRow(DataType::kFloat32, sums + i * stride, problem.typeC, elementAt(c, problem.typeC, i * problem.n),
               columns);
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_MATMUL_BLOCK_H_
