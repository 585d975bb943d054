// The state of linear attention while it is worked on: S and z of one (batch item, key/value head), and the two products
// it takes part in.
//
// S lies in panels [F][W] of the value's columns, so that a product reads it forwards; z [F] follows. Sums over the keys
// of a range are float32 and start from zero; sums over ranges are float64. So neither a million keys nor the way the work
// is shared change what is lost by rounding.
#ifndef LOWRANK_ATTENTION_CPU_LINEAR_STATE_H_
#define LOWRANK_ATTENTION_CPU_LINEAR_STATE_H_

#include "cpu/features.h"

namespace lowrank_attention::HWY_NAMESPACE {

struct StateShape {
  explicit StateShape(const LinearProblem& problem)
      : features(problem.features),
        valueDim(problem.qkv.valueDim),
        columns(panelColumns(valueDim)),
        zBegin(features * columns),
        size(zBegin + roundUp(features, 16)) {}

  Index features;
  Index valueDim;
  Index columns;  // of the panels
  Index zBegin;   // where z begins
  Index size;     // of S and z; z is padded with zeros
};

// Calls visit(place in the panels, place in a row-major S, whether it is one there) for row f.
template <class Visit>
LA_INLINE void forStateRow(const StateShape& shape, Index f, const Visit& visit) {
  forPanels(shape.columns, [&](Index column, auto vectors) {
    constexpr Index width = decltype(vectors)::value * kLanes<Full>;
    for (Index lane = 0; lane < width; ++lane) {
      visit(column * shape.features + f * width + lane, f * shape.valueDim + column + lane,
            column + lane < shape.valueDim);
    }
  });
}

// From the caller's memory, see linearStateDoubles.
template <class T>
LA_INLINE void loadState(const StateShape& shape, const double* source, T* state) {
  for (Index f = 0; f < shape.features; ++f) {
    forStateRow(shape, f, [&](Index place, Index element, bool exists) {
      state[place] = exists ? static_cast<T>(source[element]) : T{0};
    });
    state[shape.zBegin + f] = static_cast<T>(source[shape.features * shape.valueDim + f]);
  }
  for (Index i = shape.zBegin + shape.features; i < shape.size; ++i) state[i] = 0;
}

LA_INLINE void storeState(const StateShape& shape, const double* state, float log, double* target) {
  for (Index f = 0; f < shape.features; ++f) {
    forStateRow(shape, f, [&](Index place, Index element, bool exists) {
      if (exists) target[element] = state[place];
    });
    target[shape.features * shape.valueDim + f] = state[shape.zBegin + f];
  }
  target[linearStateDoubles(shape.features, shape.valueDim) - 1] = static_cast<double>(log);
}

template <class T>
LA_INLINE void clearState(const StateShape& shape, T* state) {
  for (Index i = 0; i < shape.size; ++i) state[i] = 0;
}

LA_INLINE void roundState(const StateShape& shape, const double* state, float* rounded) {
  for (Index i = 0; i < shape.size; ++i) rounded[i] = static_cast<float>(state[i]);
}

// The logarithm of a state that holds nothing.
LA_INLINE float emptyLog(const LinearProblem& problem) {
  return problem.kind == FeatureKind::kFavor ? -kInfinity : 0.0f;
}

// e^(a − b) for a <= b; what has the logarithm −∞ is nothing, whatever it is compared with.
LA_INLINE float expDifference(float a, float b) {
  if (a == b) return a == -kInfinity ? 0.0f : 1.0f;
  return a == -kInfinity ? 0.0f : ::expf(a - b);
}

LA_INLINE float larger(float a, float b) { return a > b ? a : b; }

// What the keys of one range amount to, from zero, and what they leave of the state before them.
struct RangeSum {
  float* state = nullptr;  // to be multiplied by e^log
  float log = 0;
  double decay = 1;                 // Π e^g of the head
  double* featureDecay = nullptr;   // [F] the same for each feature; null without
};

LA_INLINE void clearSum(const LinearProblem& problem, const StateShape& shape, RangeSum& sum) {
  clearState(shape, sum.state);
  sum.log = emptyLog(problem);
  sum.decay = 1;
  for (Index f = 0; sum.featureDecay != nullptr && f < shape.features; ++f) sum.featureDecay[f] = 1;
}

// state ← what `sum` leaves of it + sum.
LA_INLINE void addSum(const StateShape& shape, const RangeSum& sum, double* state, float* log) {
  const float total = larger(*log, sum.log);
  const double carry = sum.decay * static_cast<double>(expDifference(*log, total));
  const double scale = static_cast<double>(expDifference(sum.log, total));
  *log = total;
  const auto add = [&](Index begin, Index end, double factor) {
    for (Index i = begin; i < end; ++i) state[i] = state[i] * factor + static_cast<double>(sum.state[i]) * scale;
  };
  if (sum.featureDecay == nullptr) return add(0, shape.size, carry);
  for (Index f = 0; f < shape.features; ++f) {
    const double factor = carry * sum.featureDecay[f];
    forPanels(shape.columns, [&](Index column, auto vectors) {
      constexpr Index width = decltype(vectors)::value * kLanes<Full>;
      const Index begin = column * shape.features + f * width;
      add(begin, begin + width, factor);
    });
    add(shape.zBegin + f, shape.zBegin + f + 1, factor);
  }
}

// How a chunk of keys changes a range's sum, and the state that the next chunk's queries then read.
struct StateUpdate {
  const float* keep = nullptr;  // [F] factors of the old sum; null for 1
  float* sum = nullptr;
  // state = carry ⊙ past + scale·(new sum), if `past` is not null.
  const float* past = nullptr;
  const float* carry = nullptr;  // [F]; null for 1
  float scale = 1;
  float* state = nullptr;
  bool updatesZ = true;
};

// sum ← keep ⊙ sum + Σ_j key_jᵀ·value_j, z likewise with Σ_j key_j. Values are panels [count][W].
static void updateState(const StateShape& shape, const float* key, Index count, const float* value,
                        const StateUpdate& update) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Index stride = featureStride(shape.features);
  const auto kept = [&](Index f, Vec<Full> sum) {
    return update.keep == nullptr ? sum : hn::Mul(sum, hn::Set(d, update.keep[f]));
  };
  const auto combined = [&](Index f, Vec<Full> past, Vec<Full> sum) {
    const auto carried = update.carry == nullptr ? past : hn::Mul(past, hn::Set(d, update.carry[f]));
    return hn::MulAdd(sum, hn::Set(d, update.scale), carried);
  };
  forPanels(shape.columns, [&](Index column, auto vectors) {
    constexpr int kVecs = decltype(vectors)::value;
    forRowGroups<kMaxRows<kVecs>>(shape.features, [&](Index first, auto size) {
      const Index begin = column * shape.features + first * kVecs * n;
      const auto place = [&](int r, int v) { return begin + (r * kVecs + v) * n; };
      outerProduct<decltype(size)::value, kVecs>(
          d, key + first, 1, stride, value + column * count, kVecs * n, count,
          [&](int r, int v) { return kept(first + r, hn::Load(d, update.sum + place(r, v))); },
          [&](int r, int v, Vec<Full> sum) {
            hn::Store(sum, d, update.sum + place(r, v));
            if (update.past == nullptr) return;
            hn::Store(combined(first + r, hn::Load(d, update.past + place(r, v)), sum), d, update.state + place(r, v));
          });
    });
  });
  if (!update.updatesZ) {
    for (Index i = shape.zBegin; update.past != nullptr && i < shape.size; ++i) update.state[i] = 0;
    return;
  }
  float* z = update.sum + shape.zBegin;
  for (Index f = 0; f < shape.features; f += n) {
    auto sum = hn::Load(d, z + f);
    if (update.keep != nullptr) sum = hn::Mul(sum, hn::Load(d, update.keep + f));
    for (Index j = 0; j < count; ++j) sum = hn::Add(sum, hn::Load(d, key + j * stride + f));
    hn::Store(sum, d, z + f);
    if (update.past == nullptr) continue;
    auto carried = hn::Load(d, update.past + shape.zBegin + f);
    if (update.carry != nullptr) carried = hn::Mul(carried, hn::Load(d, update.carry + f));
    hn::Store(hn::MulAdd(sum, hn::Set(d, update.scale), carried), d, update.state + shape.zBegin + f);
  }
}

// What rows of features read: from a state, and from the values of their own chunk.
struct StateReads {
  const float* rows = nullptr;   // [count][featureStride(F)]
  const float* state = nullptr;  // null: an empty one
  const float* carry = nullptr;  // [count] factors of what is read from the state; null for 1
  const float* pairs = nullptr;  // [count][pairStride] factors of the values, zero for those after a row; null for none
  Index pairStride = 0;
  const float* value = nullptr;  // panels [count][W]
  bool finite = true;            // all values
};

// Calls finish(row, column, sum of lanes from that column on) with carry_i·(row_i·S) + Σ_{j ≤ i} pairs_ij·value_j.
template <class Finish>
LA_INLINE void readState(const StateShape& shape, Index count, const StateReads& reads, const Finish& finish) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Index stride = featureStride(shape.features);
  const bool empty = reads.state == nullptr;
  const bool alone = reads.pairs == nullptr;
  forPanels(shape.columns, [&](Index column, auto vectors) {
    constexpr int kVecs = decltype(vectors)::value;
    const float* state = empty ? reads.rows : reads.state + column * shape.features;
    const float* value = alone ? reads.rows : reads.value + column * count;
    const auto group = [&](Index first, auto size) {
      constexpr int kRows = decltype(size)::value;
      const float* pairs = alone ? reads.rows : reads.pairs + first * reads.pairStride;
      Vec<Full> read[kRows][kVecs];
      outerProduct<kRows, kVecs>(
          d, reads.rows + first * stride, stride, 1, state, kVecs * n, empty ? 0 : shape.features,
          [&](int, int) { return hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) {
            read[r][v] = reads.carry == nullptr ? sum : hn::Mul(sum, hn::Set(d, reads.carry[first + r]));
          });
      outerProduct<kRows, kVecs>(
          d, pairs, reads.pairStride, 1, value, kVecs * n, alone ? 0 : first + kRows,
          [&](int r, int v) { return read[r][v]; },
          [&](int r, int v, Vec<Full> sum) { finish(first + r, column + v * n, sum); });
    };
    // A row of a group meets the values of the group's later rows with factors of zero; they must be finite for that.
    if (alone || reads.finite) {
      forRowGroups<kMaxRows<kVecs>>(count, group);
    } else {
      for (Index row = 0; row < count; ++row) group(row, Constant<1>());
    }
  });
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LINEAR_STATE_H_
