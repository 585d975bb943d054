// Attention of one to four query rows over a range of keys: the decode step. Every key and value is used so few times
// that reading it is the cost, so this loop reads memory strictly forwards, whole rows at a time, where the panel loop
// of cpu/flash.h would touch a dozen rows in turn. Lanes run along the head here:
//   S [T][W]        = Σ over lanes of key row · query row, W = 1, 2 or 4
//   sum [rows][dv]  = sum·2^(old max − max) + Σ P [T][row] · value row
// The softmax between the two, the masks, and the state a range leaves behind are those of the panel loop.
#ifndef LOWRANK_ATTENTION_CPU_STREAM_H_
#define LOWRANK_ATTENTION_CPU_STREAM_H_

#include <hwy/cache_control.h>

#include "cpu/flash.h"

namespace lowrank_attention::HWY_NAMESPACE {

template <int kWidth>
using StreamPanel = PanelShape<hn::CappedTag<float, kWidth>, 1>;
constexpr Index kStreamRows = 4;
// Head sizes are padded to whole vectors of the widest instruction set, so that the formula is one for all.
constexpr Index kStreamPad = 16;

// Scratch beside that of the panel loop.
struct StreamScratch {
  float* query = nullptr;  // [4][padded headDim]
  float* sum = nullptr;    // [4][padded valueDim]
};

LA_INLINE Index streamScratchFloats(const FullProblem& problem) {
  return kStreamRows * (roundUp(problem.headDim, kStreamPad) + roundUp(problem.valueDim, kStreamPad));
}

LA_INLINE StreamScratch placeStreamScratch(const FullProblem& problem, float* memory) {
  return {memory, memory + kStreamRows * roundUp(problem.headDim, kStreamPad)};
}

// Rows of a head as float32 whose length is a whole number of vectors: where they lie, or padded with zeros.
LA_INLINE TileRows streamRows(const PagedRows& rows, DataType type, Index head, Index dim, KeyRange keys,
                              float* staging) {
  const void* source = rowsOnPage(rows, type, head, keys);
  if (type == DataType::kFloat32 && dim % kLanes<Full> == 0) return {static_cast<const float*>(source), rows.rowStride};
  const Index padded = roundUp(dim, kStreamPad);
  for (Index j = 0; j < keys.end - keys.begin; ++j) {
    float* target = staging + j * padded;
    convertRow(type, elementAt(source, type, j * rows.rowStride), DataType::kFloat32, target, dim);
    for (Index c = dim; c < padded; ++c) target[c] = 0;
  }
  return {staging, padded};
}

using Four = hn::CappedTag<float, 4>;

// [Σ a, Σ b, Σ c, Σ d], each over all lanes.
template <class D>
LA_INLINE Vec<Four> sumsOfFour(D d, Vec<D> a, Vec<D> b, Vec<D> c, Vec<D> e) {
  if constexpr (kLanes < D >> 4) {
    const hn::Half<D> half;
    const auto fold = [&](Vec<D> v) { return hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)); };
    return sumsOfFour(half, fold(a), fold(b), fold(c), fold(e));
  } else {
    const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
    const auto ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
    return hn::Add(hn::ConcatLowerLower(d, ce, ab), hn::ConcatUpperUpper(d, ce, ab));
  }
}

// Dot products computed side by side: enough to hide the latency of a multiply-add and to use every load of a query
// vector more than once.
constexpr int kStreamDots = 8;

// scores[j][r] = key row j · query row r for kKeys keys; kKeys·kRows <= kStreamDots.
template <int kRows, int kKeys>
LA_INLINE void streamDots(const float* key, Index keyStride, const float* query, Index queryStride, Index dim,
                          float* scores, Index scoreStride) {
  const Full d;
  Vec<Full> sum[kStreamDots];
#pragma GCC unroll 8
  for (int i = 0; i < kStreamDots; ++i) sum[i] = hn::Zero(d);
  for (Index c = 0; c < dim; c += kLanes<Full>) {
    Vec<Full> rows[kKeys];
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) rows[j] = hn::LoadU(d, key + j * keyStride + c);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto q = hn::Load(d, query + r * queryStride + c);
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) sum[j * kRows + r] = hn::MulAdd(rows[j], q, sum[j * kRows + r]);
    }
  }
  const Four four;
  alignas(16) float list[kStreamDots];
  hn::Store(sumsOfFour(d, sum[0], sum[1], sum[2], sum[3]), four, list);
  if constexpr (kKeys * kRows > 4) hn::Store(sumsOfFour(d, sum[4], sum[5], sum[6], sum[7]), four, list + 4);
  for (int j = 0; j < kKeys; ++j) {
    for (int r = 0; r < kRows; ++r) scores[j * scoreStride + r] = list[j * kRows + r];
  }
}

// Rows are asked for this many rows before they are used. The processor's own prefetcher stops at the end of every
// memory page and of every tile.
constexpr Index kRowsAhead = 16;

// Asks for row j + kRowsAhead of a tile or, past its end, for a row of the tile that is read next.
LA_INLINE void prefetchRow(const TileRows& tile, Index count, const TileRows& next, Index dim, Index j) {
  const Index ahead = j + kRowsAhead;
  const float* row = ahead < count ? tile.data + ahead * tile.rowStride : next.data + (ahead - count) * next.rowStride;
  for (Index c = 0; c < dim; c += 16) hwy::Prefetch(row + c);
}

template <int kRows>
LA_INLINE void streamScores(const TileRows& key, Index count, const TileRows& next, const float* query,
                            Index queryStride, Index dim, float* scores, Index scoreStride) {
  constexpr int kKeys = kStreamDots / kRows;
  Index j = 0;
  for (; j + kKeys <= count; j += kKeys) {
    for (Index row = j; row < j + kKeys; ++row) prefetchRow(key, count, next, dim, row);
    streamDots<kRows, kKeys>(key.data + j * key.rowStride, key.rowStride, query, queryStride, dim,
                             scores + j * scoreStride, scoreStride);
  }
  for (; j < count; ++j) {
    streamDots<kRows, 1>(key.data + j * key.rowStride, key.rowStride, query, queryStride, dim, scores + j * scoreStride,
                         scoreStride);
  }
}

// sum[r][c0 …] += Σ_j weights[j][r] · value row j, for kVecs vectors of the value.
template <int kRows, int kVecs>
LA_INLINE void streamValues(const TileRows& value, Index count, const float* weights, Index weightStride, Index c0,
                            float* sum, Index sumStride) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  Vec<Full> total[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) total[r][v] = hn::Load(d, sum + r * sumStride + c0 + v * n);
  }
  for (Index j = 0; j < count; ++j) {
    const float* row = value.data + j * value.rowStride + c0;
    Vec<Full> column[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) column[v] = hn::LoadU(d, row + v * n);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto weight = hn::Set(d, weights[j * weightStride + r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) total[r][v] = hn::MulAdd(weight, column[v], total[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) hn::Store(total[r][v], d, sum + r * sumStride + c0 + v * n);
  }
}

// Values are read in strips of so many keys: small enough that the strip is still in L1 when its next columns are due.
constexpr Index kStreamStrip = 16;

template <class Shape, int kRows>
LA_INLINE void streamTile(const FullProblem& problem, const FullSequence& sequence, const Panel& panel, KeyRange keys,
                          const TileRows& key, const TileRows& value, const FlashScratch& scratch,
                          const StreamScratch& stream) {
  constexpr Index n = kLanes<Full>;
  constexpr Index width = Shape::kWidth;
  const Index count = keys.end - keys.begin;
  const Index keyDim = roundUp(problem.headDim, n);
  const Index valueDim = roundUp(problem.valueDim, n);
  const Index sumStride = roundUp(problem.valueDim, kStreamPad);
  streamScores<kRows>(key, count, value, stream.query, roundUp(problem.headDim, kStreamPad), keyDim, scratch.scores,
                      width);
  alignas(64) float decay[width];
  const bool hidden = weighTile<Shape>(problem, sequence, panel, keys, scratch, decay);
  for (Index r = 0; r < kRows; ++r) {
    for (Index c = 0; c < valueDim; ++c) stream.sum[r * sumStride + c] *= decay[r];
  }
  if (hidden && !FiniteTile(value, count, problem.valueDim).holds()) {
    addVisibleValues(value, count, problem.valueDim, scratch.scores, width, kRows, stream.sum, sumStride, 1);
    return;
  }
  const TileRows nextKey = {key.data + count * key.rowStride, key.rowStride};
  // Eight accumulators hide the latency of a multiply-add; with 32 registers sixteen save weights being read again.
  constexpr int kVecs = maximum(2, (kRegisters == 32 && kRows > 2 ? 16 : 8) / (kRows == 3 ? 4 : kRows));
  for (Index j = 0; j < count; j += kStreamStrip) {
    const Index rows = minimum(kStreamStrip, count - j);
    for (Index row = j; row < j + rows; ++row) prefetchRow(value, count, nextKey, valueDim, row);
    const TileRows strip = {value.data + j * value.rowStride, value.rowStride};
    const float* weights = scratch.scores + j * width;
    Index c = 0;
    for (; c + kVecs * n <= valueDim; c += kVecs * n) {
      streamValues<kRows, kVecs>(strip, rows, weights, width, c, stream.sum, sumStride);
    }
    if constexpr (kVecs > 4) {
      for (; c + 4 * n <= valueDim; c += 4 * n) {
        streamValues<kRows, 4>(strip, rows, weights, width, c, stream.sum, sumStride);
      }
    }
    for (; c < valueDim; c += n) streamValues<kRows, 1>(strip, rows, weights, width, c, stream.sum, sumStride);
  }
}

// As flashForward, for the one panel of a sequence of at most four rows, starting from no keys seen.
template <class Shape, int kRows>
LA_INLINE void streamForward(const FullProblem& problem, const FullSequence& sequence, const Panel& panel,
                             KeyRange keys, const FlashScratch& scratch, const StreamScratch& stream,
                             const Execution& execution) {
  constexpr Index width = Shape::kWidth;
  const Index queryStride = roundUp(problem.headDim, kStreamPad);
  const Index sumStride = roundUp(problem.valueDim, kStreamPad);
  for (Index r = 0; r < kRows; ++r) {
    for (Index c = 0; c < queryStride; ++c) {
      stream.query[r * queryStride + c] = c < problem.headDim ? panel.query[c * width + r] : 0;
    }
    for (Index c = 0; c < sumStride; ++c) stream.sum[r * sumStride + c] = 0;
  }
  for (Index i = 0; i < kKeyTile * width; ++i) scratch.scores[i] = 0;  // lanes that no row stands in
  forTiles(keys, [&](KeyRange tile) {
    if (execution.aborted()) return false;
    const TileRows key = streamRows(sequence.key, problem.keyType, panel.kvHead, problem.headDim, tile, scratch.key);
    const TileRows value =
        streamRows(sequence.value, problem.keyType, panel.kvHead, problem.valueDim, tile, scratch.value);
    streamTile<Shape, kRows>(problem, sequence, panel, tile, key, value, scratch, stream);
    return true;
  });
  for (Index r = 0; r < kRows; ++r) {
    for (Index c = 0; c < problem.valueDim; ++c) panel.output[c * width + r] = stream.sum[r * sumStride + c];
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_STREAM_H_
