// The materialised form: keys and values of some heads are made whole in the workspace, and exact attention runs over
// them. For many queries the products that make them are few beside those they save.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_MATERIALISED_H_
#define LOWRANK_ATTENTION_CPU_LRKV_MATERIALISED_H_

#include "cpu/lrkv_plan.h"

namespace lowrank_attention::HWY_NAMESPACE {

// rows[r][c] of `count` rows, `stride` apart, from blocks of key latents; zero from `width` to `columns`. `spare` has
// room for a row.
LA_INLINE void latentsToRows(const float* latents, Index width, Index count, Index columns, Index stride, float* rows,
                             float* spare) {
  constexpr float kOnes[kSquare] = {1, 1, 1, 1};
  for (Index row = 0; row < count; row += kSquare) {
    float* targets[kSquare];
    for (Index r = 0; r < kSquare; ++r) targets[r] = row + r < count ? rows + (row + r) * stride : spare;
    const float* block = latents + row / kLatentRows * kLatentRows * width;
    lanesToRows<kSquare>(block + row % kLatentRows, kLatentRows, minimum(width, columns), kOnes, targets);
    for (Index r = 0; r < minimum(kSquare, count - row); ++r) {
      for (Index c = width; c < columns; ++c) targets[r][c] = 0;
    }
  }
}

// Heads that one unit materialises: they share what a page costs for all of them.
constexpr Index kMaterialisedGroup = 4;

// Positions ahead whose queries are asked for, one head after another.
constexpr Index kQueriesAhead = 2;

class Materialiser {
 public:
  LA_METHOD Materialiser(const LrkvProblem& problem, Index sequence, Index firstHead, Index heads,
                         const MaterialisedSpace& space)
      : problem_(problem),
        sequence_(problem.full.sequences[sequence]),
        store_(problem.stores == nullptr ? nullptr : problem.stores + sequence),
        first_(firstHead),
        heads_(heads),
        space_(space) {}

  // Keys and values of one page of rows, of heads [first, end) of the chunk. Rows that do not come in pages are stored
  // on one of the worker's own first, these heads' only: a page of all would not stay in the cache.
  LA_METHOD void page(Index first, Index end, Index page, std::byte* memory) const {
    Arena arena(memory);
    const RowScratch scratch = placeRowScratch(problem_, arena);
    const Index begin = page * LrkvLayout::kPageRows;
    const Index count = minimum(LrkvLayout::kPageRows, sequence_.keys - begin);
    const std::byte* data = scratch.page;
    if (store_ == nullptr) {
      data = static_cast<const std::byte*>(sequence_.key.pages[page]);
    } else {
      storeLrkvRows(*store_, begin, begin + count, first_ + first, first_ + end, scratch.page,
                    arena.take<std::byte>(lrkvStoreBytes(*store_)));
    }
    const Index keyDim = materialisedKeyDim(problem_.model, problem_.layout);
    const Index valueDim = problem_.model.value.dim;
    for (Index i = first; i < end; ++i) {
      keys(i, data, count, scratch, space_.key + (i * sequence_.keys + begin) * keyDim);
      values(i, data, count, scratch, space_.value + (i * sequence_.keys + begin) * valueDim);
    }
  }

  // All of a position's queries in the chunk. `before` are the key ranks of the heads before the chunk.
  LA_METHOD void queries(Index query, Index before, const QueryScratch& scratch) const {
    const LrkvModel& model = problem_.model;
    const Index group = problem_.full.heads / problem_.layout.kvHeads;
    const Index dim = materialisedKeyDim(model, problem_.layout);
    turnTo(model, query + sequence_.offset, scratch);
    for (Index i = 0; i < heads_; ++i) {
      for (Index g = 0; g < group; ++g) {
        const Index head = (first_ + i) * group + g;
        const DataType type = problem_.full.queryType;
        if (query + kQueriesAhead < sequence_.queries) {
          prefetch<3>(rowOf(sequence_.query, type, head, query + kQueriesAhead),
                      problem_.full.headDim * elementBytes(type));
        }
        prepareQuery(model, type, rowOf(sequence_.query, type, head, query), scratch);
        float* out = space_.query + ((i * group + g) * sequence_.queries + query) * dim;
        if (mergesKeys(model)) {
          __builtin_memcpy(out, scratch.rotated, static_cast<std::size_t>(dim) * sizeof(float));
        } else {
          const Index columns = storedKeyBase(model);
          baseQuery(model, first_ + i, scratch, out);
          latentQuery(model, first_ + i, before, scratch, 1.0f, out + columns, dim - columns);
        }
      }
      before += model.key.ranks[first_ + i];
    }
  }

 private:
  // Where rows are multiplied out, a whole number of strips each: where they belong if they are such.
  LA_METHOD float* wholeRows(Index dim, float* out, const RowScratch& scratch) const {
    return wholeStride(dim) == dim ? out : scratch.whole;
  }

  LA_METHOD void copyWhole(const float* whole, Index count, Index dim, float* out) const {
    for (Index row = 0; whole != out && row < count; ++row) {
      __builtin_memcpy(out + row * dim, whole + row * wholeStride(dim), static_cast<std::size_t>(4 * dim));
    }
  }

  LA_METHOD void keys(Index i, const std::byte* page, Index count, const RowScratch& scratch, float* out) const {
    const LrkvModel& model = problem_.model;
    const LrkvLayout& layout = problem_.layout;
    const Index head = first_ + i;
    const Index width = layout.keyWidth(head);
    const Index dim = materialisedKeyDim(model, layout);
    const Index columns = layout.keyBaseDim;
    const float* base = asFloat32(layout.type, page, count * columns, scratch.base);
    const float* latents = asFloat32(layout.type, keyLatentsAt(layout, page, head, 0),
                                     roundUp(count, kLatentRows) * width, scratch.latents);
    const auto blockOf = [&](Index row) { return latents + row / kLatentRows * kLatentRows * width; };
    const bool merged = mergesKeys(model) && model.rope != LrkvRope::kExact;
    float* whole = wholeRows(dim, out, scratch);
    if (merged) {
      wholeFromBase(model.key, head, base, count, whole, scratch.strip);
      const Index before = ranksBefore(model.key, head);
      for (Index row = 0; row < count; row += kLatentRows) {
        addLatents(model.key, head, before, {blockOf(row), 1, kLatentRows}, minimum(kLatentRows, count - row),
                   whole + row * wholeStride(dim), scratch.strip);
      }
      copyWhole(whole, count, dim, out);
    } else {
      latentsToRows(latents, width, count, dim - columns, dim, out + columns, scratch.whole);
    }
    const float* scales = layout.scaled
                              ? reinterpret_cast<const float*>(page + layout.scalesAt()) + head * LrkvLayout::kPageRows
                              : nullptr;
    for (Index row = 0; row < count; ++row) {
      float* target = out + row * dim;
      if (!merged) __builtin_memcpy(target, base + row * columns, static_cast<std::size_t>(4 * columns));
      if (scales != nullptr) scaleByGain(target, dim, scales[row], nullptr);
    }
  }

  LA_METHOD void values(Index i, const std::byte* page, Index count, const RowScratch& scratch, float* out) const {
    const LrkvFactors& value = problem_.model.value;
    const LrkvLayout& layout = problem_.layout;
    const Index head = first_ + i;
    const Index width = layout.valueWidth(head);
    const Index dim = value.dim;
    const void* stored = elementAt(static_cast<const void*>(page), layout.type, layout.valueBase());
    const float* base = asFloat32(layout.type, stored, count * layout.valueBaseDim, scratch.base);
    const float* latents =
        asFloat32(layout.type, valueLatentsAt(layout, page, head, 0), count * width, scratch.latents);
    float* whole = wholeRows(dim, out, scratch);
    wholeFromBase(value, head, base, count, whole, scratch.strip);
    addLatents(value, head, ranksBefore(value, head), {latents, width}, count, whole, scratch.strip);
    copyWhole(whole, count, dim, out);
  }

  const LrkvProblem& problem_;
  const FullSequence& sequence_;
  const LrkvStoreProblem* store_;
  const Index first_;
  const Index heads_;
  const MaterialisedSpace& space_;
};

// Exact attention over heads [firstHead, firstHead + heads) of a sequence, which are materialised.
LA_INLINE void runMaterialised(const LrkvProblem& problem, Index sequenceIndex, Index firstHead, Index heads,
                               const MaterialisedSpace& space, std::byte* workers, Index workerBytes,
                               const Execution& execution) {
  const FullSequence& sequence = problem.full.sequences[sequenceIndex];
  const Materialiser materialiser(problem, sequenceIndex, firstHead, heads, space);
  const Index before = ranksBefore(problem.model.key, firstHead);
  const Index pages = pagesOf(sequence);
  constexpr Index kQueries = 16;
  const Index queryUnits = divideUp(sequence.queries, kQueries);
  const Index pageUnits = divideUp(heads, kMaterialisedGroup) * pages;
  forEachUnit(execution, pageUnits + queryUnits, [&](Index worker, Index unit) {
    std::byte* memory = workers + worker * workerBytes;
    if (unit < pageUnits) {
      const Index first = unit / pages * kMaterialisedGroup;
      materialiser.page(first, minimum(first + kMaterialisedGroup, heads), unit % pages, memory);
      return;
    }
    Arena arena(memory);
    const QueryScratch scratch = placeQueryScratch(problem.model, arena);
    const Index first = (unit - pageUnits) * kQueries;
    for (Index query = first; query < minimum(first + kQueries, sequence.queries); ++query) {
      materialiser.queries(query, before, scratch);
    }
  });
  if (execution.aborted()) return;

  FullSequence own = sequence;
  const FullProblem full = materialisedProblem(problem, &own, heads);
  const Index firstQueryHead = firstHead * (problem.full.heads / problem.layout.kvHeads);
  const void* keyPage = space.key;
  const void* valuePage = space.value;
  const Index rows = maximum(sequence.keys, 1);
  own.query = {space.query, sequence.queries * full.headDim, full.headDim};
  own.key = {&keyPage, rows, sequence.keys * full.headDim, full.headDim};
  own.value = {&valuePage, rows, sequence.keys * full.valueDim, full.valueDim};
  own.output.data = elementAt(sequence.output.data, full.outputType, firstQueryHead * sequence.output.headStride);
  if (sequence.lse != nullptr) own.lse = sequence.lse + firstQueryHead * sequence.queryRows;
  if (sequence.mask != nullptr) {
    const Index element = full.maskKind == MaskKind::kAdditive ? 4 : 1;
    own.mask = static_cast<const std::byte*>(sequence.mask) + firstQueryHead * full.maskHeadStride * element;
  }
  FullProblem shifted = full;
  if (full.sinks != nullptr) shifted.sinks = full.sinks + firstQueryHead;
  Execution nested = execution;
  nested.workspace = space.full;
  runFull(shifted, nested);
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_MATERIALISED_H_
