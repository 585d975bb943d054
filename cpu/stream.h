// Attention of one to four query rows over a range of keys: the decode step. Every key and value is used so few times
// that reading it is the cost, so this loop reads memory strictly forwards, whole rows at a time, where the panel loop
// of cpu/flash.h would touch a dozen rows in turn. Lanes run along the head here:
//   S [T][W]        = Σ over lanes of key row · query row, W = 1, 2 or 4
//   sum [rows][dv]  = sum·2^(old max − max) + Σ P [T][row] · value row
// The softmax between the two, the masks, and the state a range leaves behind are those of the panel loop.
#ifndef LOWRANK_ATTENTION_CPU_STREAM_H_
#define LOWRANK_ATTENTION_CPU_STREAM_H_

#include "cpu/flash.h"

namespace lowrank_attention::HWY_NAMESPACE {

template <int kWidth>
using StreamPanel = PanelShape<hn::CappedTag<float, kWidth>, 1>;
constexpr Index kStreamRows = 4;
// Keys of a tile. Short, so that the softmax between its keys and its values, which gives memory nothing to do, is soon
// over; of a single row, whose softmax costs most a key, twice as many. While a tile is worked on, the next one is
// asked for, a row at a time: asked for all at once it would hold up the loads of this one, and left to the processor's
// own prefetcher it comes too late (docs/performance.md).
template <int kRows>
constexpr Index kStreamTile = kRows == 1 ? 32 : 16;
// 256 bits are enough to keep up with memory, and measured no slower than 512.
using StreamTag = hn::CappedTag<float, 8>;
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

// Rows of a tile in the element type of the loop; their length is a whole number of vectors.
template <DataType kType>
struct StreamRows {
  const void* data;
  Index rowStride;
  const void* ahead;  // the rows of the next tile, at the same stride

  // The elements of row j from c on.
  LA_METHOD Vec<StreamTag> load(Index j, Index c) const {
    return loadAs(StreamTag(), kType, elementAt(data, kType, j * rowStride + c));
  }
  LA_METHOD StreamRows from(Index j) const {
    return {elementAt(data, kType, j * rowStride), rowStride, elementAt(ahead, kType, j * rowStride)};
  }
  // Asks for `count` elements from c on of the next tile's row j.
  LA_METHOD void fetchAhead(Index j, Index c, Index count) const {
    prefetch<3>(elementAt(ahead, kType, j * rowStride + c), count * elementBytes(kType));
  }
};

// Whether rows of so many elements can be used where they lie.
LA_INLINE bool wholeVectors(Index dim) { return dim % kLanes<StreamTag> == 0; }

// Rows of a head: where they lie in type kType, or converted to float32 and padded with zeros. `next` are at least as
// many rows.
template <DataType kType>
LA_INLINE StreamRows<kType> streamRows(const PagedRows& rows, DataType type, Index head, Index dim, KeyRange keys,
                                       KeyRange next, float* staging) {
  const void* source = rowsOnPage(rows, type, head, keys);
  const void* ahead = rowsOnPage(rows, type, head, next);
  if (kType == type && wholeVectors(dim)) return {source, rows.rowStride, ahead};
  const Index padded = roundUp(dim, kStreamPad);
  for (Index j = 0; j < keys.end - keys.begin; ++j) {
    float* target = staging + j * padded;
    convertRow(type, elementAt(source, type, j * rows.rowStride), DataType::kFloat32, target, dim);
    for (Index c = dim; c < padded; ++c) target[c] = 0;
  }
  return {staging, padded, staging};
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
template <int kRows, int kKeys, DataType kType>
LA_INLINE void streamDots(const StreamRows<kType>& key, const float* query, Index queryStride, Index dim, float* scores,
                          Index scoreStride) {
  const StreamTag d;
  Vec<StreamTag> sum[kStreamDots];
#pragma GCC unroll 8
  for (int i = 0; i < kStreamDots; ++i) sum[i] = hn::Zero(d);
  // Whole rows one after the other, at most two at a time: lines that are asked for out of order escape the processor's
  // prefetcher, which costs a third of the bandwidth.
  constexpr int kAbreast = kRows > 2 && kKeys > 1 ? 2 : 1;
#pragma GCC unroll 8
  for (int j0 = 0; j0 < kKeys; j0 += kAbreast) {
#pragma GCC unroll 2
    for (int j = 0; j < kAbreast; ++j) key.fetchAhead(j0 + j, 0, dim);
    for (Index c = 0; c < dim; c += kLanes<StreamTag>) {
      Vec<StreamTag> rows[kAbreast];
#pragma GCC unroll 2
      for (int j = 0; j < kAbreast; ++j) rows[j] = key.load(j0 + j, c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto q = hn::Load(d, query + r * queryStride + c);
#pragma GCC unroll 2
        for (int j = 0; j < kAbreast; ++j) {
          Vec<StreamTag>& total = sum[(j0 + j) * kRows + r];
          total = hn::MulAdd(rows[j], q, total);
        }
      }
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

template <int kRows, DataType kType>
LA_INLINE void streamScores(const StreamRows<kType>& key, Index count, const float* query, Index queryStride, Index dim,
                            float* scores, Index scoreStride) {
  constexpr int kKeys = kStreamDots / kRows;
  Index j = 0;
  for (; j + kKeys <= count; j += kKeys) {
    streamDots<kRows, kKeys>(key.from(j), query, queryStride, dim, scores + j * scoreStride, scoreStride);
  }
  for (; j < count; ++j) {
    streamDots<kRows, 1>(key.from(j), query, queryStride, dim, scores + j * scoreStride, scoreStride);
  }
}

// sum[r][c0 …] += Σ_j weights[j][r] · value row j, for kVecs vectors of the value; `fetching` is whether to ask for
// those of the next tile meanwhile.
template <int kRows, int kVecs, DataType kType>
LA_INLINE void streamValues(const StreamRows<kType>& value, Index count, const float* weights, Index weightStride,
                            Index c0, float* sum, Index sumStride, bool fetching) {
  const StreamTag d;
  constexpr Index n = kLanes<StreamTag>;
  Vec<StreamTag> total[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) total[r][v] = hn::Load(d, sum + r * sumStride + c0 + v * n);
  }
  for (Index j = 0; j < count; ++j) {
    if (fetching) value.fetchAhead(j, c0, kVecs * n);
    Vec<StreamTag> column[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) column[v] = value.load(j, c0 + v * n);
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

// The tile's values as float32, for what only a tile with hidden keys needs.
template <DataType kType>
LA_INLINE TileRows plainRows(const StreamRows<kType>& rows, Index count, Index dim, float* staging) {
  if (kType == DataType::kFloat32) return {static_cast<const float*>(rows.data), rows.rowStride};
  for (Index j = 0; j < count; ++j) {
    convertRow(kType, rows.from(j).data, DataType::kFloat32, staging + j * dim, dim);
  }
  return {staging, dim};
}

template <class Shape, int kRows, DataType kType>
LA_INLINE void streamTile(const FullProblem& problem, const FullSequence& sequence, const Panel& panel, KeyRange keys,
                          const StreamRows<kType>& key, const StreamRows<kType>& value, const FlashScratch& scratch,
                          const StreamScratch& stream) {
  constexpr Index n = kLanes<StreamTag>;
  constexpr Index width = Shape::kWidth;
  const Index count = keys.end - keys.begin;
  const Index keyDim = roundUp(problem.headDim, n);
  const Index valueDim = roundUp(problem.valueDim, n);
  const Index sumStride = roundUp(problem.valueDim, kStreamPad);
  streamScores<kRows>(key, count, stream.query, roundUp(problem.headDim, kStreamPad), keyDim, scratch.scores, width);
  alignas(64) float decay[width];
  const bool hidden = weighTile<Shape>(problem, sequence, panel, keys, scratch, decay);
  for (Index r = 0; r < kRows; ++r) {
    for (Index c = 0; c < valueDim; ++c) stream.sum[r * sumStride + c] *= decay[r];
  }
  if (hidden) {
    const TileRows plain = plainRows(value, count, problem.valueDim, scratch.value);
    if (!FiniteTile(plain, count, problem.valueDim).holds()) {
      addVisibleValues(plain, count, problem.valueDim, scratch.scores, width, kRows, stream.sum, sumStride, 1);
      return;
    }
  }
  // Up to eight vectors of a row at once, so that memory is read forwards; the passes for further query rows find the
  // tile in L1. Eight accumulators hide the latency of a multiply-add, and fit with 16 registers.
  constexpr int kAbreast = minimum(kRows, kRegisters / 16);
  for (int r = 0; r < kRows; r += kAbreast) {
    constexpr int kRest = kRows % kAbreast;
    const auto pass = [&](auto rows) {
      constexpr int kPass = decltype(rows)::value;
      float* sum = stream.sum + r * sumStride;
      const float* weights = scratch.scores + r;
      Index c = 0;
      for (; c + 8 * n <= valueDim; c += 8 * n) {
        streamValues<kPass, 8>(value, count, weights, width, c, sum, sumStride, r == 0);
      }
      for (; c + 4 * n <= valueDim; c += 4 * n) {
        streamValues<kPass, 4>(value, count, weights, width, c, sum, sumStride, r == 0);
      }
      for (; c < valueDim; c += n) streamValues<kPass, 1>(value, count, weights, width, c, sum, sumStride, r == 0);
    };
    if (kRest != 0 && r + kAbreast > kRows) {
      pass(Constant < kRest == 0 ? kAbreast : kRest > ());
    } else {
      pass(Constant<kAbreast>());
    }
  }
}

template <class Shape, int kRows, DataType kType>
LA_INLINE void streamTiles(const FullProblem& problem, const FullSequence& sequence, const Panel& panel, KeyRange keys,
                           const FlashScratch& scratch, const StreamScratch& stream, const Execution& execution) {
  constexpr Index kTile = kStreamTile<kRows>;
  forTiles(keys, kTile, [&](KeyRange tile) {
    if (execution.aborted()) return false;
    if (hiddenFromAll(problem, sequence, tile)) return true;
    // Where no whole tile follows, this one again, which is there already.
    const KeyRange next = tile.end + kTile <= keys.end ? KeyRange{tile.end, tile.end + kTile} : tile;
    const auto key =
        streamRows<kType>(sequence.key, problem.keyType, panel.kvHead, problem.headDim, tile, next, scratch.key);
    const auto value =
        streamRows<kType>(sequence.value, problem.keyType, panel.kvHead, problem.valueDim, tile, next, scratch.value);
    streamTile<Shape, kRows>(problem, sequence, panel, tile, key, value, scratch, stream);
    return true;
  });
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
  const bool inPlace = wholeVectors(problem.headDim) && wholeVectors(problem.valueDim);
  const auto run = [&](auto type) {
    streamTiles<Shape, kRows, decltype(type)::value>(problem, sequence, panel, keys, scratch, stream, execution);
  };
  if (inPlace && problem.keyType == DataType::kFloat16) {
    run(std::integral_constant<DataType, DataType::kFloat16>());
  } else if (inPlace && problem.keyType == DataType::kBfloat16) {
    run(std::integral_constant<DataType, DataType::kBfloat16>());
  } else {
    run(std::integral_constant<DataType, DataType::kFloat32>());
  }
  for (Index r = 0; r < kRows; ++r) {
    for (Index c = 0; c < problem.valueDim; ++c) panel.output[c * width + r] = stream.sum[r * sumStride + c];
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_STREAM_H_
