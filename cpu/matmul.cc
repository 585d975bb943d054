// Matrix product on the CPU: C = A·B in cache blocks (Goto & van de Geijn 2008, "Anatomy of high-performance
// matrix multiplication").
//
// For a block of kDepth of the inner dimension, a strip of B is packed into panels [k][W] that lie in L2 and are
// reused by all rows of a unit; rows of A are read where they lie, kMaxRows at a time, and broadcast.
// A unit of work is (batch item, rows, columns) of C; its inner dimension is never split between threads, so the
// result does not depend on their number. Few rows are done otherwise, see cpu/matmul_few.h, with the same bits.

#include "core/matmul.h"

#include "core/execution.h"
#include "cpu/kernels.h"
#include "cpu/matmul_few.h"
#include "cpu/microkernel.h"
#include "cpu/transpose.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kMatmulWidth = 2 * kLanes<Full>;  // W

// Scratch of one worker in floats: packed B, converted A, and C of the unit. Few rows take less.
LA_INLINE Index matmulWorkerFloats() {
  return kMatmulDepth * kMatmulColumns + kMatmulRows * kMatmulDepth + kMatmulRows * kMatmulColumns;
}

std::size_t matmulWorkspaceBytes(const MatmulProblem&, Index threads) {
  return static_cast<std::size_t>(4 * threads * matmulWorkerFloats());
}

// panels[p][k][lane] = B[k0 + k][j0 + p·W + lane], zero beyond the last column.
LA_INLINE void packColumns(const MatmulProblem& problem, const void* b, Index k0, Index depth, Index j0, Index columns,
                           float* panels) {
  constexpr Index width = kMatmulWidth;
  for (Index p = 0; p < columns; p += width) {
    float* panel = panels + p * kMatmulDepth;
    const Index count = minimum(width, columns - p);
    if (!problem.transposeB) {
      for (Index k = 0; k < depth; ++k) {
        const void* source = elementAt(b, problem.typeB, (k0 + k) * problem.n + j0 + p);
        convertRow(problem.typeB, source, DataType::kFloat32, panel + k * width, count);
        for (Index lane = count; lane < width; ++lane) panel[k * width + lane] = 0;
      }
      continue;
    }
    for (Index lane = 0; lane < width; lane += kSquare) {
      alignas(64) float scratch[kSquare][kMatmulDepth];
      const float* rows[kSquare];
      for (Index r = 0; r < kSquare; ++r) {
        rows[r] = scratch[r];
        if (lane + r >= count) {
          __builtin_memset(scratch[r], 0, sizeof scratch[r]);
        } else {
          const void* source = elementAt(b, problem.typeB, (j0 + p + lane + r) * problem.k + k0);
          rows[r] = asFloat32(problem.typeB, source, depth, scratch[r]);
        }
      }
      rowsToLanes<kSquare>(rows, depth, 1.0f, panel + lane, width);
    }
  }
}

template <bool kTransposed>
static void matmulUnit(const MatmulProblem& problem, Index batch, Index i0, Index rows, Index j0, Index columns,
                       float* memory) {
  using Block = BlockOfA<kTransposed>;
  const Full d;
  constexpr Index width = kMatmulWidth;
  float* panels = memory;
  float* rowsOfA = panels + kMatmulDepth * kMatmulColumns;
  const void* a = elementAt(problem.a, problem.typeA, problem.offsetsA[batch]);
  const void* b = elementAt(problem.b, problem.typeB, problem.offsetsB[batch]);
  void* c = elementAt(problem.c, problem.typeC, (batch * problem.m + i0) * problem.n + j0);
  // Sums are kept where they belong if whole panels of float32 go there, else in a tile of the scratch.
  const bool inPlace = problem.typeC == DataType::kFloat32 && columns % width == 0;
  float* sums = inPlace ? static_cast<float*>(c) : rowsOfA + kMatmulRows * kMatmulDepth;
  const Index stride = inPlace ? problem.n : roundUp(columns, width);
  for (Index k0 = 0; k0 < maximum(problem.k, 1); k0 += kMatmulDepth) {
    const Index depth = minimum(kMatmulDepth, problem.k - k0);
    packColumns(problem, b, k0, depth, j0, columns, panels);
    packRows<kTransposed>(problem, a, i0, rows, k0, depth, rowsOfA);
    for (Index p = 0; p < columns; p += width) {
      forRowGroups<kMaxRows<2>>(rows, [&](Index first, auto size) {
        float* out = sums + first * stride + p;
        outerProduct<decltype(size)::value, 2>(
            d, rowsOfA + first * Block::kRowStride, Block::kRowStride, Block::kDepthStride, panels + p * kMatmulDepth,
            width, depth,
            [&](int r, int v) { return k0 == 0 ? hn::Zero(d) : hn::LoadU(d, out + r * stride + v * kLanes<Full>); },
            [&](int r, int v, Vec<Full> sum) { hn::StoreU(sum, d, out + r * stride + v * kLanes<Full>); });
      });
    }
  }
  if (inPlace) return;
  storeRows(problem, sums, stride, rows, columns, c);
}

// Computes rows [i0, i0 + rows) and columns [j0, j0 + columns) of C for one batch item.
using MatmulUnit = void (*)(const MatmulProblem& problem, Index batch, Index i0, Index rows, Index j0, Index columns,
                            float* memory);

template <bool kTransposed>
LA_INLINE MatmulUnit matmulUnitOf(const MatmulProblem& problem) {
  if (!hasFewRows(problem)) return matmulUnit<kTransposed>;
  switch (problem.typeB) {
    case DataType::kFloat16:
      return matmulFewUnit<kTransposed, DataType::kFloat16>;
    case DataType::kBfloat16:
      return matmulFewUnit<kTransposed, DataType::kBfloat16>;
    case DataType::kFloat32:
      break;
  }
  return matmulFewUnit<kTransposed, DataType::kFloat32>;
}

void runMatmul(const MatmulProblem& problem, const Execution& execution) {
  const Index rowUnits = divideUp(problem.m, kMatmulRows);
  const Index columns = hasFewRows(problem) ? matmulFewColumns(problem, execution.threads) : kMatmulColumns;
  const Index columnUnits = divideUp(problem.n, columns);
  const Index perItem = rowUnits * columnUnits;
  const MatmulUnit run = problem.transposeA ? matmulUnitOf<true>(problem) : matmulUnitOf<false>(problem);
  forEachUnit(execution, problem.batch * perItem, [&](Index worker, Index unit) {
    const Index i0 = unit % perItem / columnUnits * kMatmulRows;
    const Index j0 = unit % columnUnits * columns;
    run(problem, unit / perItem, i0, minimum(kMatmulRows, problem.m - i0), j0, minimum(columns, problem.n - j0),
        reinterpret_cast<float*>(execution.workspace) + worker * matmulWorkerFloats());
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE
