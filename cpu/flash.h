// Flash forward: a panel of query rows walks over a range of keys in one pass and never holds more than one tile of
// scores (Dao et al. 2022, arXiv 2205.14135; online softmax: Milakov & Gimelshein 2018, arXiv 1805.02867).
//
// For one tile of T keys and W query rows, with P = 2^(S − max):
//   S [T][W]        = key tile [T][headDim] · query [headDim][W]
//   output [dv][W]  = output·2^(old max − max) + value tileᵀ [dv][T] · P [T][W]
// A lane is a query row. So keys and values are read as they lie, row-major, one scalar broadcast at a time; the
// softmax runs down the columns with no sum across lanes; no head size needs a remainder loop; and a row's result
// cannot depend on its neighbours.
//
// Cost: 2·keys·(headDim + valueDim) operations a row and one 2^x a score; a key or value tile is read once a panel.
#ifndef LOWRANK_ATTENTION_CPU_FLASH_H_
#define LOWRANK_ATTENTION_CPU_FLASH_H_

#include <type_traits>

#include "core/execution.h"
#include "cpu/scores.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Scratch of one worker beside its panels.
struct FlashScratch {
  float* scores = nullptr;  // [kKeyTile][W]
  float* mask = nullptr;    // [kKeyTile][W]
  float* key = nullptr;     // [kKeyTile][headDim]
  float* value = nullptr;   // [kKeyTile][valueDim]
};

LA_INLINE Index flashScratchFloats(const FullProblem& problem, Index width) {
  return kKeyTile * (2 * width + roundUp(problem.headDim, 16) + roundUp(problem.valueDim, 16));
}

LA_INLINE FlashScratch placeFlashScratch(const FullProblem& problem, Index width, float* memory) {
  FlashScratch scratch;
  scratch.scores = memory;
  scratch.mask = scratch.scores + kKeyTile * width;
  scratch.key = scratch.mask + kKeyTile * width;
  scratch.value = scratch.key + kKeyTile * roundUp(problem.headDim, 16);
  return scratch;
}

// Rows of a tile as float32.
struct TileRows {
  const float* data;
  Index rowStride;
};

// Row keys.begin of a head; the whole range lies on its page.
LA_INLINE const void* rowsOnPage(const PagedRows& rows, DataType type, Index head, KeyRange keys) {
  const Index page = keys.begin / rows.pageRows;
  const Index first = head * rows.headStride + (keys.begin - page * rows.pageRows) * rows.rowStride;
  return elementAt(rows.pages[page], type, first);
}

// Rows [keys.begin, keys.end) of a head: where they lie if they are dense float32, else converted into `staging`.
// Rows far apart in memory are copied too: at a stride of a large power of two they would share few cache sets.
LA_INLINE TileRows tileRows(const PagedRows& rows, DataType type, Index head, Index dim, KeyRange keys,
                            float* staging) {
  const void* source = rowsOnPage(rows, type, head, keys);
  if (type == DataType::kFloat32 && rows.rowStride == dim) return {static_cast<const float*>(source), dim};
  // Rows without gaps between them are one row.
  const bool whole = rows.rowStride == dim;
  const Index count = whole ? 1 : keys.end - keys.begin;
  const Index length = whole ? (keys.end - keys.begin) * dim : dim;
  for (Index j = 0; j < count; ++j) {
    convertRow(type, elementAt(source, type, j * rows.rowStride), DataType::kFloat32, staging + j * length, length);
  }
  return {staging, dim};
}

// Asks for one of `parts` shares of the rows of a later tile, so that it is in L2 when its turn comes.
LA_INLINE void prefetchRows(const PagedRows& rows, DataType type, Index head, Index dim, KeyRange keys, Index part,
                            Index parts) {
  const Index count = keys.end - keys.begin;
  const void* first = rowsOnPage(rows, type, head, keys);
  for (Index j = count * part / parts; j < count * (part + 1) / parts; ++j) {
    prefetch<2>(elementAt(first, type, j * rows.rowStride), dim * elementBytes(type));
  }
}

// Whether every element of a tile is finite; looked up at most once a tile, and only when keys are hidden in it.
class FiniteTile {
 public:
  FiniteTile(const TileRows& tile, Index count, Index dim) : tile_(tile), count_(count), dim_(dim) {}

  LA_METHOD bool holds() {
    if (!known_) {
      finite_ = tile_.rowStride == dim_ ? finiteRow(tile_.data, count_ * dim_) : finiteRows();
      known_ = true;
    }
    return finite_;
  }

 private:
  LA_METHOD bool finiteRows() const {
    for (Index j = 0; j < count_; ++j) {
      if (!finiteRow(tile_.data + j * tile_.rowStride, dim_)) return false;
    }
    return true;
  }

  TileRows tile_;
  Index count_;
  Index dim_;
  bool known_ = false;
  bool finite_ = false;
};

// Lane i of a vector belongs to row i modulo lanes(Rows). Joins the lanes of each row, halves at a time.
template <class Rows, class D, class Join>
LA_INLINE Vec<Rows> foldRows([[maybe_unused]] D d, Vec<D> v, const Join& join) {
  if constexpr (kLanes<D> == kLanes<Rows>) {
    return v;
  } else {
    const hn::Half<D> half;
    return foldRows<Rows>(half, join(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), join);
  }
}

// Repeats the rows over all lanes.
template <class Rows, class D>
LA_INLINE Vec<D> spreadRows([[maybe_unused]] D d, Vec<Rows> rows) {
  if constexpr (kLanes<D> == kLanes<Rows>) {
    return rows;
  } else {
    const auto half = spreadRows<Rows>(hn::Half<D>(), rows);
    return hn::Combine(d, half, half);
  }
}

// Turns scores into weights 2^(score − max) in place, updates rowMax and rowSum, and gives in `decay` the factor
// 2^(old max − max) due to what was summed before. The weight of a hidden key (score −∞) is −0: zero in every sum,
// yet told apart from a visible key whose weight underflowed.
//
// A wide panel is done column by column of vectors. Of a narrow one, whose rows fill only part of a vector, a vector
// takes several keys; the lanes of one row are brought together at the end.
template <class Shape>
LA_INLINE void softmaxTile(const Panel& panel, Index count, float* scores, float* decay, bool anyHidden) {
  constexpr bool narrow = Shape::kWidth < kLanes<Full>;
  // Lanes [0, step) hold a vector's worth of (key, row) pairs; the next ones of the same rows follow at `stride`.
  using D = std::conditional_t<narrow, Full, typename Shape::Tag>;
  using Rows = typename Shape::Tag;
  const D d;
  constexpr Index n = kLanes<D>;
  constexpr Index width = Shape::kWidth;
  constexpr Index stride = narrow ? n : width;
  constexpr Index repeat = narrow ? n / width : 1;  // lanes of one vector that belong to one row
  const Index vectors = divideUp(count, repeat);
  const auto hidden = hn::Set(d, -kInfinity);
  for (Index i = count * width; i < vectors * repeat * width; ++i) scores[i] = -kInfinity;

  for (Index lane = 0; lane < (narrow ? 1 : width); lane += n) {
    float* column = scores + lane;
    const Rows rowsTag;
    const auto perRow = [&](const float* rows) { return spreadRows<Rows>(d, hn::Load(rowsTag, rows + lane)); };
    // Brings the lanes of each row together with `join` and spreads the result over them again.
    const auto acrossKeys = [&](Vec<D> v, const auto& join) { return spreadRows<Rows>(d, foldRows<Rows>(d, v, join)); };
    const auto storePerRow = [&](Vec<D> v, float* rows) {
      hn::Store(foldRows<Rows>(d, v, [](auto first, auto) { return first; }), rowsTag, rows + lane);
    };

    const auto oldMax = perRow(panel.rowMax);
    auto max0 = oldMax, max1 = oldMax, max2 = oldMax, max3 = oldMax;
    Index j = 0;
    for (; j + 4 <= vectors; j += 4) {
      max0 = hn::Max(max0, hn::Load(d, column + j * stride));
      max1 = hn::Max(max1, hn::Load(d, column + (j + 1) * stride));
      max2 = hn::Max(max2, hn::Load(d, column + (j + 2) * stride));
      max3 = hn::Max(max3, hn::Load(d, column + (j + 3) * stride));
    }
    for (; j < vectors; ++j) max0 = hn::Max(max0, hn::Load(d, column + j * stride));
    const auto max =
        acrossKeys(hn::Max(hn::Max(max0, max1), hn::Max(max2, max3)), [](auto a, auto b) { return hn::Max(a, b); });
    // A row that has seen nothing yet: subtracting 0 instead of −∞ keeps −∞ − (−∞) out of the exponent.
    const auto shift = hn::IfThenElse(hn::Eq(max, hidden), hn::Zero(d), max);
    const auto factor = exp2NonPositive(d, hn::Sub(oldMax, shift));
    const auto weigh = [&](Index vector) {
      float* place = column + vector * stride;
      const auto score = hn::Load(d, place);
      auto weight = exp2NonPositive(d, hn::Sub(score, shift));
      if (anyHidden) weight = hn::IfThenElse(hn::Eq(score, hidden), hn::Set(d, -0.0f), weight);
      hn::Store(weight, d, place);
      return weight;
    };
    auto sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
    for (j = 0; j + 4 <= vectors; j += 4) {
      sum0 = hn::Add(sum0, weigh(j));
      sum1 = hn::Add(sum1, weigh(j + 1));
      sum2 = hn::Add(sum2, weigh(j + 2));
      sum3 = hn::Add(sum3, weigh(j + 3));
    }
    for (; j < vectors; ++j) sum0 = hn::Add(sum0, weigh(j));
    const auto sum =
        acrossKeys(hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3)), [](auto a, auto b) { return hn::Add(a, b); });
    storePerRow(hn::MulAdd(perRow(panel.rowSum), factor, sum), panel.rowSum);
    storePerRow(max, panel.rowMax);
    storePerRow(factor, decay);
  }
}

// Brings a tile of raw scores to weights: soft cap, masks, softmax. Returns whether some key may be hidden from some
// row.
template <class Shape>
LA_INLINE bool weighTile(const FullProblem& problem, const FullSequence& sequence, const Panel& panel, KeyRange keys,
                         const FlashScratch& scratch, float* decay) {
  const Index count = keys.end - keys.begin;
  const bool ragged = keys.begin < panel.common.begin || keys.end > panel.common.end;
  const bool masked = problem.maskKind != MaskKind::kNone;
  if (problem.softcap > 0) capScores<Shape>(problem, scratch.scores, count);
  if (masked) maskScores<Shape>(problem, sequence, panel, keys, scratch.scores, scratch.mask);
  if (ragged) hideScores<Shape>(problem, sequence, panel, keys, scratch.scores);
  softmaxTile<Shape>(panel, count, scratch.scores, decay, masked || ragged);
  return masked || ragged;
}

// sum[c][row] += value tileᵀ · weights where hidden keys (weight −0) contribute nothing even if their values are NaN or
// infinite, which a product with zero would turn into NaN. Slow; only for tiles that hold such values.
// weights is [count][weightStride]; element (c, row) of sum lies at c·columnStride + row·rowStride.
LA_INLINE void addVisibleValues(const TileRows& value, Index count, Index valueDim, const float* weights,
                                Index weightStride, Index rows, float* sum, Index rowStride, Index columnStride) {
  for (Index c = 0; c < valueDim; ++c) {
    for (Index row = 0; row < rows; ++row) {
      float& total = sum[c * columnStride + row * rowStride];
      for (Index j = 0; j < count; ++j) {
        const float weight = weights[j * weightStride + row];
        if (!__builtin_signbit(weight)) total += weight * value.data[j * value.rowStride + c];
      }
    }
  }
}

// One tile of keys, all on one page, for one panel.
template <class Shape>
LA_INLINE void flashTile(const FullProblem& problem, const FullSequence& sequence, const Panel& panel, KeyRange keys,
                         const TileRows& key, const TileRows& value, FiniteTile& finiteValues,
                         const FlashScratch& scratch) {
  using D = typename Shape::Tag;
  const D d;
  constexpr int kVecs = Shape::kVectors;
  constexpr Index width = Shape::kWidth;
  const Index count = keys.end - keys.begin;

  forRowGroups<kMaxRows<kVecs>>(count, [&](Index first, auto rows) {
    outerProduct<decltype(rows)::value, kVecs>(
        d, key.data + first * key.rowStride, key.rowStride, 1, panel.query, width, problem.headDim,
        [&](int, int) { return hn::Zero(d); },
        [&](int r, int v, Vec<D> sum) { hn::Store(sum, d, scratch.scores + (first + r) * width + v * kLanes<D>); });
  });
  alignas(64) float decay[width];
  if (weighTile<Shape>(problem, sequence, panel, keys, scratch, decay) && !finiteValues.holds()) {
    for (Index i = 0; i < problem.valueDim * width; ++i) panel.output[i] *= decay[i % width];
    addVisibleValues(value, count, problem.valueDim, scratch.scores, width, width, panel.output, 1, width);
    return;
  }
  forRowGroups<kMaxRows<kVecs>>(problem.valueDim, [&](Index first, auto rows) {
    float* output = panel.output + first * width;
    outerProduct<decltype(rows)::value, kVecs>(
        d, value.data + first, 1, value.rowStride, scratch.scores, width, count,
        [&](int r, int v) {
          return hn::Mul(hn::Load(d, output + r * width + v * kLanes<D>), hn::Load(d, decay + v * kLanes<D>));
        },
        [&](int r, int v, Vec<D> sum) { hn::Store(sum, d, output + r * width + v * kLanes<D>); });
  });
}

// Calls visit(range) for the tiles of [keys.begin, keys.end), cut at multiples of `size`, in ascending order until it
// returns false.
template <class Visit>
LA_INLINE void forTiles(KeyRange keys, Index size, const Visit& visit) {
  for (Index tile = keys.begin / size * size; tile < keys.end; tile += size) {
    if (!visit({maximum(tile, keys.begin), minimum(tile + size, keys.end)})) return;
  }
}

// Walks all panels over the keys, tile by tile. Returns early, with garbage in the panels, when the call is aborted.
template <class Shape>
LA_INLINE void flashForward(const FullProblem& problem, const FullSequence& sequence, const Panel* panels,
                            Index panelCount, KeyRange keys, const FlashScratch& scratch, const Execution& execution) {
  const Index kvHead = panels[0].kvHead;
  // Fewer panels have no time for it, and short sequences, whose blocks are small, stay in the caches.
  constexpr Index kPrefetchingPanels = 2;
  forTiles(keys, kKeyTile, [&](KeyRange tile) {
    if (execution.aborted()) return false;
    if (hiddenFromAll(problem, sequence, tile)) return true;
    const KeyRange next = {tile.end, minimum(tile.end + kKeyTile, keys.end)};
    const bool prefetching = panelCount >= kPrefetchingPanels && next.begin < next.end;
    const TileRows key = tileRows(sequence.key, problem.keyType, kvHead, problem.headDim, tile, scratch.key);
    const TileRows value = tileRows(sequence.value, problem.keyType, kvHead, problem.valueDim, tile, scratch.value);
    FiniteTile finiteValues(value, tile.end - tile.begin, problem.valueDim);
    for (Index p = 0; p < panelCount; ++p) {
      const Panel& panel = panels[p];
      if (prefetching) {
        prefetchRows(sequence.key, problem.keyType, kvHead, problem.headDim, next, p, panelCount);
        prefetchRows(sequence.value, problem.keyType, kvHead, problem.valueDim, next, p, panelCount);
      }
      const KeyRange part = {maximum(tile.begin, panel.seen.begin), minimum(tile.end, panel.seen.end)};
      if (part.begin >= part.end) continue;
      const Index skip = part.begin - tile.begin;
      flashTile<Shape>(problem, sequence, panel, part, {key.data + skip * key.rowStride, key.rowStride},
                       {value.data + skip * value.rowStride, value.rowStride}, finiteValues, scratch);
    }
    return true;
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_FLASH_H_
