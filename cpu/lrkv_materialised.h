// The materialised form: keys and values of some heads are made whole in the workspace, and exact attention runs over
// them. For many queries the products that make them are few beside those they save.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_MATERIALISED_H_
#define LOWRANK_ATTENTION_CPU_LRKV_MATERIALISED_H_

#include "cpu/lrkv_plan.h"

namespace lowrank_attention::HWY_NAMESPACE {

class Materialiser {
 public:
  LA_METHOD Materialiser(const LrkvProblem& problem, const FullSequence& sequence, Index firstHead, Index heads,
                         const MaterialisedSpace& space)
      : problem_(problem), sequence_(sequence), first_(firstHead), heads_(heads), space_(space) {}

  // Keys and values of one page of rows of head `i` of the chunk.
  LA_METHOD void page(Index i, Index page, const RowScratch& scratch) const {
    const Index begin = page * LrkvLayout::kPageRows;
    const Index count = minimum(LrkvLayout::kPageRows, sequence_.keys - begin);
    const auto* data = static_cast<const std::byte*>(sequence_.key.pages[page]);
    const Index keyDim = materialisedKeyDim(problem_.model, problem_.layout);
    const Index valueDim = problem_.model.value.dim;
    keys(i, data, count, scratch, space_.key + (i * sequence_.keys + begin) * keyDim);
    values(i, data, count, scratch, space_.value + (i * sequence_.keys + begin) * valueDim);
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
        const Index at = head * sequence_.query.headStride + query * sequence_.query.rowStride;
        prepareQuery(model, problem_.full.queryType, elementAt(sequence_.query.data, problem_.full.queryType, at),
                     scratch);
        float* out = space_.query + ((i * group + g) * sequence_.queries + query) * dim;
        if (mergesKeys(model)) {
          __builtin_memcpy(out, scratch.rotated, static_cast<std::size_t>(dim) * sizeof(float));
        } else {
          const Index columns = storedKeyBase(model);
          baseQuery(model, first_ + i, scratch, out);
          latentQuery(model, first_ + i, before, scratch, out + columns, dim - columns);
        }
      }
      before += model.key.ranks[first_ + i];
    }
  }

 private:
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
    if (merged) {
      wholeFromBase(model.key, head, base, count, scratch.whole, scratch.strip);
      const Index before = ranksBefore(model.key, head);
      for (Index row = 0; row < count; row += kLatentRows) {
        addLatents(model.key, head, before, {blockOf(row), 1, kLatentRows}, minimum(kLatentRows, count - row),
                   scratch.whole + row * wholeStride(dim), scratch.strip);
      }
    }
    const float* scales = layout.scaled
                              ? reinterpret_cast<const float*>(page + layout.scalesAt()) + head * LrkvLayout::kPageRows
                              : nullptr;
    for (Index row = 0; row < count; ++row) {
      float* target = out + row * dim;
      if (merged) {
        __builtin_memcpy(target, scratch.whole + row * wholeStride(dim), static_cast<std::size_t>(4 * dim));
      } else {
        __builtin_memcpy(target, base + row * columns, static_cast<std::size_t>(4 * columns));
        const float* lane = blockOf(row) + row % kLatentRows;
        for (Index c = 0; c < dim - columns; ++c) target[columns + c] = c < width ? lane[c * kLatentRows] : 0;
      }
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
    wholeFromBase(value, head, base, count, scratch.whole, scratch.strip);
    addLatents(value, head, ranksBefore(value, head), {latents, width}, count, scratch.whole, scratch.strip);
    for (Index row = 0; row < count; ++row) {
      __builtin_memcpy(out + row * dim, scratch.whole + row * wholeStride(dim), static_cast<std::size_t>(4 * dim));
    }
  }

  const LrkvProblem& problem_;
  const FullSequence& sequence_;
  const Index first_;
  const Index heads_;
  const MaterialisedSpace& space_;
};

// Exact attention over heads [firstHead, firstHead + heads) of a sequence, which are materialised.
LA_INLINE void runMaterialised(const LrkvProblem& problem, const FullSequence& sequence, Index firstHead, Index heads,
                               const MaterialisedSpace& space, std::byte* workers, Index workerBytes,
                               const Execution& execution) {
  const Materialiser materialiser(problem, sequence, firstHead, heads, space);
  const Index before = ranksBefore(problem.model.key, firstHead);
  const Index pages = pagesOf(sequence);
  constexpr Index kQueries = 16;
  const Index queryUnits = divideUp(sequence.queries, kQueries);
  forEachUnit(execution, heads * pages + queryUnits, [&](Index worker, Index unit) {
    Arena arena(workers + worker * workerBytes);
    if (unit < heads * pages) {
      materialiser.page(unit / pages, unit % pages, placeRowScratch(problem, arena));
      return;
    }
    const QueryScratch scratch = placeQueryScratch(problem.model, arena);
    const Index first = (unit - heads * pages) * kQueries;
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
