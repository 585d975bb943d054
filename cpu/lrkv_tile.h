// The two-part form: a panel whose rows are queries of all heads walks over the stored keys and values. For one tile of
// T keys, with W rows as lanes:
//   S [T][W]       = latents·q_latent, head by head, + base [T][baseDim]·q_base [baseDim][W]
//   output [vb][W] = output·decay + value baseᵀ·P          sums [W][width] = sums·decay + P·value latents, head by head
// The base is that of exact attention with a single key head, at the rate of a matrix product; the softmax between is
// exact attention's too. Base and residual stand under the one softmax.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_TILE_H_
#define LOWRANK_ATTENTION_CPU_LRKV_TILE_H_

#include "cpu/arena.h"
#include "cpu/flash.h"
#include "cpu/lrkv_query.h"
#include "cpu/lrkv_residual.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Keys of a tile: a whole page, so that what a head reads of its latents is long, and what is done once a tile and head
// is rare. Scores and queries still fit L1; half as many keys took a fifth longer (docs/performance.md).
constexpr Index kLrkvTile = LrkvLayout::kPageRows;

// Scratch of one worker beside its panels.
struct LrkvScratch {
  FlashScratch flash;
  float* residual = nullptr;  // [W][kLrkvTile] scores of the latents
  float* latents = nullptr;   // [kLrkvTile][widest value latents], for tiles with hidden keys
  float* strip = nullptr;     // [kLrkvTile][kValueStrip]
};

// Exact attention as the base alone would have it: one key/value head, which all heads share.
LA_INLINE FullProblem baseProblemOf(const LrkvProblem& problem) {
  FullProblem base = problem.full;
  if (!meetsBasePlain(problem.model)) base.queryType = DataType::kFloat32;
  base.keyType = problem.layout.type;
  base.kvHeads = 1;
  base.headDim = problem.layout.keyBaseDim;
  base.valueDim = problem.layout.valueBaseDim;
  return base;
}

LA_INLINE LrkvScratch placeLrkvScratch(const LrkvProblem& problem, const FullProblem& base, Index width,
                                       Arena& memory) {
  LrkvScratch scratch;
  float* flash = memory.take<float>(flashScratchFloats(base, width));
  if (flash != nullptr) scratch.flash = placeFlashScratch(base, width, flash);
  scratch.residual = memory.take<float>(width * kLrkvTile);
  scratch.latents = memory.take<float>(kLrkvTile * widest(problem.layout.valueStarts, problem.layout.kvHeads));
  scratch.strip = memory.take<float>(kLrkvTile * kValueStrip);
  return scratch;
}

// What a tile is computed from and into, beside its panel.
struct LrkvTile {
  const LrkvProblem& problem;
  const FullProblem& base;
  const FullSequence& sequence;
  const LrkvScratch& scratch;
  const float* latentQueries;  // [rows of the sequence][queryWidth], scaled as the panel's queries
  Index queryWidth;
  Index sumWidth;  // of a row of sums
  ResidualLoops loops;
};

// Keys of one page that will be read next, perhaps of another sequence.
struct UpcomingKeys {
  const FullSequence* sequence = nullptr;
  KeyRange keys;

  LA_METHOD bool any() const { return sequence != nullptr && keys.begin < keys.end; }
};

// The first tile of some keys of a sequence.
LA_INLINE UpcomingKeys firstTileOf(const FullSequence& sequence, KeyRange keys) {
  return {&sequence, {keys.begin, minimum(keys.begin / kLrkvTile * kLrkvTile + kLrkvTile, keys.end)}};
}

// The key or value bases of a sequence's pages, as head 0 or 1.
LA_INLINE PagedRows basesOf(const LrkvLayout& layout, const FullSequence& sequence, bool values) {
  return {sequence.key.pages, LrkvLayout::kPageRows, layout.valueBase(),
          values ? layout.valueBaseDim : layout.keyBaseDim};
}

LA_INLINE const std::byte* pageOf(const FullSequence& sequence, Index key) {
  return static_cast<const std::byte*>(sequence.key.pages[key / LrkvLayout::kPageRows]);
}

// Where the latents of a head lie that belong to the key of a page and the keys behind it.
LA_INLINE const void* keyLatentsAt(const LrkvLayout& layout, const std::byte* page, Index kvHead, Index block) {
  return elementAt(static_cast<const void*>(page), layout.type,
                   layout.keyLatents(kvHead) + block * kLatentRows * layout.keyWidth(kvHead));
}
LA_INLINE const void* valueLatentsAt(const LrkvLayout& layout, const std::byte* page, Index kvHead, Index row) {
  return elementAt(static_cast<const void*>(page), layout.type,
                   layout.valueLatents(kvHead) + row * layout.valueWidth(kvHead));
}

// Asks for the latents of one tile of all heads, two cache lines at a time, head after head: while the base is
// multiplied, memory would have nothing to do.
class LatentsAhead {
 public:
  LA_METHOD LatentsAhead(const LrkvLayout& layout, const UpcomingKeys& upcoming, bool values)
      : layout_(layout), heads_(upcoming.any() ? layout.kvHeads : 0), values_(values) {
    if (heads_ == 0) return;
    page_ = pageOf(*upcoming.sequence, upcoming.keys.begin);
    row_ = upcoming.keys.begin % LrkvLayout::kPageRows;
    count_ = upcoming.keys.end - upcoming.keys.begin;
  }

  LA_METHOD void operator()() {
    if (next_ < end_) {
      prefetch<2>(next_, kStep);
      next_ += kStep;
    } else if (head_ < heads_) {
      const Index width = values_ ? layout_.valueWidth(head_) : layout_.keyWidth(head_);
      const void* first = values_ ? valueLatentsAt(layout_, page_, head_, row_)
                                  : keyLatentsAt(layout_, page_, head_, row_ / kLatentRows);
      next_ = static_cast<const char*>(first);
      end_ = next_ + count_ * width * elementBytes(layout_.type);
      ++head_;
    }
  }

 private:
  static constexpr Index kStep = 128;
  const LrkvLayout& layout_;
  const Index heads_;
  const bool values_;
  const std::byte* page_ = nullptr;
  Index row_ = 0;
  Index count_ = 0;
  Index head_ = 0;
  const char* next_ = nullptr;
  const char* end_ = nullptr;
};

// The value base of a tile as float32, for tiles with hidden keys.
class ValueTile {
 public:
  LA_METHOD ValueTile(const LrkvTile& tile, KeyRange keys) : tile_(tile), keys_(keys) {}

  // From a key of the tile on.
  LA_METHOD TileRows from(Index key) {
    if (rows_.data == nullptr) {
      const LrkvLayout& layout = tile_.problem.layout;
      rows_ = tileRows(basesOf(layout, tile_.sequence, true), layout.type, 1, layout.valueBaseDim, keys_,
                       tile_.scratch.flash.value);
    }
    return {rows_.data + (key - keys_.begin) * rows_.rowStride, rows_.rowStride};
  }

  // Whether every element is finite; looked up at most once.
  LA_METHOD bool finite() {
    if (!looked_) {
      finite_ = FiniteTile(from(keys_.begin), keys_.end - keys_.begin, tile_.problem.layout.valueBaseDim).holds();
    }
    looked_ = true;
    return finite_;
  }

 private:
  const LrkvTile& tile_;
  const KeyRange keys_;
  TileRows rows_ = {nullptr, 0};
  bool looked_ = false;
  bool finite_ = false;
};

// Calls visit(lane, key/value head) for the rows of the panel.
template <class Visit>
LA_INLINE void forLanes(const LrkvTile& tile, const Panel& panel, const Visit& visit) {
  const Index group = tile.base.heads / tile.problem.layout.kvHeads;
  PanelRows places(tile.base, panel);
  for (Index lane = 0; lane < panel.rows; ++lane) visit(lane, places.next().head / group);
}

// scores [T][W] = what the latents add to each row's scores.
template <class Shape>
LA_INLINE void latentScores(const LrkvTile& tile, const Panel& panel, KeyRange keys) {
  constexpr Index width = Shape::kWidth;
  constexpr Index kRows = kRowBlock<Shape>;
  const LrkvLayout& layout = tile.problem.layout;
  const std::byte* page = pageOf(tile.sequence, keys.begin);
  const Index row = keys.begin % LrkvLayout::kPageRows;
  const Index firstBlock = row / kLatentRows;
  const Index skip = row % kLatentRows;
  const Index blocks = divideUp(skip + keys.end - keys.begin, kLatentRows);
  const PagedRows values = basesOf(layout, tile.sequence, true);
  forLanes(tile, panel, [&](Index lane, Index kvHead) {
    const Index own = layout.keyWidth(kvHead);
    float* scores = tile.scratch.residual + lane * kLrkvTile;
    const bool last = kvHead + 1 == layout.kvHeads;
    const Ahead ahead = last ? Ahead(valueLatentsAt(layout, page, 0, row),
                                     (keys.end - keys.begin) * layout.valueWidth(0) * elementBytes(layout.type))
                             : Ahead(keyLatentsAt(layout, page, kvHead + 1, firstBlock),
                                     blocks * kLatentRows * layout.keyWidth(kvHead + 1) * elementBytes(layout.type));
    tile.loops.scores(keyLatentsAt(layout, page, kvHead, firstBlock), own, blocks,
                      tile.latentQueries + (panel.firstRow + lane) * tile.queryWidth, scores, ahead);
    prefetchRows(values, layout.type, 1, layout.valueBaseDim, keys, lane, panel.rows);
  });
  for (Index lane = 0; lane < width; lane += kRows) {
    const float* rows[kRows];
    for (Index r = 0; r < kRows; ++r) {
      // Lanes without a row repeat the first one; nobody looks at what they give.
      rows[r] = tile.scratch.residual + (lane + r < panel.rows ? lane + r : 0) * kLrkvTile + skip;
    }
    rowsToLanes<kRows>(rows, keys.end - keys.begin, 1.0f, tile.scratch.flash.scores + lane, width);
  }
}

// scores[j][row] *= the scale of key j in the row's head.
template <class Shape>
LA_INLINE void scaleScores(const LrkvTile& tile, const Panel& panel, KeyRange keys) {
  using D = typename Shape::Tag;
  const D d;
  constexpr Index width = Shape::kWidth;
  constexpr Index kRows = kRowBlock<Shape>;
  const LrkvLayout& layout = tile.problem.layout;
  const Index count = keys.end - keys.begin;
  const auto* scales = reinterpret_cast<const float*>(pageOf(tile.sequence, keys.begin) + layout.scalesAt()) +
                       keys.begin % LrkvLayout::kPageRows;
  const float* rows[width];
  for (Index lane = 0; lane < width; ++lane) rows[lane] = scales;
  forLanes(tile, panel, [&](Index lane, Index kvHead) { rows[lane] = scales + kvHead * LrkvLayout::kPageRows; });
  float* factors = tile.scratch.flash.mask;
  for (Index lane = 0; lane < width; lane += kRows) rowsToLanes<kRows>(rows + lane, count, 1.0f, factors + lane, width);
  float* scores = tile.scratch.flash.scores;
  for (Index i = 0; i < count * width; i += kLanes<D>) {
    hn::Store(hn::Mul(hn::Load(d, scores + i), hn::Load(d, factors + i)), d, scores + i);
  }
}

// sums [W][sumWidth] = sums·decay + P·value latents.
template <class Shape>
LA_INLINE void latentOutput(const LrkvTile& tile, const Panel& panel, KeyRange keys, const UpcomingKeys& next,
                            bool hidden, const float* decay, float* sums) {
  constexpr Index width = Shape::kWidth;
  const LrkvLayout& layout = tile.problem.layout;
  const std::byte* page = pageOf(tile.sequence, keys.begin);
  const Index row = keys.begin % LrkvLayout::kPageRows;
  const Index count = keys.end - keys.begin;
  const PagedRows bases = next.any() ? basesOf(layout, *next.sequence, false) : PagedRows();
  Index looked = -1;  // the head whose tile was looked through
  bool finite = true;
  forLanes(tile, panel, [&](Index lane, Index kvHead) {
    const Index own = layout.valueWidth(kvHead);
    const void* latents = valueLatentsAt(layout, page, kvHead, row);
    const float* weights = tile.scratch.flash.scores + lane;
    float* sum = sums + lane * tile.sumWidth;
    if (hidden) {
      const float* plain = asFloat32(layout.type, latents, count * own, tile.scratch.latents);
      if (looked != kvHead) finite = finiteRow(plain, count * own);
      looked = kvHead;
      if (!finite) {
        for (Index c = 0; c < own; ++c) sum[c] *= decay[lane];
        addVisibleValues({plain, own}, count, own, weights, width, 1, sum, 1, 1);
        return;
      }
    }
    const bool last = kvHead + 1 == layout.kvHeads;
    const Ahead ahead = last ? Ahead(nullptr, 0)
                             : Ahead(valueLatentsAt(layout, page, kvHead + 1, row),
                                     count * layout.valueWidth(kvHead + 1) * elementBytes(layout.type));
    tile.loops.output(latents, own, count, weights, width, decay[lane], sum, ahead);
    if (next.any()) prefetchRows(bases, layout.type, 0, layout.keyBaseDim, next.keys, lane, panel.rows);
  });
}

// scores += key base·q_base. A base of 16 bits is converted some rows at a time, which then are in L1.
template <class Shape>
LA_INLINE void addBaseScores(const LrkvTile& tile, const Panel& panel, KeyRange keys) {
  using D = typename Shape::Tag;
  const D d;
  constexpr int kVecs = Shape::kVectors;
  constexpr Index width = Shape::kWidth;
  const DataType type = tile.problem.layout.type;
  const Index dim = tile.base.headDim;
  const void* base = rowsOnPage(basesOf(tile.problem.layout, tile.sequence, false), type, 0, keys);
  LatentsAhead ahead(tile.problem.layout, {&tile.sequence, keys}, true);
  forRowGroups<kMaxRows<kVecs>>(keys.end - keys.begin, [&](Index first, auto size) {
    constexpr int kRows = decltype(size)::value;
    const float* rows = asFloat32(type, elementAt(base, type, first * dim), kRows * dim, tile.scratch.flash.key);
    float* target = tile.scratch.flash.scores + first * width;
    outerProduct<kRows, kVecs>(
        d, rows, dim, 1, panel.query, width, dim,
        [&](int r, int v) { return hn::Load(d, target + r * width + v * kLanes<D>); },
        [&](int r, int v, Vec<D> sum) { hn::Store(sum, d, target + r * width + v * kLanes<D>); }, [&] { ahead(); });
  });
}

// output = output·decay + value baseᵀ·P. A base of 16 bits is converted some columns at a time.
template <class Shape>
LA_INLINE void addBaseOutput(const LrkvTile& tile, const Panel& panel, KeyRange keys, const UpcomingKeys& next,
                             const float* decay) {
  using D = typename Shape::Tag;
  const D d;
  constexpr int kVecs = Shape::kVectors;
  constexpr Index width = Shape::kWidth;
  const DataType type = tile.problem.layout.type;
  const Index dim = tile.base.valueDim;
  const Index count = keys.end - keys.begin;
  const void* base = rowsOnPage(basesOf(tile.problem.layout, tile.sequence, true), type, 1, keys);
  LatentsAhead ahead(tile.problem.layout, next, false);
  const bool whole = type == DataType::kFloat32;
  const Index step = whole ? dim : kValueStrip;
  for (Index first = 0; first < dim; first += step) {
    const Index columns = minimum(step, dim - first);
    const float* rows = whole ? static_cast<const float*>(base) : tile.scratch.strip;
    const Index stride = whole ? dim : kValueStrip;
    if (!whole) tile.loops.columns(elementAt(base, type, first), dim, count, columns, tile.scratch.strip);
    forRowGroups<kMaxRows<kVecs>>(columns, [&](Index c, auto size) {
      float* output = panel.output + (first + c) * width;
      outerProduct<decltype(size)::value, kVecs>(
          d, rows + c, 1, stride, tile.scratch.flash.scores, width, count,
          [&](int r, int v) {
            return hn::Mul(hn::Load(d, output + r * width + v * kLanes<D>), hn::Load(d, decay + v * kLanes<D>));
          },
          [&](int r, int v, Vec<D> sum) { hn::Store(sum, d, output + r * width + v * kLanes<D>); }, [&] { ahead(); });
    });
  }
}

// One tile of keys, all on one page, for one panel.
template <class Shape>
LA_INLINE void lrkvTile(const LrkvTile& tile, const Panel& panel, KeyRange keys, const UpcomingKeys& next,
                        ValueTile& values, float* sums) {
  constexpr Index width = Shape::kWidth;
  const FullProblem& base = tile.base;
  latentScores<Shape>(tile, panel, keys);
  addBaseScores<Shape>(tile, panel, keys);
  if (tile.problem.layout.scaled) scaleScores<Shape>(tile, panel, keys);
  alignas(64) float decay[width];
  const bool hidden = weighTile<Shape>(base, tile.sequence, panel, keys, tile.scratch.flash, decay);
  if (hidden && !values.finite()) {
    for (Index i = 0; i < base.valueDim * width; ++i) panel.output[i] *= decay[i % width];
    addVisibleValues(values.from(keys.begin), keys.end - keys.begin, base.valueDim, tile.scratch.flash.scores, width,
                     width, panel.output, 1, width);
  } else {
    addBaseOutput<Shape>(tile, panel, keys, next, decay);
  }
  latentOutput<Shape>(tile, panel, keys, next, hidden, decay, sums);
}

// Walks the panels over the keys, tile by tile, and asks at the end for the keys that upcoming() gives; the sums of a
// panel begin at its first row. Returns early, with garbage, when the call is aborted.
template <class Shape, class Upcoming>
LA_INLINE void lrkvForward(const LrkvTile& tile, const Panel* panels, Index panelCount, KeyRange keys, float* sums,
                           const Upcoming& upcoming, const Execution& execution) {
  forTiles(keys, kLrkvTile, [&](KeyRange range) {
    if (execution.aborted()) return false;
    if (hiddenFromAll(tile.base, tile.sequence, range)) return true;
    const UpcomingKeys next = range.end < keys.end ? firstTileOf(tile.sequence, {range.end, keys.end}) : upcoming();
    ValueTile values(tile, range);
    for (Index p = 0; p < panelCount; ++p) {
      const Panel& panel = panels[p];
      const KeyRange part = {maximum(range.begin, panel.seen.begin), minimum(range.end, panel.seen.end)};
      if (part.begin >= part.end) continue;
      lrkvTile<Shape>(tile, panel, part, p + 1 == panelCount ? next : UpcomingKeys(), values,
                      sums + p * Shape::kWidth * tile.sumWidth);
    }
    return true;
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_TILE_H_
