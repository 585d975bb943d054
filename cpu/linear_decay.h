// Decays of each feature (GLA, Yang et al. 2023, arXiv 2312.06635): inside a chunk the pair of row i and key j is
//   Σ_f row_i[f]·key_j[f]·Π_{j < t ≤ i} e^g_t[f]
// which is a product of matrices only if the factor is cut in two. Cut at a common place of all pairs one half would be
// e^(+Σ|g|), so the chunk is cut into blocks: pairs of different blocks are cut where the row's block begins, both halves
// being at most 1, and pairs of one block are taken one by one. All factors are products of e^g: nothing is ever
// divided, nor a difference of sums taken, so that a decay to nothing (g = −∞) is like any other.
#ifndef LOWRANK_ATTENTION_CPU_LINEAR_DECAY_H_
#define LOWRANK_ATTENTION_CPU_LINEAR_DECAY_H_

#include "cpu/linear_head.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kDecayBlock = 8;
constexpr Index kDecayBlocks = kLinearChunk / kDecayBlock;

// Panels of a chunk's keys by lanes: at most two vectors, and no more than half a chunk, or half of the pairs computed
// would be of keys after their row.
constexpr int kLaneVecs = kLanes<Full> * 4 <= kLinearChunk ? 2 : 1;
constexpr Index kLaneWidth = kLaneVecs * kLanes<Full>;

// panels[p][f][lane] = rows[p·W + lane][f]; lanes beyond the last row repeat it.
LA_INLINE void rowsToLanePanels(const float* rows, Index count, Index features, float* panels) {
  const Index stride = featureStride(features);
  for (Index j = 0; j < roundUp(count, kLaneWidth); j += kSquare) {
    const float* square[kSquare];
    for (Index r = 0; r < kSquare; ++r) square[r] = rows + minimum(j + r, count - 1) * stride;
    rowsToLanes<kSquare>(square, features, 1.0f, panels + j / kLaneWidth * kLaneWidth * features + j % kLaneWidth,
                         kLaneWidth);
  }
}

// pairs[i][j] = row_i · key_j for rows [begin, end) and the panels of keys [0, keys); where `triangle`, only panels that
// hold a key j ≤ i.
LA_INLINE void multiplyPairs(const float* rows, Index begin, Index end, Index features, const float* lanes, Index keys,
                             bool triangle, float* pairs) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Index stride = featureStride(features);
  for (Index j = 0; j < keys; j += kLaneWidth) {
    const Index from = triangle ? maximum(begin, j) : begin;
    if (from >= end) return;
    forRowGroups<kMaxRows<kLaneVecs>>(end - from, [&](Index group, auto size) {
      const Index first = from + group;
      outerProduct<decltype(size)::value, kLaneVecs>(
          d, rows + (first - begin) * stride, stride, 1, lanes + j * features, kLaneWidth, features,
          [&](int, int) { return hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) { hn::Store(sum, d, pairs + (first + r) * kLinearChunk + j + v * n); });
    });
  }
}

// Factors of one chunk, in rows padded to 16 features.
struct FeatureDecays {
  float* factor = nullptr;     // [chunk] e^g_j
  float* fromStart = nullptr;  // [chunk] Π e^g from the chunk's first key to j
  float* fromBlock = nullptr;  // [chunk] from the first key of j's block to j
  float* toEnd = nullptr;      // [chunk] from key j + 1 to the chunk's last
  float* rows = nullptr;       // [chunk][featureStride(F)] rows being scaled
  float* lanes = nullptr;      // [blocks] panels of the keys before the block, decayed to where it begins
};

LA_INLINE Index decayStride(Index features) { return roundUp(features, 16); }

LA_INLINE Index decayFloats(Index features) {
  return kLinearChunk * (4 * decayStride(features) + featureStride(features) + kDecayBlocks * features);
}

LA_INLINE FeatureDecays placeDecays(Index features, float* memory) {
  const Index floats = kLinearChunk * decayStride(features);
  FeatureDecays decays;
  decays.factor = memory;
  decays.fromStart = decays.factor + floats;
  decays.fromBlock = decays.fromStart + floats;
  decays.toEnd = decays.fromBlock + floats;
  decays.rows = decays.toEnd + floats;
  decays.lanes = decays.rows + kLinearChunk * featureStride(features);
  return decays;
}

// target[f] = a[f]·b[f] in whole vectors of rows that have room for them.
LA_INLINE void multiplyRow(const float* a, const float* b, Index features, float* target) {
  const Full d;
  for (Index f = 0; f < features; f += kLanes<Full>) {
    hn::StoreU(hn::Mul(hn::LoadU(d, a + f), hn::LoadU(d, b + f)), d, target + f);
  }
}

// row_i ← row_i ⊙ factors_i.
LA_INLINE void scaleRows(float* rows, Index count, Index features, const float* factors) {
  for (Index i = 0; i < count; ++i) {
    float* row = rows + i * featureStride(features);
    multiplyRow(row, factors + i * decayStride(features), features, row);
  }
}

// Everything of keys [first, first + count), whose features are staged.
static void prepareDecays(const LinearHead& head, Index first, Index count, const float* key,
                          const FeatureDecays& decays) {
  const Full d;
  const Index features = head.shape.features;
  const Index stride = decayStride(features);
  for (Index j = 0; j < count; ++j) {
    float* factor = decays.factor + j * stride;
    for (Index f = 0; f < stride; ++f) factor[f] = 0;
    if (head.hides(first + j)) {
      for (Index f = 0; f < features; ++f) factor[f] = 1;
    } else {
      const float* row = head.decay + (first + j) * head.problem.decayRowStride;
      for (Index f = 0; f < features; ++f) factor[f] = row[f];
      mapVectors(factor, features, factor, [&](Vec<Full> x) { return expNonPositive(d, x); });
    }
    const auto continued = [&](float* products, bool begins) {
      if (begins) {
        __builtin_memcpy(products + j * stride, factor, static_cast<std::size_t>(4 * stride));
      } else {
        multiplyRow(products + (j - 1) * stride, factor, features, products + j * stride);
      }
    };
    continued(decays.fromStart, j == 0);
    continued(decays.fromBlock, j % kDecayBlock == 0);
  }
  for (Index f = 0; f < stride; ++f) decays.toEnd[(count - 1) * stride + f] = 1;
  for (Index j = count - 1; j > 0; --j) {
    multiplyRow(decays.toEnd + j * stride, decays.factor + j * stride, features, decays.toEnd + (j - 1) * stride);
  }
  // Keys decayed to the beginning of one block after the other.
  const Index rowStride = featureStride(features);
  for (Index block = kDecayBlock; block < count; block += kDecayBlock) {
    const Index before = block - kDecayBlock;
    for (Index j = 0; j < before; ++j) {
      float* row = decays.rows + j * rowStride;
      multiplyRow(row, decays.fromBlock + (block - 1) * stride, features, row);
    }
    // toEnd of the block alone, from its last key back.
    float* last = decays.rows + (block - 1) * rowStride;
    __builtin_memcpy(last, key + (block - 1) * rowStride, static_cast<std::size_t>(4 * rowStride));
    for (Index j = before; j < block - 1; ++j) {
      float* row = decays.rows + j * rowStride;
      multiplyRow(key + j * rowStride, decays.factor + (j + 1) * stride, features, row);
      for (Index t = j + 2; t < block; ++t) multiplyRow(row, decays.factor + t * stride, features, row);
    }
    rowsToLanePanels(decays.rows, block, features, decays.lanes + block / kDecayBlock * kLinearChunk * features);
  }
}

// pairs[i][j] for j ≤ i of `count` rows with the chunk's keys.
static void decayedPairs(const float* rows, Index count, Index features, const float* key, const FeatureDecays& decays,
                         float* pairs) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Index stride = decayStride(features);
  const Index rowStride = featureStride(features);
  for (Index block = 0; block < count; block += kDecayBlock) {
    const Index end = minimum(count, block + kDecayBlock);
    for (Index i = block; i < end && block > 0; ++i) {
      multiplyRow(rows + i * rowStride, decays.fromBlock + i * stride, features,
                  decays.rows + (i - block) * rowStride);
    }
    multiplyPairs(decays.rows, block, end, features, decays.lanes + block / kDecayBlock * kLinearChunk * features,
                  block, false, pairs);
    float* decayed = decays.rows;
    for (Index i = block; i < end; ++i) {
      const float* row = rows + i * rowStride;
      pairs[i * kLinearChunk + i] = dotRow(row, key + i * rowStride, features);
      for (Index j = i - 1; j >= block; --j) {
        const float* before = j == i - 1 ? row : decayed;
        const float* factor = decays.factor + (j + 1) * stride;
        auto sum = hn::Zero(d);
        for (Index f = 0; f < features; f += n) {
          const auto product = hn::Mul(hn::LoadU(d, before + f), hn::Load(d, factor + f));
          hn::StoreU(product, d, decayed + f);
          sum = hn::MulAdd(product, hn::LoadU(d, key + j * rowStride + f), sum);
        }
        pairs[i * kLinearChunk + j] = hn::GetLane(hn::SumOfLanes(d, sum));
      }
    }
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LINEAR_DECAY_H_
