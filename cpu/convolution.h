// The residual of Nyström attention: a depthwise convolution of the values along the sequence. See core/nystrom.h.
//
// Every channel of a head has the same filter, so that a block of rows is a banded product filter [rows][positions] ·
// values [positions][channels], whose left side is the filter itself, read one element further back a row: the register
// tile of the package takes that as strides of −1 and 1. Beside the band it multiplies by the zeros around the filter.
#ifndef LOWRANK_ATTENTION_CPU_CONVOLUTION_H_
#define LOWRANK_ATTENTION_CPU_CONVOLUTION_H_

#include "cpu/landmarks.h"
#include "cpu/pseudo_inverse.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kConvolutionRows = 64;        // output rows of a unit
constexpr Index kConvolutionPositions = 256;  // rows of values converted at a time
constexpr Index kFilterMargin = kMaxRows<2> - 1;

// Taps on each side of the middle that meet a value at all.
LA_INLINE Index convolutionReach(const NystromProblem& problem) {
  return minimum(problem.convSize / 2, maximum(problem.qkv.keys, 1) - 1);
}

// Scratch of one worker.
struct ConvolutionScratch {
  TiledMatrix sums;         // [kConvolutionRows][valueDim]
  TiledMatrix values;       // [kConvolutionPositions][valueDim]
  float* filter = nullptr;  // the taps within reach between zeros
};

LA_INLINE ConvolutionScratch placeConvolution(const NystromProblem& problem, Arena& arena) {
  ConvolutionScratch scratch;
  scratch.sums = takeTiled(arena, kConvolutionRows, problem.qkv.valueDim);
  scratch.values = takeTiled(arena, kConvolutionPositions, problem.qkv.valueDim);
  scratch.filter = arena.take<float>(2 * convolutionReach(problem) + 1 + 2 * kFilterMargin);
  return scratch;
}

// sums[i] += Σₜ filter[t]·value[row i + t − convSize/2] over valid keys, for the rows of a block.
LA_INLINE void addConvolution(const NystromProblem& problem, Index item, Index head, KeyRange block,
                              const ConvolutionScratch& scratch, const Execution& execution) {
  const Full d;
  const Qkv& qkv = problem.qkv;
  const Index reach = convolutionReach(problem);
  const Index taps = 2 * reach + 1;
  const float* filter = problem.convFilters + head * problem.convHeadStride + problem.convSize / 2 - reach;
  for (Index t = -kFilterMargin; t < taps + kFilterMargin; ++t) {
    scratch.filter[kFilterMargin + t] = t >= 0 && t < taps ? filter[t] : 0;
  }
  const std::uint8_t* mask = keySource(problem, item).mask;
  const TiledMatrix& values = scratch.values;
  const Index kvHead = head / (qkv.heads / qkv.kvHeads);
  const Index end = minimum(qkv.keys, block.end + reach);
  for (Index tile = maximum(0, block.begin - reach); tile < end; tile += kConvolutionPositions) {
    if (execution.aborted()) return;
    const Index tileEnd = minimum(tile + kConvolutionPositions, end);
    for (Index j = tile; j < tileEnd; ++j) {
      float* row = values.row(j - tile);
      if (isLive(mask, j)) {
        convertRow(qkv.keyType, rowOf(qkv.value, qkv.keyType, item, kvHead, j), DataType::kFloat32, row, qkv.valueDim);
      } else {
        __builtin_memset(row, 0, static_cast<std::size_t>(4 * qkv.valueDim));
      }
    }
    for (Index c = 0; c < qkv.valueDim; c += kTileColumns) {
      forRowGroups<kMaxRows<2>>(block.end - block.begin, [&](Index first, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        const Index i = block.begin + first;
        const Index from = maximum(tile, i - reach);
        const Index to = minimum(tileEnd, i + kRows + reach);
        if (from >= to) return;
        const auto place = [&](int r, int v) { return scratch.sums.row(first + r) + c + v * kLanes<Full>; };
        outerProduct<kRows, 2>(
            d, scratch.filter + kFilterMargin + from - i + reach, -1, 1, values.row(from - tile) + c, values.stride,
            to - from, [&](int r, int v) { return hn::Load(d, place(r, v)); },
            [&](int r, int v, Vec<Full> sum) { hn::Store(sum, d, place(r, v)); });
      });
    }
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_CONVOLUTION_H_
