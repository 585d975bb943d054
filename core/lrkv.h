// LRKV: the keys of all heads share one base, and each head adds a residual of low rank; values alike, with a base and
// factors of their own (O'Neill et al. 2026, arXiv 2601.11471, section 3):
//   key of head h = base·A_h + latent_h·B_hᵀ
// A_h, the gauge, is the identity in the paper; a free one is what makes trained heads alike (docs/lrkv.md). A step
// reads the base once for all heads:
//   score = (q·A_hᵀ)·base + (q·B_h)·latent_h          output = (Σ p·base)·A_h + (Σ p·latent_h)·B_hᵀ
//
// Three things: the model (what is the same for all tokens), rows as they come from the projections, and rows as they
// are stored, which is what attention reads.
#ifndef LOWRANK_ATTENTION_CORE_LRKV_H_
#define LOWRANK_ATTENTION_CORE_LRKV_H_

#include "core/full.h"
#include "core/rotary.h"

namespace lowrank_attention {

// How rotary embedding and the residual go together. A rotation does not commute with B_h, so these are five different
// functions; `base` is always rotated, p is the key's position and n the query's.
enum class LrkvRope : std::uint8_t {
  kOff = 0,     // no rotary embedding at all
  kExact = 1,   // the whole key is rotated: (R_n q)·R_p(base·A + latent·Bᵀ)
  kLatent = 2,  // latents have rotations of their own: (R'_n Bᵀq)·(R'_p latent)
  kBase = 3,    // the residual is not rotated: (Bᵀq)·latent
  kPaper = 4,   // as the paper prints it: (R_n q)·B(R'_p latent); relative only where B intertwines R and R'
};

// One side of a model, keys or values.
struct LrkvFactors {
  Index dim = 0;                        // of a head: what base and residual add up to
  Index baseDim = 0;                    // columns of the base; 0: there is none
  const std::int32_t* ranks = nullptr;  // [kvHeads]; 0: no residual
  const float* up = nullptr;            // [Σ ranks][dim]: B_hᵀ, head after head
  const float* gauge = nullptr;         // [kvHeads][baseDim][dim]: A_h; null: the identity, and baseDim is dim or 0
};

struct LrkvModel {
  Index kvHeads = 0;
  LrkvFactors key;
  LrkvFactors value;
  LrkvRope rope = LrkvRope::kOff;
  Pairing pairing = Pairing::kHalf;           // of heads and, within each head's, of latents
  const double* frequencies = nullptr;        // [key.dim / 2]; none for kOff
  const double* latentFrequencies = nullptr;  // [Σ key ranks / 2], of kLatent and kPaper: ranks are even then
  Index firstPosition = 0;                    // rotary position of key 0
  // Of the keys; queries come normalised, without the gain, which the kernel puts where it belongs: on the queries, or
  // with kBeforeRotation and rotary embedding on the base that is stored (no gauge then) and on B.
  // kAfterRotation goes with kExact and kPaper, kBeforeRotation with kExact, kLatent and kBase; without rotary
  // embedding they are the same.
  RmsNorm norm;
};

// Latents are stored in multiples of so many components, the rest zero.
constexpr Index kRankStep = 8;
LA_INLINE Index paddedRank(Index rank) { return roundUp(rank, kRankStep); }

// Latents of keys are stored transposed, in blocks of so many rows, so that scores come out side by side.
constexpr Index kLatentRows = 32;

// How rows are stored. A page holds kPageRows of them, in this order:
//   key base        [kPageRows][keyBaseDim]
//   key latents     head after head: [kPageRows / kLatentRows][width of the head][kLatentRows]
//   value base      [kPageRows][valueBaseDim]
//   value latents   head after head: [kPageRows][width of the head]
//   key scales      float32 [kvHeads][kPageRows], if there are any: 1 / √(mean(key²) + epsilon)
// Keys that a kernel could only rotate whole (kExact) are stored whole: as latents of width dim, without a base.
struct LrkvLayout {
  static constexpr Index kPageRows = kKeyTile;

  DataType type = DataType::kFloat32;
  Index kvHeads = 0;
  Index keyBaseDim = 0;
  Index valueBaseDim = 0;
  // [kvHeads + 1]: sums of the widths of the heads before, multiples of kRankStep.
  const Index* keyStarts = nullptr;
  const Index* valueStarts = nullptr;
  bool scaled = false;  // keys have scales: QK-norm where they are not stored whole

  LA_METHOD Index keyWidth(Index head) const { return keyStarts[head + 1] - keyStarts[head]; }
  LA_METHOD Index valueWidth(Index head) const { return valueStarts[head + 1] - valueStarts[head]; }
  // Elements of a page before each part.
  LA_METHOD Index keyLatents(Index head) const { return kPageRows * (keyBaseDim + keyStarts[head]); }
  LA_METHOD Index valueBase() const { return keyLatents(kvHeads); }
  LA_METHOD Index valueLatents(Index head) const {
    return valueBase() + kPageRows * (valueBaseDim + valueStarts[head]);
  }
  // Elements of a row of all heads, and bytes of a page before its scales and in all.
  LA_METHOD Index rowElements() const { return keyBaseDim + keyStarts[kvHeads] + valueBaseDim + valueStarts[kvHeads]; }
  LA_METHOD Index scalesAt() const { return kPageRows * rowElements() * elementBytes(type); }
  LA_METHOD Index pageBytes() const { return scalesAt() + (scaled ? 4 * kvHeads * kPageRows : 0); }
};

// Width under which a head's keys or values are stored.
LA_INLINE Index storedKeyWidth(const LrkvModel& model, Index head) {
  return paddedRank(model.rope == LrkvRope::kExact ? model.key.dim : model.key.ranks[head]);
}
LA_INLINE Index storedValueWidth(const LrkvModel& model, Index head) { return paddedRank(model.value.ranks[head]); }
LA_INLINE Index storedKeyBase(const LrkvModel& model) { return model.rope == LrkvRope::kExact ? 0 : model.key.baseDim; }
LA_INLINE bool storesScales(const LrkvModel& model) { return model.norm.on && model.rope != LrkvRope::kExact; }

// Rows of one sequence as the projections give them: dense matrices [count][columns].
struct LrkvRows {
  DataType type = DataType::kFloat32;
  const void* keyBase = nullptr;      // [count][key.baseDim]
  const void* keyLatent = nullptr;    // [count][Σ key ranks]
  const void* valueBase = nullptr;    // [count][value.baseDim]
  const void* valueLatent = nullptr;  // [count][Σ value ranks]
};

// Stores rows at positions first … first + count − 1 of a sequence, whose page i begins at pages[i].
struct LrkvStoreProblem {
  LrkvModel model;
  LrkvLayout layout;
  LrkvRows rows;
  Index first = 0;
  Index count = 0;
  std::byte* const* pages = nullptr;
};

struct LrkvProblem {
  LrkvModel model;
  LrkvLayout layout;
  // Heads and sequences as exact attention has them; queries come without rotation. `key.pages` of a sequence are its
  // pages, its other key and value fields are unused. headDim and valueDim are those of the model.
  FullProblem full;
  // Rows to be stored first, where there is no cache: one entry a sequence, or null. Pages then lie in the workspace,
  // and the kernel puts their addresses into `pages`, one sequence's after the other's: the entries' `pages` and the
  // sequences' key.pages point there already. A kernel may leave out those of sequences that it reads another way.
  const LrkvStoreProblem* stores = nullptr;
  std::byte** pages = nullptr;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_LRKV_H_
