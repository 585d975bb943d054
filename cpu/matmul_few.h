// Matrix product of few rows: the projections of a decode step. Every element of B is used so few times that reading it
// is the cost, so B is read once, where it lies, and nothing of it is written anywhere:
//
//   tile [depth][W] of B in registers;  for each row r:  sums[r][W] += Σ_k A[r][k] · tile[k][W]
//
// The tile stays and the rows pass by, the other way round than in cpu/microkernel.h; the sums of all rows, which are
// loaded and stored once a tile, stay in L1. A lane is a column of C and adds its terms by multiply-add in ascending
// order of k, as the packed form does: a row has the same bits in either.
#ifndef LOWRANK_ATTENTION_CPU_MATMUL_FEW_H_
#define LOWRANK_ATTENTION_CPU_MATMUL_FEW_H_

#include "cpu/matmul_block.h"
#include "cpu/transpose.h"

namespace lowrank_attention::HWY_NAMESPACE {

// With more rows packing B pays (docs/performance.md): a tile takes loads of scalars and sums for each row, most of all
// that of a transposed B, which is one vector wide.
constexpr Index kMatmulFewRows = 32;
constexpr Index kMatmulFewTransposedRows = 8;

LA_INLINE bool hasFewRows(const MatmulProblem& problem) {
  return problem.m <= (problem.transposeB ? kMatmulFewTransposedRows : kMatmulFewRows);
}

// Most columns of a unit. The more of them, the longer memory is read forwards, but the sums of a unit stay in L1.
constexpr Index kMatmulFewColumns = 1024;
constexpr Index kMatmulFewSums = 6144;
// Of the sums of one row. Not a power of two, at which those of all rows would share few cache sets.
constexpr Index kMatmulFewStride = kMatmulFewColumns + 16;
// Of a transposed B few are enough: its rows are read along k, and come back to once a block of A.
constexpr Index kMatmulFewTransposedColumns = 64;

// Columns of a unit: whole cache lines, and units that share evenly among the threads. Where B is cut changes no sum.
LA_INLINE Index matmulFewColumns(const MatmulProblem& problem, Index threads) {
  constexpr Index whole = 64;
  if (problem.transposeB) return kMatmulFewTransposedColumns;
  const Index most = minimum(kMatmulFewColumns, kMatmulFewSums / problem.m / whole * whole);
  const Index units = roundUp(divideUp(problem.n, most), threads);
  return roundUp(divideUp(problem.n, units), whole);
}

// Rows of A at some k.
template <bool kTransposed>
struct RowsOfA {
  const float* data;
  Index count;

  LA_METHOD RowsOfA from(Index k) const { return {data + k * BlockOfA<kTransposed>::kDepthStride, count}; }
  LA_METHOD float at(Index r, Index k) const {
    return data[r * BlockOfA<kTransposed>::kRowStride + k * BlockOfA<kTransposed>::kDepthStride];
  }
};

// sums[r][…] += Σ_k rows[r][k] · tile[k][…]
template <int kDepth, int kVecs, class Rows>
LA_INLINE void addTile(const Vec<Full> (&tile)[kDepth][kVecs], const Rows& rows, float* HWY_RESTRICT sums) {
  const Full d;
  for (Index r = 0; r < rows.count; ++r) {
    float* own = sums + r * kMatmulFewStride;
    Vec<Full> sum[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[v] = hn::Load(d, own + v * kLanes<Full>);
#pragma GCC unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const auto scalar = hn::Set(d, rows.at(r, k));
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[v] = hn::MulAdd(scalar, tile[k][v], sum[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) hn::Store(sum[v], d, own + v * kLanes<Full>);
  }
}

// B as it is stored, k × n: a tile is two vectors of each of four rows, which are read side by side along the whole
// unit as streams that the processor's prefetcher follows. Later rows are asked for as well, since the unit's part of a
// row is over before the prefetcher has come far.
constexpr int kTileDepth = 4;
constexpr int kTileVecs = 2;
constexpr Index kMatmulRowsAhead = 8;

template <DataType kType, int kDepth, class Rows>
LA_INLINE void addRowsOfB(const MatmulProblem& problem, const void* b, Index columns, const void* ahead,
                          const Rows& rows, float* sums) {
  const Full d;
  constexpr Index width = kTileVecs * kLanes<Full>;
  Index j = 0;
  for (; j + width <= columns; j += width) {
    Vec<Full> tile[kDepth][kTileVecs];
#pragma GCC unroll 4
    for (int k = 0; k < kDepth; ++k) {
      prefetch<3>(elementAt(ahead, kType, k * problem.n + j), width * elementBytes(kType));
      const void* row = elementAt(b, kType, k * problem.n + j);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVecs; ++v) tile[k][v] = loadAs(d, kType, elementAt(row, kType, v * kLanes<Full>));
    }
    addTile(tile, rows, sums + j);
  }
  if (j == columns) return;
  Vec<Full> tile[kDepth][kTileVecs];
  for (int k = 0; k < kDepth; ++k) {
    alignas(64) float row[width] = {};
    convertRow(kType, elementAt(b, kType, k * problem.n + j), DataType::kFloat32, row, columns - j);
    for (int v = 0; v < kTileVecs; ++v) tile[k][v] = hn::Load(d, row + v * kLanes<Full>);
  }
  addTile(tile, rows, sums + j);
}

// `b` is the first row of the block, at the first column of the unit.
template <DataType kType, class Rows>
LA_INLINE void addPlainBlock(const MatmulProblem& problem, const void* b, Index k0, Index depth, Index columns,
                             const Rows& rows, float* sums) {
  const auto row = [&](Index k) { return elementAt(b, kType, k * problem.n); };
  Index k = 0;
  for (; k + kTileDepth <= depth; k += kTileDepth) {
    const void* ahead = row(minimum(k + kMatmulRowsAhead, problem.k - k0 - kTileDepth));
    addRowsOfB<kType, kTileDepth>(problem, row(k), columns, ahead, rows.from(k), sums);
  }
  for (; k < depth; ++k) addRowsOfB<kType, 1>(problem, row(k), columns, row(k), rows.from(k), sums);
}

// B transposed, n × k: a tile is eight elements of as many rows as there are lanes, brought there in registers.
constexpr int kSquareDepth = 8;
constexpr Index kMatmulStreams = 16;  // rows that are read side by side: enough sums at once to hide a multiply-add
constexpr Index kMatmulBytesAhead = 256;

using LaneBits = hn::RebindToUnsigned<Full>;

// Block i of 128 bits from source(i·kSquare).
template <class D, class Source>
LA_INLINE Vec<D> joinBlocks(D d, const Source& source) {
  if constexpr (kLanes<D> == kSquare) {
    return hn::LoadU(d, static_cast<const std::uint32_t*>(source(0)));
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, joinBlocks(half, [&](Index r) { return source(r + kLanes<D> / 2); }),
                       joinBlocks(half, source));
  }
}

// lanes[c] = word c of 128 bits of each row; row r lies at source(r).
template <class Source>
LA_INLINE void blocksToLanes(const Source& source, Vec<LaneBits> (&lanes)[kSquare]) {
  const LaneBits d;
  const auto load = [&](Index i) { return joinBlocks(d, [&](Index r) { return source(r + i); }); };
  const auto r0 = load(0), r1 = load(1), r2 = load(2), r3 = load(3);
  const auto lower02 = hn::InterleaveLower(d, r0, r2), upper02 = hn::InterleaveUpper(d, r0, r2);
  const auto lower13 = hn::InterleaveLower(d, r1, r3), upper13 = hn::InterleaveUpper(d, r1, r3);
  lanes[0] = hn::InterleaveLower(d, lower02, lower13);
  lanes[1] = hn::InterleaveUpper(d, lower02, lower13);
  lanes[2] = hn::InterleaveLower(d, upper02, upper13);
  lanes[3] = hn::InterleaveUpper(d, upper02, upper13);
}

// tile[k][r] = element k of row r. Elements of 16 bits come to their lanes as pairs.
template <DataType kType, class Source>
LA_INLINE void rowsToTile(const Source& source, Vec<Full> (&tile)[kSquareDepth][1]) {
  const Full d;
  const LaneBits bits;
  Vec<LaneBits> lanes[kSquare];
  if constexpr (kType == DataType::kFloat32) {
#pragma GCC unroll 2
    for (Index half = 0; half < 2; ++half) {
      blocksToLanes([&](Index r) { return elementAt(source(r), kType, half * kSquare); }, lanes);
#pragma GCC unroll 4
      for (Index c = 0; c < kSquare; ++c) tile[half * kSquare + c][0] = hn::BitCast(d, lanes[c]);
    }
  } else {
    blocksToLanes(source, lanes);
#pragma GCC unroll 4
    for (Index c = 0; c < kSquare; ++c) {
      if constexpr (kType == DataType::kBfloat16) {
        tile[2 * c][0] = hn::BitCast(d, hn::ShiftLeft<16>(lanes[c]));
        tile[2 * c + 1][0] = hn::BitCast(d, hn::And(lanes[c], hn::Set(bits, 0xFFFF0000u)));
      } else {
        alignas(64) std::uint16_t pair[2][kLanes<Full>];
        storeLow16(d, hn::And(lanes[c], hn::Set(bits, 0xFFFFu)), pair[0]);
        storeLow16(d, hn::ShiftRight<16>(lanes[c]), pair[1]);
        tile[2 * c][0] = loadAs(d, kType, pair[0]);
        tile[2 * c + 1][0] = loadAs(d, kType, pair[1]);
      }
    }
  }
}

// `b` is the row of B of the unit's first column, from the block's first element on.
template <DataType kType, class Rows>
LA_INLINE void addTransposedBlock(const MatmulProblem& problem, const void* b, Index depth, Index columns,
                                  const Rows& rows, float* sums) {
  constexpr Index lanes = kLanes<Full>;
  constexpr Index line = 64 / (kType == DataType::kFloat32 ? 4 : 2);
  for (Index j = 0; j < columns; j += kMatmulStreams) {
    const Index count = minimum(kMatmulStreams, columns - j);
    const void* first[kMatmulStreams];
    for (Index r = 0; r < kMatmulStreams; ++r) {
      // Lanes past the last column repeat it.
      first[r] = elementAt(b, kType, (j + minimum(r, count - 1)) * problem.k);
    }
    const auto row = [&](Index r, Index k) { return elementAt(first[r], kType, k); };
    // From a row of this group to that of the next, where there is a whole one.
    const Index toNext = j + 2 * kMatmulStreams <= columns ? kMatmulStreams * problem.k : 0;
    Index k = 0;
    for (; k + kSquareDepth <= depth; k += kSquareDepth) {
      if (k % line == 0) {
        const Index ahead = k + kMatmulBytesAhead / elementBytes(kType);
        const Index shift = ahead < depth ? ahead : toNext + minimum(ahead - depth, depth - 1);
        for (Index r = 0; r < count; ++r) prefetch<3>(row(r, shift), 1);
      }
      for (Index lane = 0; lane < count; lane += lanes) {
        Vec<Full> tile[kSquareDepth][1];
        rowsToTile<kType>([&](Index r) { return row(lane + r, k); }, tile);
        addTile(tile, rows.from(k), sums + j + lane);
      }
    }
    for (Index lane = 0; k < depth && lane < count; lane += lanes) {
      const Index rest = depth - k;
      alignas(64) std::byte ends[lanes][4 * kSquareDepth] = {};
      for (Index r = 0; r < lanes; ++r) {
        __builtin_memcpy(ends[r], row(lane + r, k), static_cast<std::size_t>(rest * elementBytes(kType)));
      }
      Vec<Full> tile[kSquareDepth][1];
      rowsToTile<kType>([&](Index r) { return static_cast<const void*>(ends[r]); }, tile);
      for (Index i = 0; i < rest; ++i) {
        const Vec<Full> one[1][1] = {{tile[i][0]}};
        addTile(one, rows.from(k + i), sums + j + lane);
      }
    }
  }
}

// `memory` takes a block of A and the sums of all rows.
template <bool kTransposed, DataType kType>
static void matmulFewUnit(const MatmulProblem& problem, Index batch, Index i0, Index count, Index j0, Index columns,
                          float* memory) {
  const void* a = elementAt(problem.a, problem.typeA, problem.offsetsA[batch]);
  const void* b = elementAt(problem.b, kType, problem.offsetsB[batch]);
  float* sums = memory;
  float* rowsOfA = sums + kMatmulFewRows * kMatmulFewStride;
  const RowsOfA<kTransposed> rows = {rowsOfA, count};
  const auto bytes = static_cast<std::size_t>(4 * roundUp(columns, maximum(kMatmulStreams, kTileVecs * kLanes<Full>)));
  for (Index r = 0; r < count; ++r) __builtin_memset(sums + r * kMatmulFewStride, 0, bytes);
  for (Index k0 = 0; k0 < problem.k; k0 += kMatmulDepth) {
    const Index depth = minimum(kMatmulDepth, problem.k - k0);
    packRows<kTransposed>(problem, a, i0, count, k0, depth, rowsOfA);
    if (problem.transposeB) {
      addTransposedBlock<kType>(problem, elementAt(b, kType, j0 * problem.k + k0), depth, columns, rows, sums);
    } else {
      addPlainBlock<kType>(problem, elementAt(b, kType, k0 * problem.n + j0), k0, depth, columns, rows, sums);
    }
  }
  storeRows(problem, sums, kMatmulFewStride, count, columns,
            elementAt(problem.c, problem.typeC, (batch * problem.m + i0) * problem.n + j0));
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_MATMUL_FEW_H_
