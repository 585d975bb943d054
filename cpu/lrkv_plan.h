// How a call of LRKV is cut, and where everything lies in its workspace.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_PLAN_H_
#define LOWRANK_ATTENTION_CPU_LRKV_PLAN_H_

#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/lrkv_tile.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Calls body(PanelShape) with the narrowest panel that holds all rows, else the widest.
template <class Body>
LA_INLINE auto withLrkvShape(Index rows, const Body& body) {
  if (rows <= 4) return body(PanelShape<hn::CappedTag<float, 4>, 1>());
  if constexpr (kLanes<Full> >= 8) {
    if (rows <= 8) return body(PanelShape<hn::CappedTag<float, 8>, 1>());
  }
  if constexpr (kLanes<Full> >= 16) {
    if (rows <= 16) return body(PanelShape<hn::CappedTag<float, 16>, 1>());
  }
  return body(PanelShape<Full, 2>());
}

// What is done once a query and head comes in units of so many key/value heads and positions: each head's B_hᵀ is read
// once for all positions, and each position's rotation is worked out once for all heads.
constexpr Index kUnitHeads = 8;
constexpr Index kUnitPositions = 8;
// Rows of a block at most: more share each base tile, fewer make more units.
constexpr Index kLrkvBlockRows = 128;
constexpr Index kLrkvPanels = kLrkvBlockRows / 4;
// A sequence's keys are cut into at most so many splits, fewer where many rows have many states to merge.
constexpr Index kLrkvSplits = 16;
// Shorter splits cost more in states than further threads bring.
constexpr Index kLrkvSplitPages = 2;
constexpr Index kLrkvSplitStates = kLrkvSplits * 64;
// What an operation on latents costs, in operations of a matrix product, where they are read for one row at a time.
constexpr Index kLatentCost = 2;
// Keys and values of so many floats a thread are materialised at a time, but those of one head at least: new memory has
// to be cleared first.
constexpr Index kMaterialisedFloats = Index{1} << 20;

// How one sequence is cut. Lies in the workspace, one a sequence.
struct LrkvPlan {
  bool materialised = false;
  Index rows = 0;  // of the two-part form: queries of all heads
  Index width = 0;
  Index blockRows = 0;
  Index blocks = 0;
  Index splits = 0;
  Index firstUnit = 0;   // units are ordered by block, then split
  Index firstRow = 0;    // among the rows of all sequences
  Index firstState = 0;  // floats into the states
};

LA_INLINE Index pagesOf(const FullSequence& sequence) { return divideUp(sequence.keys, LrkvLayout::kPageRows); }

LA_INLINE Index storedPageBytes(const LrkvLayout& layout) { return roundUp(layout.pageBytes(), 64); }

// Floats of the state that a split leaves of a row: output over the base, output over the latents, maximum, sum.
LA_INLINE Index lrkvStateFloats(const LrkvLayout& layout) {
  return layout.valueBaseDim + widest(layout.valueStarts, layout.kvHeads) + 2;
}

// Whether keys of this model can be brought to the head size: one query then meets them. Otherwise base and latents
// meet queries of their own, and stay side by side.
LA_INLINE bool mergesKeys(const LrkvModel& model) {
  return model.rope != LrkvRope::kLatent && model.rope != LrkvRope::kBase;
}

// Columns of materialised keys.
LA_INLINE Index materialisedKeyDim(const LrkvModel& model, const LrkvLayout& layout) {
  return mergesKeys(model) ? model.key.dim : layout.keyBaseDim + widest(layout.keyStarts, layout.kvHeads);
}

// Materialising costs the products that make keys and values of every head, and saves the latents' part in every pair
// of a query and a key it sees. It is chosen where its operations are fewer, by the sequence's own extents alone.
LA_INLINE bool materialises(const LrkvProblem& problem, const FullSequence& sequence) {
  const LrkvModel& model = problem.model;
  const LrkvLayout& layout = problem.layout;
  if (sequence.queries <= 1) return false;
  const auto number = [](Index extent) { return static_cast<double>(extent); };
  const double heads = number(problem.full.heads);
  const double group = heads / number(layout.kvHeads);
  const double keyLatents = number(layout.keyStarts[layout.kvHeads]);
  const double valueLatents = number(layout.valueStarts[layout.kvHeads]);
  const double keyGauge = model.key.gauge == nullptr || !mergesKeys(model) ? 0 : number(layout.keyBaseDim);
  const double valueGauge = model.value.gauge == nullptr ? 0 : number(layout.valueBaseDim);
  const bool products = mergesKeys(model) && model.rope != LrkvRope::kExact;
  const double making =
      number(sequence.keys) *
      ((products ? keyLatents : 0) * number(model.key.dim) + number(layout.kvHeads) * keyGauge * number(model.key.dim) +
       (valueLatents + number(layout.kvHeads) * valueGauge) * number(model.value.dim));
  const double reach =
      number(minimum(problem.full.left, sequence.keys) + minimum(problem.full.right, sequence.keys) + 1);
  double seen = reach < number(sequence.keys) ? reach : number(sequence.keys);
  // Causal queries see half of the keys that stand beside them.
  if (problem.full.right == 0) seen -= number(minimum(sequence.queries, sequence.keys)) / 2;
  const double pairs = number(sequence.queries) * (seen > 1 ? seen : 1);
  const double whole = pairs * heads * number(materialisedKeyDim(model, layout) + model.value.dim);
  const double base = pairs * heads * number(layout.keyBaseDim + layout.valueBaseDim);
  const double latents = pairs * group * (keyLatents + valueLatents);
  return making + whole < base + kLatentCost * latents;
}

LA_INLINE LrkvPlan planLrkv(const LrkvProblem& problem, const FullSequence& sequence) {
  LrkvPlan plan;
  plan.materialised = materialises(problem, sequence);
  if (plan.materialised) return plan;
  plan.rows = sequence.queries * problem.full.heads;
  plan.width = withLrkvShape(plan.rows, [](auto shape) { return decltype(shape)::kWidth; });
  plan.blockRows = minimum(roundUp(plan.rows, plan.width), roundUp(kLrkvBlockRows, plan.width));
  plan.blocks = plan.blockRows == 0 ? 0 : divideUp(plan.rows, plan.blockRows);
  const Index most = minimum(kLrkvSplits, kLrkvSplitStates / maximum(plan.rows, 1));
  plan.splits = maximum(1, minimum(most, pagesOf(sequence) / kLrkvSplitPages));
  return plan;
}

// The keys of one split of a sequence: whole pages, as evenly as they can be dealt out.
LA_INLINE KeyRange keysOfSplit(const LrkvPlan& plan, const FullSequence& sequence, Index split) {
  const Index pages = pagesOf(sequence);
  return {pages * split / plan.splits * LrkvLayout::kPageRows,
          minimum(pages * (split + 1) / plan.splits * LrkvLayout::kPageRows, sequence.keys)};
}

// Keys and values of some heads of a sequence, materialised, and the exact attention over them.
struct MaterialisedSpace {
  float* query = nullptr;     // [heads][queries][key dim]
  float* key = nullptr;       // [key/value heads][keys][key dim]
  float* value = nullptr;     // [key/value heads][keys][value dim]
  std::byte* full = nullptr;  // workspace of exact attention
};

// Heads whose keys and values are materialised together.
LA_INLINE Index materialisedHeads(const LrkvProblem& problem, const FullSequence& sequence, Index threads) {
  const Index floats =
      maximum(1, sequence.keys * (materialisedKeyDim(problem.model, problem.layout) + problem.model.value.dim));
  return maximum(1, minimum(problem.layout.kvHeads, threads * kMaterialisedFloats / floats));
}

// Exact attention over some heads of the sequence.
LA_INLINE FullProblem materialisedProblem(const LrkvProblem& problem, const FullSequence* sequence, Index kvHeads) {
  FullProblem full = problem.full;
  full.queryType = DataType::kFloat32;
  full.keyType = DataType::kFloat32;
  full.heads = kvHeads * (problem.full.heads / problem.layout.kvHeads);
  full.kvHeads = kvHeads;
  full.headDim = materialisedKeyDim(problem.model, problem.layout);
  full.valueDim = problem.model.value.dim;
  full.sequences = sequence;
  full.sequenceCount = 1;
  return full;
}

LA_INLINE MaterialisedSpace placeMaterialised(const LrkvProblem& problem, const FullSequence& sequence, Index threads,
                                              Arena& memory) {
  const Index heads = materialisedHeads(problem, sequence, threads);
  const FullProblem full = materialisedProblem(problem, &sequence, heads);
  MaterialisedSpace space;
  space.query = memory.take<float>(full.heads * sequence.queries * full.headDim);
  space.key = memory.take<float>(heads * sequence.keys * full.headDim);
  space.value = memory.take<float>(heads * sequence.keys * full.valueDim);
  space.full = memory.take<std::byte>(static_cast<Index>(fullWorkspaceBytes(full, threads)));
  return space;
}

// Scratch of one worker that materialises rows, a page of them at a time.
struct RowScratch {
  float* whole = nullptr;  // [kPageRows][wholeStride]
  float* base = nullptr;   // the page's own rows as float32
  float* latents = nullptr;
  float* strip = nullptr;
  std::byte* page = nullptr;  // where rows are stored that do not come in pages
};

LA_INLINE RowScratch placeRowScratch(const LrkvProblem& problem, Arena& memory) {
  const LrkvModel& model = problem.model;
  const LrkvLayout& layout = problem.layout;
  constexpr Index rows = LrkvLayout::kPageRows;
  RowScratch scratch;
  scratch.whole = memory.take<float>(rows * wholeStride(maximum(model.key.dim, model.value.dim)));
  scratch.base = memory.take<float>(rows * maximum(layout.keyBaseDim, layout.valueBaseDim));
  scratch.latents = memory.take<float>(
      rows * maximum(widest(layout.keyStarts, layout.kvHeads), widest(layout.valueStarts, layout.kvHeads)));
  scratch.strip =
      memory.take<float>(maximum(stripFloats(model.key, layout.kvHeads), stripFloats(model.value, layout.kvHeads)));
  if (problem.stores != nullptr) scratch.page = memory.take<std::byte>(storedPageBytes(layout));
  return scratch;
}

// Scratch of one worker that finishes the rows of some positions and one key/value head.
struct OutputScratch {
  float* base = nullptr;     // [rows][value base columns]
  float* latents = nullptr;  // [rows][widest value latents]
  float* whole = nullptr;    // [rows][wholeStride]
  float* strip = nullptr;
};

LA_INLINE OutputScratch placeOutputScratch(const LrkvProblem& problem, Arena& memory) {
  const LrkvFactors& value = problem.model.value;
  const LrkvLayout& layout = problem.layout;
  const Index rows = kUnitPositions * (problem.full.heads / layout.kvHeads);
  OutputScratch scratch;
  scratch.base = memory.take<float>(rows * layout.valueBaseDim);
  scratch.latents = memory.take<float>(rows * widest(layout.valueStarts, layout.kvHeads));
  scratch.whole = memory.take<float>(rows * wholeStride(value.dim));
  scratch.strip = memory.take<float>(stripFloats(value, layout.kvHeads));
  return scratch;
}

struct LrkvWorkspace {
  LrkvPlan* plans = nullptr;
  std::byte* pages = nullptr;      // of sequences in the two-part form that come as rows
  float* baseQueries = nullptr;    // [rows of all sequences][key base columns], unless they are as they come
  float* latentQueries = nullptr;  // [rows of all sequences][queryWidth]
  float* states = nullptr;
  std::byte* shared = nullptr;  // of one materialised sequence at a time
  std::byte* workers = nullptr;
  Index queryWidth = 0;
  Index workerBytes = 0;
  Index units = 0;
  Index rows = 0;
  std::size_t bytes = 0;
};

// Scratch of one worker for the two-part form, its panels and sums included.
struct LrkvWorker {
  LrkvScratch scratch;
  float* query = nullptr;   // [panels][key base columns][W]
  float* states = nullptr;  // [panels] of panels
  float* sums = nullptr;    // [rows of a block][sum width]
};

LA_INLINE LrkvWorker placeLrkvWorker(const LrkvProblem& problem, const LrkvPlan& plan, Arena& memory) {
  const FullProblem base = baseProblemOf(problem);
  const Index panels = divideUp(plan.blockRows, plan.width);
  LrkvWorker worker;
  worker.scratch = placeLrkvScratch(problem, base, plan.width, memory);
  worker.query = memory.take<float>(panels * base.headDim * plan.width);
  worker.states = memory.take<float>(panels * stateFloats(base, plan.width));
  worker.sums = memory.take<float>(plan.blockRows * widest(problem.layout.valueStarts, problem.layout.kvHeads));
  return worker;
}

// The op's one workspace formula. Fills the plans if `memory` is not null.
LA_INLINE LrkvWorkspace layOutLrkv(const LrkvProblem& problem, Index threads, std::byte* memory) {
  const FullProblem& full = problem.full;
  LrkvWorkspace space;
  Arena arena(memory);
  space.plans = arena.take<LrkvPlan>(full.sequenceCount);
  space.queryWidth = widest(problem.layout.keyStarts, problem.layout.kvHeads);
  Index states = 0, pages = 0, shared = 0;
  Arena query(nullptr), output(nullptr);
  for (Index p = 0; p < kUnitPositions; ++p) placeQueryScratch(problem.model, query);
  placeOutputScratch(problem, output);
  space.workerBytes = maximum(query.bytes(), output.bytes());
  for (Index s = 0; s < full.sequenceCount; ++s) {
    const FullSequence& sequence = full.sequences[s];
    LrkvPlan plan = planLrkv(problem, sequence);
    plan.firstUnit = space.units;
    plan.firstRow = space.rows;
    plan.firstState = states;
    space.units += plan.blocks * plan.splits;
    space.rows += plan.rows;
    states += plan.rows * plan.splits * lrkvStateFloats(problem.layout);
    const Index storeBytes = problem.stores == nullptr ? 0 : lrkvStoreBytes(problem.stores[s]);
    Arena own(nullptr);
    if (plan.materialised) {
      Arena whole(nullptr);
      placeMaterialised(problem, sequence, threads, whole);
      shared = maximum(shared, whole.bytes());
      placeRowScratch(problem, own);
      own.take<std::byte>(storeBytes);
    } else {
      pages += pagesOf(sequence);
      space.workerBytes = maximum(space.workerBytes, storeBytes);
      placeLrkvWorker(problem, plan, own);
    }
    space.workerBytes = maximum(space.workerBytes, own.bytes());
    if (memory != nullptr) space.plans[s] = plan;
  }
  if (problem.stores != nullptr) space.pages = arena.take<std::byte>(pages * storedPageBytes(problem.layout));
  space.baseQueries = arena.take<float>(meetsBasePlain(problem.model) ? 0 : space.rows * problem.layout.keyBaseDim);
  space.latentQueries = arena.take<float>(space.rows * space.queryWidth);
  space.states = arena.take<float>(states);
  space.shared = arena.take<std::byte>(shared);
  // A multiple of a page, so that no two workers share a cache line.
  space.workerBytes = roundUp(space.workerBytes, 4096);
  space.workers = arena.take<std::byte>(threads * space.workerBytes);
  space.bytes = static_cast<std::size_t>(arena.bytes());
  return space;
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_PLAN_H_
