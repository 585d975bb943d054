// Queries as the stored form of keys wants them: what is done once a query and head, whatever the number of keys.
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

// The sums over all lanes of four vectors, as four lanes.
template <class D>
LA_INLINE Vec<SquareTag> sumsOfLanes(D d, Vec<D> a, Vec<D> b, Vec<D> c, Vec<D> e) {
  if constexpr (kLanes < D >> kSquare) {
    const hn::Half<D> half;
    const auto fold = [&](Vec<D> v) { return hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)); };
    return sumsOfLanes(half, fold(a), fold(b), fold(c), fold(e));
  } else {
    const auto pairs = [&](Vec<D> v, Vec<D> w) {
      return hn::Add(hn::InterleaveLower(d, v, w), hn::InterleaveUpper(d, v, w));
    };
    return pairs(pairs(a, c), pairs(b, e));
  }
}

// out[k] = scale·(rows[k]·x); rows [count][dim]. Four rows share what is read of x and the sums across lanes.
LA_INLINE void dotRows(const float* rows, Index count, const float* x, Index dim, float scale, float* out) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  for (Index k = 0; k < count; k += kSquare) {
    const float* row[kSquare];
    Vec<Full> sum[kSquare][2];
    float tail[kSquare];
    for (Index r = 0; r < kSquare; ++r) {
      row[r] = rows + minimum(k + r, count - 1) * dim;
      sum[r][0] = sum[r][1] = hn::Zero(d);
      tail[r] = 0;
    }
    Index c = 0;
    for (; c + 2 * n <= dim; c += 2 * n) {
      const auto x0 = hn::LoadU(d, x + c), x1 = hn::LoadU(d, x + c + n);
#pragma GCC unroll 4
      for (Index r = 0; r < kSquare; ++r) {
        sum[r][0] = hn::MulAdd(hn::LoadU(d, row[r] + c), x0, sum[r][0]);
        sum[r][1] = hn::MulAdd(hn::LoadU(d, row[r] + c + n), x1, sum[r][1]);
      }
    }
    for (; c < dim; ++c) {
      for (Index r = 0; r < kSquare; ++r) tail[r] += row[r][c] * x[c];
    }
    const auto total = [&](Index r) { return hn::Add(sum[r][0], sum[r][1]); };
    const SquareTag four;
    const auto plain = hn::Add(sumsOfLanes(d, total(0), total(1), total(2), total(3)), hn::LoadU(four, tail));
    const auto sums = hn::Mul(plain, hn::Set(four, scale));
    float* target = out + k;
    if (k + kSquare <= count) {
      hn::StoreU(sums, four, target);
    } else {
      hn::StoreU(sums, four, tail);
      for (Index r = 0; k + r < count; ++r) target[r] = tail[r];
    }
  }
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

// Whether queries meet the base as they come.
LA_INLINE bool meetsBasePlain(const LrkvModel& model) {
  return model.rope == LrkvRope::kOff && model.key.gauge == nullptr && !(model.norm.on && model.norm.gain != nullptr);
}

// What of the query meets the base: `base` [key base columns].
LA_INLINE void baseQuery(const LrkvModel& model, Index kvHead, const QueryScratch& scratch, float* base) {
  const LrkvFactors& key = model.key;
  const Index columns = storedKeyBase(model);
  if (key.gauge != nullptr) {
    dotRows(key.gauge + kvHead * columns * key.dim, columns, scratch.rotated, key.dim, 1.0f, base);
  } else {
    __builtin_memcpy(base, scratch.rotated, static_cast<std::size_t>(columns) * sizeof(float));
  }
}

// What of the query meets the head's latents, times `scale`: `latent` [width], zero where they are padding. `before`
// are the ranks of the heads before.
LA_INLINE void latentQuery(const LrkvModel& model, Index kvHead, Index before, const QueryScratch& scratch, float scale,
                           float* latent, Index width) {
  const LrkvFactors& key = model.key;
  const bool whole = model.rope == LrkvRope::kExact;
  const Index rank = whole ? key.dim : key.ranks[kvHead];
  if (whole) {
    for (Index c = 0; c < rank; ++c) latent[c] = scratch.rotated[c] * scale;
  } else {
    const float* query = model.rope == LrkvRope::kPaper ? scratch.rotated : scratch.plain;
    dotRows(key.up + before * key.dim, rank, query, key.dim, scale, latent);
    if (model.rope == LrkvRope::kLatent) {
      rotateRow(latent, rank, model.pairing, {scratch.latentCosines + before / 2, scratch.latentSines + before / 2});
    }
  }
  for (Index c = rank; c < width; ++c) latent[c] = 0;
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_QUERY_H_
