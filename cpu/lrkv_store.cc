// Storing rows for LRKV on the CPU: from the projections' matrices to pages. See core/lrkv.h for the layout.
//
// Rows go in blocks that lie on one page. Where keys are stored whole, or have scales, they are multiplied out first:
// base·A_h + latent_h·B_hᵀ as one sum over the columns of the base and then those of the latents, from left to right
// and never split, so a row has the same bits alone and among others.

#include "core/execution.h"
#include "core/lrkv.h"
#include "cpu/arena.h"
#include "cpu/kernels.h"
#include "cpu/microkernel.h"
#include "cpu/rotary.h"
#include "cpu/transpose.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Columns of a product that are computed together.
constexpr Index kStripWidth = 2 * kLanes<Full>;

LA_INLINE bool storesWholeKeys(const LrkvModel& model) { return model.rope == LrkvRope::kExact; }
LA_INLINE bool multipliesKeys(const LrkvStoreProblem& problem) {
  return storesWholeKeys(problem.model) || problem.layout.scaled;
}
LA_INLINE bool rotatesLatents(const LrkvModel& model) {
  return model.rope == LrkvRope::kLatent || model.rope == LrkvRope::kPaper;
}

LA_INLINE Index largestRank(const LrkvFactors& factors, Index heads) {
  Index most = 0;
  for (Index head = 0; head < heads; ++head) most = maximum(most, factors.ranks[head]);
  return most;
}
LA_INLINE Index allRanks(const LrkvFactors& factors, Index heads) {
  Index sum = 0;
  for (Index head = 0; head < heads; ++head) sum += factors.ranks[head];
  return sum;
}

// Floats between rows of whole keys: whole strips, which hold a multiple of kRankStep.
LA_INLINE Index wholeStride(Index dim) { return roundUp(dim, kStripWidth); }
static_assert(kStripWidth % kRankStep == 0);

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
    scratch.strip = arena.take<float>(maximum(model.key.baseDim, rank) * kStripWidth);
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

// rows[r][c] = columns [first, first + count) of a matrix of the problem, as float32.
LA_INLINE void loadBlock(const StoreBlock& block, const void* matrix, Index columns, Index first, Index count,
                         float* rows, Index stride) {
  for (Index r = 0; r < block.count; ++r) {
    convertRow(block.problem.rows.type, block.source(matrix, columns, r, first), DataType::kFloat32, rows + r * stride,
               count);
  }
}

// out[r] = or, where `adds`, += rows[r]·matrix, of `depth` rows and `columns` columns; the last strip of `out` is zero
// past the columns, if it is not added to.
static void multiplyBlock(const float* rows, Index count, const float* matrix, Index depth, Index columns, bool adds,
                          float* out, float* strip) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Index stride = wholeStride(columns);
  for (Index c = 0; c < columns; c += kStripWidth) {
    const Index present = minimum(kStripWidth, columns - c);
    // A strip that one group of rows reads is read where it lies.
    const bool packed = present < kStripWidth || count > kMaxRows<2>;
    for (Index k = 0; packed && k < depth; ++k) {
      float* target = strip + k * kStripWidth;
      __builtin_memcpy(target, matrix + k * columns + c, static_cast<std::size_t>(4 * present));
      for (Index lane = present; lane < kStripWidth; ++lane) target[lane] = 0;
    }
    forRowGroups<kMaxRows<2>>(count, [&](Index first, auto size) {
      float* target = out + first * stride + c;
      outerProduct<decltype(size)::value, 2>(
          d, rows + first * depth, depth, 1, packed ? strip : matrix + c, packed ? kStripWidth : columns, depth,
          [&](int r, int v) { return adds ? hn::LoadU(d, target + r * stride + v * n) : hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) { hn::StoreU(sum, d, target + r * stride + v * n); });
    });
  }
}

// whole[r] = base·A_h + latent_h·B_hᵀ, zero from `dim` on.
LA_INLINE void multiplyKeys(const StoreBlock& block, Index head, Index firstRank, const StoreScratch& scratch) {
  const LrkvModel& model = block.problem.model;
  const LrkvFactors& key = model.key;
  const Index stride = wholeStride(key.dim);
  const Index rank = key.ranks[head];
  if (key.gauge != nullptr && key.baseDim > 0) {
    multiplyBlock(scratch.base, block.count, key.gauge + head * key.baseDim * key.dim, key.baseDim, key.dim, false,
                  scratch.whole, scratch.strip);
  } else {
    // A_h is the identity, or there is no base.
    for (Index r = 0; r < block.count; ++r) {
      float* row = scratch.whole + r * stride;
      __builtin_memcpy(row, scratch.base + r * key.baseDim, static_cast<std::size_t>(4 * key.baseDim));
      for (Index c = key.baseDim; c < stride; ++c) row[c] = 0;
    }
  }
  if (rank > 0) {
    multiplyBlock(scratch.latent, block.count, key.up + firstRank * key.dim, rank, key.dim, true, scratch.whole,
                  scratch.strip);
  }
}

LA_INLINE RotaryTable tableOf(const StoreBlock& block, Index r, const StoreScratch& scratch) {
  const Index pairs = block.problem.model.key.dim / 2;
  return {scratch.cosines + r * pairs, scratch.sines + r * pairs};
}

// Stores rows of `rank` elements, transposed, as the key latents of a head; zero from `rank` to `width`.
static void storeTransposed(const StoreBlock& block, Index latents, const float* rows, Index stride, Index rank,
                            Index width, const StoreScratch& scratch) {
  const DataType type = block.problem.layout.type;
  for (Index r = 0; r < block.count;) {
    const Index place = block.place + r;
    const Index lane = place % kLatentRows;
    const Index first = latents + place / kLatentRows * width * kLatentRows;
    if (lane == 0 && r + kLatentRows <= block.count) {
      for (Index i = 0; i < kLatentRows; i += kSquare) {
        const float* four[kSquare];
        for (Index j = 0; j < kSquare; ++j) four[j] = rows + (r + i + j) * stride;
        rowsToLanes<kSquare>(four, rank, 1.0f, scratch.lanes + i, kLatentRows);
      }
      for (Index i = rank * kLatentRows; i < width * kLatentRows; ++i) scratch.lanes[i] = 0;
      convertRow(DataType::kFloat32, scratch.lanes, type, block.target(first), width * kLatentRows);
      r += kLatentRows;
      continue;
    }
    for (Index c = rank; c < width; ++c) scratch.lanes[c] = 0;
    __builtin_memcpy(scratch.lanes, rows + r * stride, static_cast<std::size_t>(4 * rank));
    convertRow(DataType::kFloat32, scratch.lanes, type, scratch.row, width);
    const auto scatter = [&](auto* target, const auto* source) {
      for (Index c = 0; c < width; ++c) target[c * kLatentRows + lane] = source[c];
    };
    if (type == DataType::kFloat32) {
      scatter(static_cast<float*>(block.target(first)), reinterpret_cast<const float*>(scratch.row));
    } else {
      scatter(static_cast<std::uint16_t*>(block.target(first)), reinterpret_cast<const std::uint16_t*>(scratch.row));
    }
    ++r;
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
    return storeTransposed(block, latents, scratch.whole, wholeStride(dim), dim, width, scratch);
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
  storeTransposed(block, latents, scratch.latent, rank, rank, width, scratch);
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

LA_INLINE void storeKeys(const StoreBlock& block, const StoreScratch& scratch) {
  const LrkvModel& model = block.problem.model;
  const Index baseDim = model.key.baseDim;
  loadBlock(block, block.problem.rows.keyBase, baseDim, 0, baseDim, scratch.base, baseDim);
  if (model.rope != LrkvRope::kOff) {
    fillTables(model.frequencies, model.key.dim / 2, block.position(0), block.count, scratch.cosines, scratch.sines);
  }
  const Index all = allRanks(model.key, model.kvHeads);
  for (Index head = 0, first = 0; head < model.kvHeads; first += model.key.ranks[head++]) {
    storeKeyHead(block, head, first, all, scratch);
  }
  if (!storesWholeKeys(model)) storeKeyBase(block, scratch);
}

LA_INLINE void storeValues(const StoreBlock& block) {
  const LrkvModel& model = block.problem.model;
  const LrkvRows& rows = block.problem.rows;
  const LrkvLayout& layout = block.problem.layout;
  const Index baseDim = model.value.baseDim;
  const Index all = allRanks(model.value, model.kvHeads);
  for (Index r = 0; r < block.count; ++r) {
    const Index place = block.place + r;
    convertRow(rows.type, block.source(rows.valueBase, baseDim, r, 0), layout.type,
               block.target(layout.valueBase() + place * baseDim), baseDim);
    for (Index head = 0, first = 0; head < model.kvHeads; first += model.value.ranks[head++]) {
      const Index rank = model.value.ranks[head];
      const Index width = layout.valueWidth(head);
      void* target = block.target(layout.valueLatents(head) + place * width);
      convertRow(rows.type, block.source(rows.valueLatent, all, r, first), layout.type, target, rank);
      __builtin_memset(elementAt(target, layout.type, rank), 0,
                       static_cast<std::size_t>((width - rank) * elementBytes(layout.type)));
    }
  }
}

void storeLrkvRows(const LrkvStoreProblem& problem, Index begin, Index end, std::byte* memory) {
  constexpr Index kPageRows = LrkvLayout::kPageRows;
  Arena arena(memory);
  const StoreScratch scratch = placeStore(problem, arena);
  while (begin < end) {
    const Index place = (problem.first + begin) % kPageRows;
    const StoreBlock block = {problem, begin, minimum(end - begin, kPageRows - place), place,
                              problem.pages[(problem.first + begin) / kPageRows]};
    storeKeys(block, scratch);
    storeValues(block);
    begin += block.count;
  }
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
    storeLrkvRows(problem, maximum(0, page), minimum(problem.count, page + kPageRows),
                  execution.workspace + worker * workerBytes);
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE
