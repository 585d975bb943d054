// Linear algebra in float64 on the CPU. Decompositions are Eigen's, a matrix a unit of work. A product is cut as
// cpu/matmul.cc cuts its own: a unit is (batch item, rows, columns) of the product, for which blocks of both factors
// are copied into L2, and whose inner dimension is never split between threads.

#include "core/linalg.h"

#include "core/execution.h"
#include "cpu/decompositions.h"
#include "cpu/kernels.h"
#include "cpu/microkernel.h"

namespace lowrank_attention::HWY_NAMESPACE {

using Doubles = hn::ScalableTag<double>;

constexpr Index kProductWidth = 2 * kLanes<Doubles>;
constexpr Index kProductDepth = 256;    // inner dimension of copied blocks
constexpr Index kProductColumns = 128;  // of a unit: a block of b is 256 KiB
constexpr Index kProductRows = 144;     // of a unit, a multiple of 6 and of 12: a block of a is 288 KiB

// Scratch of one worker in doubles: blocks of b and a, and the unit of the product.
constexpr Index kWorkerDoubles =
    kProductDepth * kProductColumns + kProductDepth * kProductRows + kProductRows * kProductColumns;

std::size_t linalgWorkspaceBytes(const LinalgProblem& problem, Index threads) {
  if (problem.operation != LinalgOperation::kProduct) return 0;
  return sizeof(double) * static_cast<std::size_t>(threads * kWorkerDoubles);
}

// A part of a product, and what it is computed from.
struct ProductUnit {
  const double* a;
  const double* b;
  double* product;
  Index rows;     // of the whole product
  Index columns;  // the same
  Index depth;    // the same
  Index i0;
  Index ownRows;
  Index j0;
  Index ownColumns;
};

// panels[p][k][lane] = b[k0 + k][j0 + p·W + lane], zero beyond the last column.
static void copyColumns(const ProductUnit& unit, Index k0, Index depth, double* panels) {
  constexpr Index width = kProductWidth;
  for (Index p = 0; p < unit.ownColumns; p += width) {
    double* panel = panels + p * kProductDepth;
    const Index count = minimum(width, unit.ownColumns - p);
    for (Index k = 0; k < depth; ++k) {
      const double* source = unit.b + (k0 + k) * unit.columns + unit.j0 + p;
      for (Index lane = 0; lane < count; ++lane) panel[k * width + lane] = source[lane];
      for (Index lane = count; lane < width; ++lane) panel[k * width + lane] = 0;
    }
  }
}

// How a block of a lies in the scratch, so that rows are copied as they lie in memory.
template <bool kTransposed>
struct BlockOfLeft {
  static constexpr Index kRowStride = kTransposed ? 1 : kProductDepth;
  static constexpr Index kDepthStride = kTransposed ? kProductRows : 1;
};

// block[i·kRowStride + k·kDepthStride] = element (i0 + i, k0 + k) of the left factor.
template <bool kTransposed>
static void copyRows(const ProductUnit& unit, Index k0, Index depth, double* block) {
  const Index count = kTransposed ? depth : unit.ownRows;
  const Index length = kTransposed ? unit.ownRows : depth;
  for (Index r = 0; r < count; ++r) {
    const double* source = unit.a + (kTransposed ? (k0 + r) * unit.rows + unit.i0 : (unit.i0 + r) * unit.depth + k0);
    double* target = block + r * (kTransposed ? kProductRows : kProductDepth);
    for (Index i = 0; i < length; ++i) target[i] = source[i];
  }
}

// Writes a unit's sums to the product; of a symmetric one what is not above the diagonal, and its mirror image.
static void storeUnit(const ProductUnit& unit, const double* sums, bool symmetric) {
  for (Index i = 0; i < unit.ownRows; ++i) {
    const Index count = symmetric ? minimum(unit.ownColumns, unit.i0 + i + 1 - unit.j0) : unit.ownColumns;
    double* target = unit.product + (unit.i0 + i) * unit.columns + unit.j0;
    for (Index j = 0; j < count; ++j) target[j] = sums[i * kProductColumns + j];
  }
  if (!symmetric) return;
  for (Index j = 0; j < unit.ownColumns; ++j) {
    double* target = unit.product + (unit.j0 + j) * unit.columns + unit.i0;
    for (Index i = maximum(0, unit.j0 + j - unit.i0 + 1); i < unit.ownRows; ++i) {
      target[i] = sums[i * kProductColumns + j];
    }
  }
}

template <bool kTransposed>
static void runUnit(const ProductUnit& unit, bool symmetric, const Execution& execution, double* memory) {
  using Block = BlockOfLeft<kTransposed>;
  const Doubles d;
  constexpr Index width = kProductWidth;
  double* panels = memory;
  double* block = panels + kProductDepth * kProductColumns;
  double* sums = block + kProductDepth * kProductRows;
  for (Index k0 = 0; k0 < unit.depth; k0 += kProductDepth) {
    if (execution.aborted()) return;
    const Index depth = minimum(kProductDepth, unit.depth - k0);
    copyColumns(unit, k0, depth, panels);
    copyRows<kTransposed>(unit, k0, depth, block);
    for (Index p = 0; p < unit.ownColumns; p += width) {
      forRowGroups<kMaxRows<2>>(unit.ownRows, [&](Index first, auto size) {
        double* out = sums + first * kProductColumns + p;
        outerProduct<decltype(size)::value, 2>(
            d, block + first * Block::kRowStride, Block::kRowStride, Block::kDepthStride, panels + p * kProductDepth,
            width, depth,
            [&](int r, int v) {
              return k0 == 0 ? hn::Zero(d) : hn::LoadU(d, out + r * kProductColumns + v * kLanes<Doubles>);
            },
            [&](int r, int v, Vec<Doubles> sum) {
              hn::StoreU(sum, d, out + r * kProductColumns + v * kLanes<Doubles>);
            });
      });
    }
  }
  storeUnit(unit, sums, symmetric);
}

static void runProduct(const LinalgProblem& problem, const Execution& execution) {
  const Index rows = problem.transposeA ? problem.n : problem.m;
  const Index depth = problem.transposeA ? problem.m : problem.n;
  const Index columns = problem.p;
  const Index columnUnits = divideUp(columns, kProductColumns);
  const Index perItem = divideUp(rows, kProductRows) * columnUnits;
  forEachUnit(execution, problem.batch * perItem, [&](Index worker, Index unit) {
    const Index item = unit / perItem;
    const Index i0 = unit % perItem / columnUnits * kProductRows;
    const Index j0 = unit % columnUnits * kProductColumns;
    const ProductUnit own = {problem.a + item * problem.m * problem.n,
                             problem.b + item * depth * columns,
                             problem.values + item * rows * columns,
                             rows,
                             columns,
                             depth,
                             i0,
                             minimum(kProductRows, rows - i0),
                             j0,
                             minimum(kProductColumns, columns - j0)};
    // All of it lies above the diagonal.
    if (problem.symmetric && j0 >= i0 + own.ownRows) return;
    double* memory = reinterpret_cast<double*>(execution.workspace) + worker * kWorkerDoubles;
    (problem.transposeA ? runUnit<true> : runUnit<false>)(own, problem.symmetric, execution, memory);
  });
}

void runLinalg(const LinalgProblem& problem, const Execution& execution) {
  if (problem.operation == LinalgOperation::kProduct) return runProduct(problem, execution);
  const Index m = problem.m, n = problem.n, rank = minimum(m, n);
  const auto of = [](double* base, Index item, Index size) { return base == nullptr ? nullptr : base + item * size; };
  forEachUnit(execution, problem.batch, [&](Index, Index item) {
    const double* matrix = problem.a + item * m * n;
    double* left = of(problem.left, item, m * rank);
    bool done = false;
    if (problem.operation == LinalgOperation::kSvd) {
      done = svd(matrix, m, n, problem.values + item * rank, left, of(problem.right, item, n * rank));
    } else if (problem.operation == LinalgOperation::kEigen) {
      done = eigenSymmetric(matrix, n, problem.values + item * rank, left);
    } else {
      done = basis(matrix, m, n, problem.values + item * m * n);
    }
    if (!done) execution.fail(Code::kMemory);
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE
