// What happens to a tile of scores between query·key and the softmax: soft cap, additive mask, hidden keys.
#ifndef LOWRANK_ATTENTION_CPU_SCORES_H_
#define LOWRANK_ATTENTION_CPU_SCORES_H_

#include "cpu/panel.h"

namespace lowrank_attention::HWY_NAMESPACE {

// scores[j] ← softcap·tanh(scores[j]); the query was scaled by scale / softcap. In units of log2.
template <class Shape>
LA_INLINE void capScores(const FullProblem& problem, float* scores, Index count) {
  using D = typename Shape::Tag;
  const D d;
  const auto cap = hn::Set(d, problem.softcap * log2Unit(problem));
  for (Index i = 0; i < count * Shape::kWidth; i += kLanes<D>) {
    hn::Store(hn::Mul(cap, tanh(d, hn::Load(d, scores + i))), d, scores + i);
  }
}

// Whether the mask is the same for all rows of the sequence, as one over its keys is.
LA_INLINE bool maskOfKeys(const FullProblem& problem) {
  return problem.maskKind != MaskKind::kNone && problem.maskHeadStride == 0 && problem.maskQueryStride == 0;
}

// Whether such a mask hides all of the keys, padding say: they need not even be read.
LA_INLINE bool hiddenFromAll(const FullProblem& problem, const FullSequence& sequence, KeyRange keys) {
  if (!maskOfKeys(problem) || problem.maskKind != MaskKind::kBool) return false;
  const std::uint8_t* mask = static_cast<const std::uint8_t*>(sequence.mask);
  for (Index j = keys.begin; j < keys.end; ++j) {
    if (mask[j] != 0) return false;
  }
  return true;
}

// An element of the mask in the units of scores.
LA_INLINE float maskAt(const FullProblem& problem, const FullSequence& sequence, Index index) {
  if (problem.maskKind == MaskKind::kAdditive)
    return static_cast<const float*>(sequence.mask)[index] * log2Unit(problem);
  return static_cast<const std::uint8_t*>(sequence.mask)[index] != 0 ? 0.0f : -kInfinity;
}

// Adds the mask of keys [keys.begin, keys.end); a key hidden by a boolean or by −∞ gets the score −∞ whatever it was,
// so that NaN behind a mask stays behind it. `scratch` holds one tile of scores.
template <class Shape>
LA_INLINE void maskScores(const FullProblem& problem, const FullSequence& sequence, const Panel& panel, KeyRange keys,
                          float* scores, float* scratch) {
  using D = typename Shape::Tag;
  const D d;
  constexpr Index width = Shape::kWidth;
  const Index count = keys.end - keys.begin;
  const auto hidden = hn::Set(d, -kInfinity);
  if (problem.maskQueryStride == 0 && (problem.maskHeadStride == 0 || problem.heads == problem.kvHeads)) {
    // One row of the mask for all rows of the panel.
    const Index first = PanelRows(problem, panel).next().head * problem.maskHeadStride + keys.begin;
    for (Index j = 0; j < count; ++j) {
      const float mask = maskAt(problem, sequence, first + j);
      for (Index i = j * width; i < (j + 1) * width; i += kLanes<D>) {
        hn::Store(mask == -kInfinity ? hidden : hn::Add(hn::Load(d, scores + i), hn::Set(d, mask)), d, scores + i);
      }
    }
    return;
  }
  PanelRows places(problem, panel);
  for (Index lane = 0; lane < width; ++lane) {
    const auto [query, head] = places.next();
    const Index first = head * problem.maskHeadStride + query * problem.maskQueryStride + keys.begin;
    for (Index j = 0; j < count; ++j) scratch[j * width + lane] = maskAt(problem, sequence, first + j);
  }
  for (Index i = 0; i < count * width; i += kLanes<D>) {
    const auto mask = hn::Load(d, scratch + i);
    const auto sum = hn::Add(hn::Load(d, scores + i), mask);
    hn::Store(hn::IfThenElse(hn::Eq(mask, hidden), hidden, sum), d, scores + i);
  }
}

// Gives −∞ to the keys of the tile that causality, the window or the sequence's end hide from a row. Keys inside
// panel.common are left alone.
template <class Shape>
LA_INLINE void hideScores(const FullProblem& problem, const FullSequence& sequence, const Panel& panel, KeyRange keys,
                          float* scores) {
  using D = typename Shape::Tag;
  const D d;
  constexpr Index width = Shape::kWidth;
  alignas(64) float begin[width];
  alignas(64) float end[width];
  PanelRows places(problem, panel);
  for (Index lane = 0; lane < width; ++lane) {
    const KeyRange seen = visibleKeys(problem, sequence, places.next().query);
    begin[lane] = static_cast<float>(minimum(maximum(seen.begin - keys.begin, 0), kKeyTile));
    end[lane] = static_cast<float>(minimum(maximum(seen.end - keys.begin, 0), kKeyTile));
  }
  const auto hidden = hn::Set(d, -kInfinity);
  for (Index j = 0; j < keys.end - keys.begin; ++j) {
    if (keys.begin + j >= panel.common.begin && keys.begin + j < panel.common.end) continue;
    const auto position = hn::Set(d, static_cast<float>(j));
    for (Index lane = 0; lane < width; lane += kLanes<D>) {
      const auto inside =
          hn::And(hn::Ge(position, hn::Load(d, begin + lane)), hn::Lt(position, hn::Load(d, end + lane)));
      float* score = scores + j * width + lane;
      hn::Store(hn::IfThenElse(inside, hn::Load(d, score), hidden), d, score);
    }
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_SCORES_H_
