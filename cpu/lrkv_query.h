// Queries as the stored form of keys wants them, and outputs back from the stored form of values: what is done once a
// query and head, whatever the number of keys.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_QUERY_H_
#define LOWRANK_ATTENTION_CPU_LRKV_QUERY_H_

#include "core/lrkv.h"
#include "cpu/lrkv_rows.h"
#include "cpu/panel.h"
#include "cpu/rotary.h"

namespace lowrank_attention::HWY_NAMESPACE {

LA_INLINE Index widest(const Index* starts, Index heads) {
  Index width = 0;
  for (Index h = 0; h < heads; ++h) width = maximum(width, starts[h + 1] - starts[h]);
  return width;
}

// out[c] += Σ_k factors[k]·rows[k][c]; rows [count][dim].
LA_INLINE void addRows(const float* factors, Index count, const float* rows, Index dim, float* out) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const auto columns = [&](Index c, auto vecs) {
    constexpr int kVecs = decltype(vecs)::value;
    Vec<Full> sum[kVecs];
    for (int v = 0; v < kVecs; ++v) sum[v] = hn::LoadU(d, out + c + v * n);
    for (Index k = 0; k < count; ++k) {
      const auto factor = hn::Set(d, factors[k]);
      for (int v = 0; v < kVecs; ++v) sum[v] = hn::MulAdd(factor, hn::LoadU(d, rows + k * dim + c + v * n), sum[v]);
    }
    for (int v = 0; v < kVecs; ++v) hn::StoreU(sum[v], d, out + c + v * n);
  };
  Index c = 0;
  for (; c + 8 * n <= dim; c += 8 * n) columns(c, Constant<8>());
  for (; c + n <= dim; c += n) columns(c, Constant<1>());
  for (; c < dim; ++c) {
    for (Index k = 0; k < count; ++k) out[c] += factors[k] * rows[k * dim + c];
  }
}

// out[k] = rows[k]·x; rows [count][dim].
LA_INLINE void dotRows(const float* rows, Index count, const float* x, Index dim, float* out) {
  for (Index k = 0; k < count; ++k) out[k] = dotRow(rows + k * dim, x, dim);
}

// Scratch for the queries of one position.
struct QueryScratch {
  float* cosines = nullptr;  // [headDim / 2]
  float* sines = nullptr;
  float* latentCosines = nullptr;  // [Σ key ranks / 2]
  float* latentSines = nullptr;
  float* plain = nullptr;    // [headDim]
  float* rotated = nullptr;  // [headDim]
};

template <class Memory>
LA_INLINE QueryScratch placeQueryScratch(const LrkvModel& model, Memory& memory) {
  QueryScratch scratch;
  const bool rotary = model.rope != LrkvRope::kOff;
  const Index pairs = rotary ? model.key.dim / 2 : 0;
  const Index latentPairs = model.rope == LrkvRope::kLatent ? ranksBefore(model.key, model.kvHeads) / 2 : 0;
  scratch.cosines = memory.template take<float>(pairs);
  scratch.sines = memory.template take<float>(pairs);
  scratch.latentCosines = memory.template take<float>(latentPairs);
  scratch.latentSines = memory.template take<float>(latentPairs);
  scratch.plain = memory.template take<float>(model.key.dim);
  scratch.rotated = memory.template take<float>(model.key.dim);
  return scratch;
}

// The rotations of a query at `position` among the keys.
LA_INLINE void turnTo(const LrkvModel& model, Index position, const QueryScratch& scratch) {
  if (model.rope == LrkvRope::kOff) return;
  const double place = static_cast<double>(model.firstPosition + position);
  fillTable(model.frequencies, model.key.dim / 2, place, scratch.cosines, scratch.sines);
  if (model.rope != LrkvRope::kLatent) return;
  fillTable(model.latentFrequencies, ranksBefore(model.key, model.kvHeads) / 2, place, scratch.latentCosines,
            scratch.latentSines);
}

// scratch.plain and scratch.rotated of a query, with what gain belongs on it. The gain of a normalised key stands on
// the query wherever that is the same; a key that is stored whole has its own.
LA_INLINE void prepareQuery(const LrkvModel& model, DataType type, const void* query, const QueryScratch& scratch) {
  const Index dim = model.key.dim;
  convertRow(type, query, DataType::kFloat32, scratch.plain, dim);
  const bool gained = model.norm.on && model.norm.gain != nullptr && model.rope != LrkvRope::kExact;
  const auto gain = [&](float* row) { scaleByGain(row, dim, 1.0f, model.norm.gain); };
  if (gained && model.rope == LrkvRope::kOff) gain(scratch.plain);
  __builtin_memcpy(scratch.rotated, scratch.plain, static_cast<std::size_t>(dim) * sizeof(float));
  if (model.rope == LrkvRope::kOff) return;
  rotateRow(scratch.rotated, dim, model.pairing, {scratch.cosines, scratch.sines});
  if (!gained) return;
  gain(model.norm.order == GainOrder::kAfterRotation ? scratch.rotated : scratch.plain);
}

// What of the query meets the base: `base` [key base columns].
LA_INLINE void baseQuery(const LrkvModel& model, Index kvHead, const QueryScratch& scratch, float* base) {
  const LrkvFactors& key = model.key;
  const Index columns = storedKeyBase(model);
  if (key.gauge != nullptr) {
    dotRows(key.gauge + kvHead * columns * key.dim, columns, scratch.rotated, key.dim, base);
  } else {
    __builtin_memcpy(base, scratch.rotated, static_cast<std::size_t>(columns) * sizeof(float));
  }
}

// What of the query meets the head's latents: `latent` [width], zero where they are padding. `before` are the ranks of
// the heads before.
LA_INLINE void latentQuery(const LrkvModel& model, Index kvHead, Index before, const QueryScratch& scratch,
                           float* latent, Index width) {
  const LrkvFactors& key = model.key;
  const bool whole = model.rope == LrkvRope::kExact;
  const Index rank = whole ? key.dim : key.ranks[kvHead];
  if (whole) {
    __builtin_memcpy(latent, scratch.rotated, static_cast<std::size_t>(rank) * sizeof(float));
  } else {
    const float* query = model.rope == LrkvRope::kPaper ? scratch.rotated : scratch.plain;
    dotRows(key.up + before * key.dim, rank, query, key.dim, latent);
    if (model.rope == LrkvRope::kLatent) {
      rotateRow(latent, rank, model.pairing, {scratch.latentCosines + before / 2, scratch.latentSines + before / 2});
    }
  }
  for (Index c = rank; c < width; ++c) latent[c] = 0;
}

// output [value.dim] = base·A_h + latent·B_hᵀ.
LA_INLINE void outputOf(const LrkvFactors& value, Index kvHead, Index before, const float* base, const float* latent,
                        float* output) {
  const Index dim = value.dim;
  if (value.gauge == nullptr && value.baseDim > 0) {
    __builtin_memcpy(output, base, static_cast<std::size_t>(dim) * sizeof(float));
  } else {
    __builtin_memset(output, 0, static_cast<std::size_t>(dim) * sizeof(float));
    if (value.baseDim > 0) addRows(base, value.baseDim, value.gauge + kvHead * value.baseDim * dim, dim, output);
  }
  addRows(latent, value.ranks[kvHead], value.up + before * dim, dim, output);
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_QUERY_H_
