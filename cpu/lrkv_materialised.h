// The materialised form: keys and values of some heads are made whole in the workspace, and exact attention runs over
// them. For many queries the products that make them are few beside those they save.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_MATERIALISED_H_
#define LOWRANK_ATTENTION_CPU_LRKV_MATERIALISED_H_

#include "cpu/lrkv_plan.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Element (row, c) lies at row·rowStride + c·columnStride.
struct Factor {
  const float* data = nullptr;
  Index rowStride = 0;
  Index columnStride = 0;
  Index columns = 0;
};

// out [count][columns] += or = left·right, right [left.columns][columns]; columns are padded to pairs of vectors, and
// both lie aligned.
LA_INLINE void addProduct(const Factor& left, Index count, const float* right, Index columns, bool onto, float* out) {
  const Full d;
  constexpr Index width = 2 * kLanes<Full>;
  for (Index c = 0; c < columns; c += width) {
    forRowGroups<kMaxRows<2>>(count, [&](Index first, auto rows) {
      float* target = out + first * columns + c;
      outerProduct<decltype(rows)::value, 2>(
          d, left.data + first * left.rowStride, left.rowStride, left.columnStride, right + c, columns, left.columns,
          [&](int r, int v) { return onto ? hn::Load(d, target + r * columns + v * kLanes<Full>) : hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) { hn::Store(sum, d, target + r * columns + v * kLanes<Full>); });
    });
  }
}

// Rows of a factor aligned and padded with zero columns: [count][columns], from [count][dim].
LA_INLINE void padRows(const float* rows, Index count, Index dim, float* out) {
  const Index columns = paddedColumns(dim);
  for (Index r = 0; r < count; ++r) {
    __builtin_memcpy(out + r * columns, rows + r * dim, static_cast<std::size_t>(dim) * sizeof(float));
    for (Index c = dim; c < columns; ++c) out[r * columns + c] = 0;
  }
}

class Materialiser {
 public:
  LA_METHOD Materialiser(const LrkvProblem& problem, const FullSequence& sequence, Index firstHead, Index heads,
                         const MaterialisedSpace& space)
      : problem_(problem), sequence_(sequence), first_(firstHead), heads_(heads), space_(space) {}

  // Brings gauges and B_hᵀ of the heads to where products read them.
  LA_METHOD void padFactors() const {
    const LrkvModel& model = problem_.model;
    const LrkvLayout& layout = problem_.layout;
    for (Index i = 0; i < heads_; ++i) {
      const bool merged = mergesKeys(model) && model.rope != LrkvRope::kExact;
      if (merged) padSide(model.key, i, keyRowsOf(i));
      padSide(model.value, i, valueRowsOf(i));
      // Rows of padding meet zeros, which must not be a NaN times zero.
      if (merged) clearRows(model.key, i, layout.keyWidth(first_ + i), keyRowsOf(i));
      clearRows(model.value, i, layout.valueWidth(first_ + i), valueRowsOf(i));
    }
  }

  // Keys and values of one page of rows of head `i` of the chunk. `scratch` is of rowScratchFloats.
  LA_METHOD void page(Index i, Index page, float* scratch) const {
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
  LA_METHOD Index keyRows() const {
    return problem_.layout.keyBaseDim + widest(problem_.layout.keyStarts, problem_.layout.kvHeads);
  }
  LA_METHOD Index valueRows() const {
    return problem_.layout.valueBaseDim + widest(problem_.layout.valueStarts, problem_.layout.kvHeads);
  }
  LA_METHOD float* keyRowsOf(Index i) const {
    return space_.keyRows + i * keyRows() * paddedColumns(problem_.model.key.dim);
  }
  LA_METHOD float* valueRowsOf(Index i) const {
    return space_.valueRows + i * valueRows() * paddedColumns(problem_.model.value.dim);
  }

  // Gauge, then B_hᵀ.
  LA_METHOD void padSide(const LrkvFactors& side, Index i, float* out) const {
    const Index head = first_ + i;
    const Index columns = paddedColumns(side.dim);
    if (side.gauge != nullptr) padRows(side.gauge + head * side.baseDim * side.dim, side.baseDim, side.dim, out);
    padRows(side.up + ranksBefore(side, head) * side.dim, side.ranks[head], side.dim, out + side.baseDim * columns);
  }
  LA_METHOD void clearRows(const LrkvFactors& side, Index i, Index width, float* out) const {
    const Index columns = paddedColumns(side.dim);
    const Index rank = side.ranks[first_ + i];
    for (Index at = (side.baseDim + rank) * columns; at < (side.baseDim + width) * columns; ++at) out[at] = 0;
  }

  // scratch [kPageRows][padded dim] = base·A + latents·Bᵀ.
  LA_METHOD void rows(const LrkvFactors& side, Index count, const float* base, const Factor& latents,
                      const float* right, float* out) const {
    const Index columns = paddedColumns(side.dim);
    bool onto = false;
    if (side.baseDim > 0 && side.gauge != nullptr) {
      addProduct({base, side.baseDim, 1, side.baseDim}, count, right, columns, false, out);
      onto = true;
    } else if (side.baseDim > 0) {
      padRows(base, count, side.dim, out);
      onto = true;
    }
    const float* up = right + side.baseDim * columns;
    if (latents.columnStride == 1) {
      addProduct(latents, count, up, columns, onto, out);
      return;
    }
    for (Index row = 0; row < count; row += kLatentRows) {
      const Factor block = {latents.data + row * latents.columns, 1, kLatentRows, latents.columns};
      addProduct(block, minimum(kLatentRows, count - row), up, columns, onto, out + row * columns);
    }
  }

  LA_METHOD void keys(Index i, const std::byte* page, Index count, float* scratch, float* out) const {
    const LrkvModel& model = problem_.model;
    const LrkvLayout& layout = problem_.layout;
    const Index head = first_ + i;
    const Index width = layout.keyWidth(head);
    const Index columns = paddedColumns(model.key.dim);
    const Index dim = materialisedKeyDim(model, layout);
    float* made = scratch;
    float* source = scratch + LrkvLayout::kPageRows * columns;
    const float* base = asFloat32(layout.type, page, count * layout.keyBaseDim, source);
    const Index stored = roundUp(count, kLatentRows) * width;
    const float* latents = asFloat32(layout.type, keyLatentsAt(layout, page, head, 0), stored,
                                     source + LrkvLayout::kPageRows * layout.keyBaseDim);
    const bool merged = mergesKeys(model) && model.rope != LrkvRope::kExact;
    if (merged) rows(model.key, count, base, {latents, 1, kLatentRows, width}, keyRowsOf(i), made);
    const float* scales =
        layout.scaled ? reinterpret_cast<const float*>(page + layout.scalesAt()) + head * LrkvLayout::kPageRows
                      : nullptr;
    for (Index row = 0; row < count; ++row) {
      float* target = out + row * dim;
      if (merged) {
        __builtin_memcpy(target, made + row * columns, static_cast<std::size_t>(dim) * sizeof(float));
      } else {
        __builtin_memcpy(target, base + row * layout.keyBaseDim,
                         static_cast<std::size_t>(layout.keyBaseDim) * sizeof(float));
        const float* lane = latents + row / kLatentRows * kLatentRows * width + row % kLatentRows;
        for (Index c = 0; c < dim - layout.keyBaseDim; ++c) {
          target[layout.keyBaseDim + c] = c < width ? lane[c * kLatentRows] : 0;
        }
      }
      if (scales == nullptr) continue;
      for (Index c = 0; c < dim; ++c) target[c] *= scales[row];
    }
  }

  LA_METHOD void values(Index i, const std::byte* page, Index count, float* scratch, float* out) const {
    const LrkvModel& model = problem_.model;
    const LrkvLayout& layout = problem_.layout;
    const Index head = first_ + i;
    const Index width = layout.valueWidth(head);
    const Index dim = model.value.dim;
    const Index columns = paddedColumns(dim);
    float* made = scratch;
    float* source = scratch + LrkvLayout::kPageRows * columns;
    const void* stored = elementAt(static_cast<const void*>(page), layout.type, layout.valueBase());
    const float* base = asFloat32(layout.type, stored, count * layout.valueBaseDim, source);
    const float* latents = asFloat32(layout.type, valueLatentsAt(layout, page, head, 0), count * width,
                                     source + LrkvLayout::kPageRows * layout.valueBaseDim);
    rows(model.value, count, base, {latents, width, 1, width}, valueRowsOf(i), made);
    for (Index row = 0; row < count; ++row) {
      __builtin_memcpy(out + row * dim, made + row * columns, static_cast<std::size_t>(dim) * sizeof(float));
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
  materialiser.padFactors();
  const Index before = ranksBefore(problem.model.key, firstHead);
  const Index pages = pagesOf(sequence);
  constexpr Index kQueries = 16;
  const Index queryUnits = divideUp(sequence.queries, kQueries);
  forEachUnit(execution, heads * pages + queryUnits, [&](Index worker, Index unit) {
    std::byte* memory = workers + worker * workerBytes;
    if (unit < heads * pages) {
      materialiser.page(unit / pages, unit % pages, reinterpret_cast<float*>(memory));
      return;
    }
    Arena arena(memory);
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
  own.output.data =
      elementAt(sequence.output.data, full.outputType, firstQueryHead * sequence.output.headStride);
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
