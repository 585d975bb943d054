// Storing rows for LRKV on the CPU: from the projections' matrices to pages. See core/lrkv.h for the layout.
//
// Rows go in blocks that lie on one page. Where keys are stored whole, or have scales, they are multiplied out first:
// base·A_h + latent_h·B_hᵀ as one sum over the columns of the base and then those of the latents, from left to right
// and never split, so a row has the same bits alone and among others.

#include "core/execution.h"
#include "core/lrkv.h"
#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/lrkv_rows.h"
#include "cpu/rotary.h"
#include "cpu/transpose.h"

namespace lowrank_attention::HWY_NAMESPACE {

LA_INLINE bool storesWholeKeys(const LrkvModel& model) { return model.rope == LrkvRope::kExact; }
LA_INLINE bool multipliesKeys(const LrkvStoreProblem& problem) {
  return storesWholeKeys(problem.model) || problem.layout.scaled;
}
LA_INLINE bool rotatesLatents(const LrkvModel& model) {
  return model.rope == LrkvRope::kLatent || model.rope == LrkvRope::kPaper;
}

// Scratch of one worker, for blocks of R rows.
struct StoreScratch {
  float* base = nullptr;           // [R][keyBaseDim]
  float* latent = nullptr;         // [R][rank] of one head
  float* whole = nullptr;          // [R][wholeStride(dim)] of one head
  float* strip = nullptr;          // [baseDim or rank][kStripWidth]
  float* cosines = nullptr;        // [R][dim / 2]
  float* sines = nullptr;          // [R][dim / 2]
  float* latentCosines = nullptr;  // [rank / 2]
  float* latentSines = nullptr;    // [rank / 2]
  float* lanes = nullptr;          // [width][kLatentRows] of one head
  std::byte* row = nullptr;        // a row of latents as it is stored
};

LA_INLINE StoreScratch placeStore(const LrkvStoreProblem& problem, Arena& arena) {
  const LrkvModel& model = problem.model;
  const Index rows = minimum(LrkvLayout::kPageRows, problem.count);
  const Index dim = model.key.dim;
  const Index rank = largestRank(model.key, model.kvHeads);
  const Index width = paddedRank(storesWholeKeys(model) ? dim : rank);
  const Index pairs = model.rope == LrkvRope::kOff ? 0 : dim / 2;
  StoreScratch scratch;
  scratch.base = arena.take<float>(rows * model.key.baseDim);
  scratch.latent = arena.take<float>(rows * rank);
  if (multipliesKeys(problem)) {
    scratch.whole = arena.take<float>(rows * wholeStride(dim));
    scratch.strip = arena.take<float>(stripFloats(model.key, model.kvHeads));
  }
  scratch.cosines = arena.take<float>(rows * pairs);
  scratch.sines = arena.take<float>(rows * pairs);
  if (rotatesLatents(model)) {
    scratch.latentCosines = arena.take<float>(rank / 2);
    scratch.latentSines = arena.take<float>(rank / 2);
  }
  scratch.lanes = arena.take<float>(width * kLatentRows);
  scratch.row = arena.take<std::byte>(width * 4);
  return scratch;
}

Index lrkvStoreBytes(const LrkvStoreProblem& problem) {
  Arena arena(nullptr);
  placeStore(problem, arena);
  return arena.bytes();
}

// Rows of a problem that lie on one page.
struct StoreBlock {
  const LrkvStoreProblem& problem;
  Index row;  // the first one, of the problem's own
  Index count;
  Index place;  // of the first one on its page
  std::byte* page;

  // Row `r` of the block in a dense matrix of the problem.
  LA_METHOD const void* source(const void* matrix, Index columns, Index r, Index column) const {
    return elementAt(matrix, problem.rows.type, (row + r) * columns + column);
  }
  LA_METHOD void* target(Index element) const {
    return elementAt(static_cast<void*>(page), problem.layout.type, element);
  }
  LA_METHOD double position(Index r) const {
    return static_cast<double>(problem.model.firstPosition + problem.first + row + r);
  }
};

// Rows ahead that are asked for: of some heads' columns, rows lie too far apart for the processor's own prefetcher.
constexpr Index kRowsAhead = 8;

// Asks for columns [first, first + count) of a row that is read some rows later, if there is one.
LA_INLINE void askForRow(const StoreBlock& block, const void* matrix, Index columns, Index r, Index first,
                         Index count) {
  if (r + kRowsAhead >= block.count) return;
  prefetch<3>(block.source(matrix, columns, r + kRowsAhead, first), count * elementBytes(block.problem.rows.type));
}

// rows[r][c] = columns [first, first + count) of a matrix of the problem, as float32.
LA_INLINE void loadBlock(const StoreBlock& block, const void* matrix, Index columns, Index first, Index count,
                         float* rows, Index stride) {
  for (Index r = 0; r < block.count; ++r) {
    askForRow(block, matrix, columns, r, first, count);
    convertRow(block.problem.rows.type, block.source(matrix, columns, r, first), DataType::kFloat32, rows + r * stride,
               count);
  }
}

// whole[r] = base·A_h + latent_h·B_hᵀ, zero from `dim` on.
LA_INLINE void multiplyKeys(const StoreBlock& block, Index head, Index firstRank, const StoreScratch& scratch) {
  const LrkvFactors& key = block.problem.model.key;
  wholeFromBase(key, head, scratch.base, block.count, scratch.whole, scratch.strip);
  addLatents(key, head, firstRank, {scratch.latent, key.ranks[head]}, block.count, scratch.whole, scratch.strip);
}

LA_INLINE RotaryTable tableOf(const StoreBlock& block, Index r, const StoreScratch& scratch) {
  const Index pairs = block.problem.model.key.dim / 2;
  return {scratch.cosines + r * pairs, scratch.sines + r * pairs};
}

// Rows of one head that become its key latents: element c of row r at rows[r·stride + c], zero from `rank` to `width`.
struct LatentRows {
  const float* rows = nullptr;
  Index stride = 0;
  Index rank = 0;
  Index width = 0;
};

// kLatentRows of them from row `r` on, to a block of latents [width][kLatentRows].
LA_INLINE void storeLanes(const LatentRows& latents, Index r, DataType type, void* target, float* lanes) {
  for (Index i = 0; i < kLatentRows; i += kSquare) {
    const float* rows[kSquare];
    for (Index j = 0; j < kSquare; ++j) rows[j] = latents.rows + (r + i + j) * latents.stride;
    rowsToLanes<kSquare>(rows, latents.rank, 1.0f, lanes + i, kLatentRows);
  }
  for (Index i = latents.rank * kLatentRows; i < latents.width * kLatentRows; ++i) lanes[i] = 0;
  convertRow(DataType::kFloat32, lanes, type, target, latents.width * kLatentRows);
}

// Row `r` alone, to lane `lane` of such a block: what other rows have there stays.
LA_INLINE void storeLane(const LatentRows& latents, Index r, DataType type, Index lane, void* target,
                         const StoreScratch& scratch) {
  __builtin_memcpy(scratch.lanes, latents.rows + r * latents.stride, static_cast<std::size_t>(4 * latents.rank));
  for (Index c = latents.rank; c < latents.width; ++c) scratch.lanes[c] = 0;
  convertRow(DataType::kFloat32, scratch.lanes, type, scratch.row, latents.width);
  const auto scatter = [&](auto* to, const auto* from) {
    for (Index c = 0; c < latents.width; ++c) to[c * kLatentRows + lane] = from[c];
  };
  if (type == DataType::kFloat32) {
    scatter(static_cast<float*>(target), reinterpret_cast<const float*>(scratch.row));
  } else {
    scatter(static_cast<std::uint16_t*>(target), reinterpret_cast<const std::uint16_t*>(scratch.row));
  }
}

// `first`: the element of the page at which the head's latents begin.
static void storeLatents(const StoreBlock& block, Index first, const LatentRows& latents, const StoreScratch& scratch) {
  const DataType type = block.problem.layout.type;
  for (Index r = 0; r < block.count;) {
    const Index place = block.place + r;
    const Index lane = place % kLatentRows;
    void* target = block.target(first + place / kLatentRows * latents.width * kLatentRows);
    if (lane == 0 && r + kLatentRows <= block.count) {
      storeLanes(latents, r, type, target, scratch.lanes);
      r += kLatentRows;
    } else {
      storeLane(latents, r, type, lane, target, scratch);
      ++r;
    }
  }
}

// Latents, or whole keys, and scales of one head; its latents begin at column `firstRank`, as its factors do.
static void storeKeyHead(const StoreBlock& block, Index head, Index firstRank, Index allRank,
                         const StoreScratch& scratch) {
  const LrkvModel& model = block.problem.model;
  const LrkvLayout& layout = block.problem.layout;
  const Index dim = model.key.dim;
  const Index rank = model.key.ranks[head];
  const Index latents = layout.keyLatents(head);
  const Index width = layout.keyWidth(head);
  loadBlock(block, block.problem.rows.keyLatent, allRank, firstRank, rank, scratch.latent, rank);
  if (multipliesKeys(block.problem)) multiplyKeys(block, head, firstRank, scratch);
  if (storesWholeKeys(model)) {
    for (Index r = 0; r < block.count; ++r) {
      const RotaryTable table = tableOf(block, r, scratch);
      normalizeAndRotate(model.norm, scratch.whole + r * wholeStride(dim), dim, model.pairing, &table);
    }
    return storeLatents(block, latents, {scratch.whole, wholeStride(dim), dim, width}, scratch);
  }
  if (layout.scaled) {
    float* scales = reinterpret_cast<float*>(block.page + layout.scalesAt()) + head * LrkvLayout::kPageRows;
    for (Index r = 0; r < block.count; ++r) {
      scales[block.place + r] = rmsFactor(scratch.whole + r * wholeStride(dim), dim, model.norm.epsilon);
    }
  }
  for (Index r = 0; rotatesLatents(model) && r < block.count; ++r) {
    fillTable(model.latentFrequencies + firstRank / 2, rank / 2, block.position(r), scratch.latentCosines,
              scratch.latentSines);
    rotateRow(scratch.latent + r * rank, rank, model.pairing, {scratch.latentCosines, scratch.latentSines});
  }
  storeLatents(block, latents, {scratch.latent, rank, rank, width}, scratch);
}

// The base as scores read it; changes what `scratch` has of it.
LA_INLINE void storeKeyBase(const StoreBlock& block, const StoreScratch& scratch) {
  const LrkvModel& model = block.problem.model;
  const LrkvLayout& layout = block.problem.layout;
  const Index dim = model.key.baseDim;
  const bool gained = model.norm.on && model.norm.gain != nullptr && model.norm.order == GainOrder::kBeforeRotation &&
                      (model.rope == LrkvRope::kLatent || model.rope == LrkvRope::kBase);
  for (Index r = 0; r < block.count; ++r) {
    float* row = scratch.base + r * dim;
    if (gained) scaleByGain(row, dim, 1, model.norm.gain);
    if (model.rope != LrkvRope::kOff) rotateRow(row, dim, model.pairing, tableOf(block, r, scratch));
    convertRow(DataType::kFloat32, row, layout.type, block.target((block.place + r) * dim), dim);
  }
}

LA_INLINE void storeKeys(const StoreBlock& block, Index firstHead, Index endHead, const StoreScratch& scratch) {
  const LrkvModel& model = block.problem.model;
  const Index baseDim = model.key.baseDim;
  loadBlock(block, block.problem.rows.keyBase, baseDim, 0, baseDim, scratch.base, baseDim);
  if (model.rope != LrkvRope::kOff) {
    fillTables(model.frequencies, model.key.dim / 2, block.position(0), block.count, scratch.cosines, scratch.sines);
  }
  const Index all = ranksBefore(model.key, model.kvHeads);
  Index first = ranksBefore(model.key, firstHead);
  for (Index head = firstHead; head < endHead; first += model.key.ranks[head++]) {
    storeKeyHead(block, head, first, all, scratch);
  }
  if (!storesWholeKeys(model)) storeKeyBase(block, scratch);
}

LA_INLINE void storeValues(const StoreBlock& block, Index firstHead, Index endHead) {
  const LrkvModel& model = block.problem.model;
  const LrkvRows& rows = block.problem.rows;
  const LrkvLayout& layout = block.problem.layout;
  const Index baseDim = model.value.baseDim;
  const Index all = ranksBefore(model.value, model.kvHeads);
  const Index before = ranksBefore(model.value, firstHead);
  for (Index r = 0; r < block.count; ++r) {
    const Index place = block.place + r;
    convertRow(rows.type, block.source(rows.valueBase, baseDim, r, 0), layout.type,
               block.target(layout.valueBase() + place * baseDim), baseDim);
    askForRow(block, rows.valueLatent, all, r, before, ranksBefore(model.value, endHead) - before);
    Index first = before;
    for (Index head = firstHead; head < endHead; first += model.value.ranks[head++]) {
      const Index rank = model.value.ranks[head];
      const Index width = layout.valueWidth(head);
      void* target = block.target(layout.valueLatents(head) + place * width);
      convertRow(rows.type, block.source(rows.valueLatent, all, r, first), layout.type, target, rank);
      __builtin_memset(elementAt(target, layout.type, rank), 0,
                       static_cast<std::size_t>((width - rank) * elementBytes(layout.type)));
    }
  }
}

void storeLrkvRows(const LrkvStoreProblem& problem, Index begin, Index end, Index firstHead, Index endHead,
                   std::byte* page, std::byte* memory) {
  Arena arena(memory);
  const StoreScratch scratch = placeStore(problem, arena);
  const StoreBlock block = {problem, begin, end - begin, (problem.first + begin) % LrkvLayout::kPageRows, page};
  storeKeys(block, firstHead, endHead, scratch);
  storeValues(block, firstHead, endHead);
}

std::size_t lrkvStoreWorkspaceBytes(const LrkvStoreProblem& problem, Index threads) {
  return static_cast<std::size_t>(threads * lrkvStoreBytes(problem));
}

void runLrkvStore(const LrkvStoreProblem& problem, const Execution& execution) {
  constexpr Index kPageRows = LrkvLayout::kPageRows;
  const Index firstPage = problem.first / kPageRows;
  const Index pages = problem.count == 0 ? 0 : divideUp(problem.first + problem.count, kPageRows) - firstPage;
  const Index workerBytes = lrkvStoreBytes(problem);
  forEachUnit(execution, pages, [&](Index worker, Index unit) {
    const Index page = (firstPage + unit) * kPageRows - problem.first;
    storeLrkvRows(problem, maximum(0, page), minimum(problem.count, page + kPageRows), 0, problem.model.kvHeads,
                  problem.pages[firstPage + unit], execution.workspace + worker * workerBytes);
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE
