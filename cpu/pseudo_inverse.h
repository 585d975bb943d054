// W = Z·(B·V) of Nyström attention for one head, Z the pseudo-inverse of A = softmax(scale·Q̃·K̃ᵀ). See core/nystrom.h.
//
// Matrices are row-major with rows of whole register tiles, so that products need no remainder loop. What stands beyond
// the last column comes into no other column.
#ifndef LOWRANK_ATTENTION_CPU_PSEUDO_INVERSE_H_
#define LOWRANK_ATTENTION_CPU_PSEUDO_INVERSE_H_

#include "core/execution.h"
#include "core/nystrom.h"
#include "cpu/arena.h"
#include "cpu/decompositions.h"
#include "cpu/math.h"
#include "cpu/microkernel.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kTileColumns = 2 * kLanes<Full>;

// Floats of a row of so many columns: an odd number of register tiles, since rows a power of two apart would share few
// cache sets.
LA_INLINE Index tiledStride(Index columns) { return (divideUp(columns, kTileColumns) | 1) * kTileColumns; }

struct TiledMatrix {
  float* data = nullptr;
  Index stride = 0;

  LA_METHOD float* row(Index i) const { return data + i * stride; }
};

LA_INLINE TiledMatrix takeTiled(Arena& arena, Index rows, Index columns) {
  const Index stride = tiledStride(columns);
  return {arena.take<float>(rows * stride), stride};
}

// c = factor·a·b + diagonal·I for a (rows × depth), b (depth × columns). Element (i, k) of a lies at a + i·aStride + k.
static void multiply(const float* a, Index aStride, const TiledMatrix& b, Index rows, Index depth, Index columns,
                     float factor, float diagonal, const TiledMatrix& c, const Execution& execution) {
  const Full d;
  const auto factors = hn::Set(d, factor);
  for (Index j = 0; j < columns && !execution.aborted(); j += kTileColumns) {
    forRowGroups<kMaxRows<2>>(rows, [&](Index first, auto size) {
      outerProduct<decltype(size)::value, 2>(
          d, a + first * aStride, aStride, 1, b.data + j, b.stride, depth, [&](int, int) { return hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) {
            hn::Store(hn::Mul(sum, factors), d, c.row(first + r) + j + v * kLanes<Full>);
          });
    });
  }
  if (diagonal == 0) return;
  for (Index i = 0; i < rows; ++i) c.row(i)[i] += diagonal;
}

// Softmax of the first `count` columns of a row whose scores are in units of log2; zero in the others up to the stride.
LA_INLINE void softmaxRow(float* row, Index count, Index stride) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  for (Index j = count; j < stride; ++j) row[j] = -__builtin_inff();
  auto max = hn::Load(d, row);
  for (Index j = n; j < stride; j += n) max = hn::Max(max, hn::Load(d, row + j));
  max = hn::MaxOfLanes(d, max);
  auto sum = hn::Zero(d);
  for (Index j = 0; j < stride; j += n) {
    const auto weight = exp2NonPositive(d, hn::Sub(hn::Load(d, row + j), max));
    hn::Store(weight, d, row + j);
    sum = hn::Add(sum, weight);
  }
  const auto inverse = hn::Div(hn::Set(d, 1.0f), hn::SumOfLanes(d, sum));
  for (Index j = 0; j < stride; j += n) hn::Store(hn::Mul(hn::Load(d, row + j), inverse), d, row + j);
}

// Scratch of one worker.
struct InverseScratch {
  TiledMatrix square[5];  // m × m
  TiledMatrix keys;       // K̃ᵀ, headDim × m
  TiledMatrix values;     // B·V, m × valueDim
  TiledMatrix product;    // W
};

LA_INLINE InverseScratch placeInverse(const NystromProblem& problem, Arena& arena) {
  InverseScratch scratch;
  for (TiledMatrix& square : scratch.square) square = takeTiled(arena, problem.landmarks, problem.landmarks);
  scratch.keys = takeTiled(arena, problem.qkv.headDim, problem.landmarks);
  scratch.values = takeTiled(arena, problem.landmarks, problem.qkv.valueDim);
  scratch.product = takeTiled(arena, problem.landmarks, problem.qkv.valueDim);
  return scratch;
}

// A (count × count) of dense landmark rows.
LA_INLINE void landmarkWeights(const NystromProblem& problem, const float* query, const float* key, Index count,
                               const TiledMatrix& keys, const TiledMatrix& weights, const Execution& execution) {
  const Index headDim = problem.qkv.headDim;
  for (Index c = 0; c < headDim; ++c) {
    for (Index j = 0; j < count; ++j) keys.row(c)[j] = key[j * headDim + c];
  }
  multiply(query, headDim, keys, count, headDim, count, problem.scale * kLog2E, 0, weights, execution);
  for (Index i = 0; i < count; ++i) softmaxRow(weights.row(i), count, weights.stride);
}

// Z ← ¼Z(13I − X(15I − X(7I − X))), X = AZ, from Z₀ = Aᵀ/(|A|₁·|A|∞). `squares` are five matrices, the first of them A;
// returns the one that holds Z.
LA_INLINE TiledMatrix iterateInverse(const TiledMatrix* squares, Index count, Index iterations,
                                     const Execution& execution) {
  const TiledMatrix a = squares[0];
  TiledMatrix z = squares[1];
  const TiledMatrix x = squares[2];
  const TiledMatrix odd = squares[3];
  TiledMatrix even = squares[4];
  float largestRow = 0;
  float largestColumn = 0;
  for (Index i = 0; i < count; ++i) {
    float row = 0;
    float column = 0;
    for (Index j = 0; j < count; ++j) {
      row += a.row(i)[j];
      column += a.row(j)[i];
    }
    largestRow = row > largestRow ? row : largestRow;
    largestColumn = column > largestColumn ? column : largestColumn;
  }
  const float norms = largestRow * largestColumn;
  for (Index i = 0; i < count; ++i) {
    for (Index j = 0; j < count; ++j) z.row(i)[j] = a.row(j)[i] / norms;
  }
  const auto product = [&](const TiledMatrix& left, const TiledMatrix& right, float factor, float diagonal,
                           const TiledMatrix& result) {
    multiply(left.data, left.stride, right, count, count, count, factor, diagonal, result, execution);
  };
  for (Index i = 0; i < iterations && !execution.aborted(); ++i) {
    product(a, z, 1, 0, x);
    // The innermost factor is 7I − X.
    for (Index row = 0; row < count; ++row) {
      for (Index j = 0; j < count; ++j) odd.row(row)[j] = -x.row(row)[j];
      odd.row(row)[row] += 7;
    }
    product(x, odd, -1, 15, even);
    product(x, even, -1, 13, odd);
    product(z, odd, 0.25f, 0, even);
    const TiledMatrix next = even;
    even = z;
    z = next;
  }
  return z;
}

// values (count × valueDim, dense) ← Z·values for dense landmark rows.
LA_INLINE void applyInverse(const NystromProblem& problem, const float* query, const float* key, Index count,
                            float* values, const InverseScratch& scratch, const Execution& execution) {
  const Index valueDim = problem.qkv.valueDim;
  landmarkWeights(problem, query, key, count, scratch.keys, scratch.square[0], execution);
  TiledMatrix inverse;
  if (problem.inverse == PseudoInverse::kIterative) {
    inverse = iterateInverse(scratch.square, count, problem.iterations, execution);
  } else {
    const TiledMatrix dense = {scratch.square[1].data, count};
    inverse = {scratch.square[2].data, count};
    for (Index i = 0; i < count; ++i) {
      __builtin_memcpy(dense.row(i), scratch.square[0].row(i), static_cast<std::size_t>(4 * count));
    }
    if (!regularizedInverse(dense.data, count, count, problem.regularization, inverse.data)) {
      execution.fail(Code::kMemory);
      return;
    }
  }
  for (Index i = 0; i < count; ++i) {
    __builtin_memcpy(scratch.values.row(i), values + i * valueDim, static_cast<std::size_t>(4 * valueDim));
  }
  multiply(inverse.data, inverse.stride, scratch.values, count, count, valueDim, 1, 0, scratch.product, execution);
  for (Index i = 0; i < count; ++i) {
    __builtin_memcpy(values + i * valueDim, scratch.product.row(i), static_cast<std::size_t>(4 * valueDim));
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_PSEUDO_INVERSE_H_
