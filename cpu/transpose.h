// Rows in memory to lanes of a panel, and back.
#ifndef LOWRANK_ATTENTION_CPU_TRANSPOSE_H_
#define LOWRANK_ATTENTION_CPU_TRANSPOSE_H_

#include "cpu/simd.h"

namespace lowrank_attention::HWY_NAMESPACE {

// So many rows are transposed together: the widest square that every instruction set transposes in registers.
constexpr Index kSquare = 4;
using SquareTag = hn::CappedTag<float, kSquare>;

// Element (i, j) of a square that is read lies at source(j) + i, of the one that is written at target(i) + j, and is
// the former's transpose times lane j of `factors`.
template <class Source, class Target>
LA_INLINE void transposeSquare(const Source& source, const Target& target, Vec<SquareTag> factors) {
  const SquareTag d;
  const auto row = [&](Index j) { return hn::Mul(hn::LoadU(d, source(j)), factors); };
  const auto r0 = row(0), r1 = row(1), r2 = row(2), r3 = row(3);
  const auto lower02 = hn::InterleaveLower(d, r0, r2), upper02 = hn::InterleaveUpper(d, r0, r2);
  const auto lower13 = hn::InterleaveLower(d, r1, r3), upper13 = hn::InterleaveUpper(d, r1, r3);
  hn::StoreU(hn::InterleaveLower(d, lower02, lower13), d, target(0));
  hn::StoreU(hn::InterleaveUpper(d, lower02, lower13), d, target(1));
  hn::StoreU(hn::InterleaveLower(d, upper02, upper13), d, target(2));
  hn::StoreU(hn::InterleaveUpper(d, upper02, upper13), d, target(3));
}

// panel[c][r] = rows[r][c]·factor for kRows rows and `count` columns c; panel rows are `width` apart.
template <Index kRows>
LA_INLINE void rowsToLanes(const float* const* rows, Index count, float factor, float* panel, Index width) {
  Index c = 0;
  if constexpr (kRows == kSquare) {
    const auto factors = hn::Set(SquareTag(), factor);
    for (; c + kSquare <= count; c += kSquare) {
      transposeSquare([&](Index r) { return rows[r] + c; }, [&](Index i) { return panel + (c + i) * width; }, factors);
    }
  }
  for (; c < count; ++c) {
    for (Index r = 0; r < kRows; ++r) panel[c * width + r] = rows[r][c] * factor;
  }
}

// The way back: rows[r][c] = panel[c][r]·factors[r].
template <Index kRows>
LA_INLINE void lanesToRows(const float* panel, Index width, Index count, const float* factors, float* const* rows) {
  Index c = 0;
  if constexpr (kRows == kSquare) {
    const auto perLane = hn::LoadU(SquareTag(), factors);
    for (; c + kSquare <= count; c += kSquare) {
      transposeSquare([&](Index i) { return panel + (c + i) * width; }, [&](Index r) { return rows[r] + c; }, perLane);
    }
  }
  for (; c < count; ++c) {
    for (Index r = 0; r < kRows; ++r) rows[r][c] = panel[c * width + r] * factors[r];
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_TRANSPOSE_H_
