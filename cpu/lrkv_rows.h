// Rows made whole: base·A_h + latent_h·B_hᵀ, for keys that are stored whole or normalised, and for keys and values that
// exact attention is to meet.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_ROWS_H_
#define LOWRANK_ATTENTION_CPU_LRKV_ROWS_H_

#include "core/lrkv.h"
#include "cpu/microkernel.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Columns of a product that are computed together.
constexpr Index kStripWidth = 2 * kLanes<Full>;

// Floats between whole rows: whole strips, which hold a multiple of kRankStep.
LA_INLINE Index wholeStride(Index dim) { return roundUp(dim, kStripWidth); }
static_assert(kStripWidth % kRankStep == 0);

// Columns before those of each head where heads of such ranks stand side by side; of all heads for the last.
LA_INLINE Index ranksBefore(const LrkvFactors& factors, Index head) {
  Index sum = 0;
  for (Index h = 0; h < head; ++h) sum += factors.ranks[h];
  return sum;
}

LA_INLINE Index largestRank(const LrkvFactors& factors, Index heads) {
  Index most = 0;
  for (Index head = 0; head < heads; ++head) most = maximum(most, factors.ranks[head]);
  return most;
}

// Element (r, k) of rows that are multiplied lies at data[r·rowStride + k·depthStride].
struct RowsOf {
  const float* data = nullptr;
  Index rowStride = 0;
  Index depthStride = 1;

  LA_METHOD RowsOf from(Index row) const { return {data + row * rowStride, rowStride, depthStride}; }
};

// Floats of scratch for products with the factors of a side.
LA_INLINE Index stripFloats(const LrkvFactors& factors, Index heads) {
  return maximum(factors.baseDim, largestRank(factors, heads)) * kStripWidth;
}

// out[r] = or, where `adds`, += rows[r]·matrix, of `depth` rows and `columns` columns; the last strip of `out` is zero
// past the columns, if it is not added to. Rows of `out` are wholeStride(columns) apart. A row's sums run over the
// depth from first to last, whatever other rows there are.
static void multiplyRows(const RowsOf& rows, Index count, const float* matrix, Index depth, Index columns, bool adds,
                         float* out, float* strip) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Index stride = wholeStride(columns);
  for (Index c = 0; c < columns; c += kStripWidth) {
    const Index present = minimum(kStripWidth, columns - c);
    // A strip that one group of rows reads is read where it lies.
    const bool packed = present < kStripWidth || count > kMaxRows<2>;
    for (Index k = 0; packed && k < depth; ++k) {
      float* target = strip + k * kStripWidth;
      __builtin_memcpy(target, matrix + k * columns + c, static_cast<std::size_t>(4 * present));
      for (Index lane = present; lane < kStripWidth; ++lane) target[lane] = 0;
    }
    forRowGroups<kMaxRows<2>>(count, [&](Index first, auto size) {
      float* target = out + first * stride + c;
      outerProduct<decltype(size)::value, 2>(
          d, rows.from(first).data, rows.rowStride, rows.depthStride, packed ? strip : matrix + c,
          packed ? kStripWidth : columns, depth,
          [&](int r, int v) { return adds ? hn::LoadU(d, target + r * stride + v * n) : hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) { hn::StoreU(sum, d, target + r * stride + v * n); });
    });
  }
}

// whole[r] = base[r]·A_h, zero from `dim` on; without a gauge base[r] itself, without a base zero. base
// [count][baseDim].
LA_INLINE void wholeFromBase(const LrkvFactors& side, Index head, const float* base, Index count, float* whole,
                             float* strip) {
  if (side.gauge != nullptr && side.baseDim > 0) {
    multiplyRows({base, side.baseDim}, count, side.gauge + head * side.baseDim * side.dim, side.baseDim, side.dim,
                 false, whole, strip);
    return;
  }
  const Index stride = wholeStride(side.dim);
  for (Index r = 0; r < count; ++r) {
    float* row = whole + r * stride;
    __builtin_memcpy(row, base + r * side.baseDim, static_cast<std::size_t>(4 * side.baseDim));
    for (Index c = side.baseDim; c < stride; ++c) row[c] = 0;
  }
}

// whole[r] += latents[r]·B_hᵀ. `before` are the ranks of the heads before.
LA_INLINE void addLatents(const LrkvFactors& side, Index head, Index before, const RowsOf& latents, Index count,
                          float* whole, float* strip) {
  if (side.ranks[head] == 0) return;
  multiplyRows(latents, count, side.up + before * side.dim, side.ranks[head], side.dim, true, whole, strip);
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_ROWS_H_
