// A panel: W query rows that share one key/value head, one row a lane.
#ifndef LOWRANK_ATTENTION_CPU_PANEL_H_
#define LOWRANK_ATTENTION_CPU_PANEL_H_

#include <cmath>

#include "core/full.h"
#include "cpu/math.h"
#include "cpu/microkernel.h"
#include "cpu/transpose.h"

namespace lowrank_attention::HWY_NAMESPACE {

inline constexpr float kInfinity = __builtin_inff();

// W = lanes(D)·kVecs query rows.
template <class D, int kVecs>
struct PanelShape {
  using Tag = D;
  static constexpr int kVectors = kVecs;
  static constexpr Index kWidth = kLanes<D> * kVecs;
};

struct Panel {
  Index kvHead = 0;
  Index firstRow = 0;       // row r is query r / group of head kvHead·group + r % group
  Index rows = 0;           // at most W; the other lanes compute on zeros and are dropped
  KeyRange seen;            // union of what the rows may see
  KeyRange common;          // what every row may see
  float* query = nullptr;   // [headDim][W], scaled so that scores come out in units of log2 (see `scaleOfQuery`)
  float* output = nullptr;  // [valueDim][W] Σ 2^(score − rowMax)·value
  float* rowMax = nullptr;  // [W] log2 units; −∞ before the first visible key
  float* rowSum = nullptr;  // [W] Σ 2^(score − rowMax)
};

// Floats of a panel's state: output, rowMax, rowSum.
LA_INLINE Index stateFloats(const FullProblem& problem, Index width) { return (problem.valueDim + 2) * width; }

LA_INLINE void placeState(const FullProblem& problem, Panel& panel, float* state, Index width) {
  panel.output = state;
  panel.rowMax = state + problem.valueDim * width;
  panel.rowSum = panel.rowMax + width;
}

struct RowPlace {
  Index query;
  Index head;
};

// Walks over the rows of a panel, with one division for all of them. Past the last row it stays there.
class PanelRows {
 public:
  LA_METHOD PanelRows(const FullProblem& problem, const Panel& panel)
      : group_(problem.heads / problem.kvHeads),
        firstHead_(panel.kvHead * group_),
        query_(panel.firstRow / group_),
        inGroup_(panel.firstRow % group_),
        left_(panel.rows) {}

  LA_METHOD RowPlace next() {
    const RowPlace place = {query_, firstHead_ + inGroup_};
    if (--left_ > 0 && ++inGroup_ == group_) {
      inGroup_ = 0;
      ++query_;
    }
    return place;
  }

 private:
  const Index group_;
  const Index firstHead_;
  Index query_;
  Index inGroup_;
  Index left_;
};

// What brings a number in the units of the problem's scores to log2, which kernels compute in.
LA_INLINE float log2Unit(const FullProblem& problem) { return problem.base2 ? 1.0f : kLog2E; }

LA_INLINE float scaleOfQuery(const FullProblem& problem) {
  return problem.softcap > 0 ? problem.scale / problem.softcap : problem.scale * log2Unit(problem);
}

// Rows are brought to and from lanes so many at a time, in chunks of kRowChunk elements.
template <class Shape>
inline constexpr Index kRowBlock = minimum(Shape::kWidth, kSquare);
constexpr Index kRowChunk = 64;

// Fills panel.query and the visible ranges for panel.rows rows from panel.firstRow on.
template <class Shape>
LA_INLINE void loadQueries(const FullProblem& problem, const FullSequence& sequence, Panel& panel) {
  constexpr Index width = Shape::kWidth;
  constexpr Index kRows = kRowBlock<Shape>;
  panel.seen = {FullProblem::kOpen, 0};
  panel.common = {0, FullProblem::kOpen};
  const float scale = scaleOfQuery(problem);
  PanelRows places(problem, panel);
  for (Index lane = 0; lane < width; lane += kRows) {
    const Index rows = maximum(0, minimum(kRows, panel.rows - lane));
    const void* source[kRows] = {};
    for (Index r = 0; r < rows; ++r) {
      const auto [query, head] = places.next();
      const KeyRange seen = visibleKeys(problem, sequence, query);
      panel.seen = {minimum(panel.seen.begin, seen.begin), maximum(panel.seen.end, seen.end)};
      panel.common = {maximum(panel.common.begin, seen.begin), minimum(panel.common.end, seen.end)};
      source[r] = rowOf(sequence.query, problem.queryType, head, query);
    }
    float chunk[kRows][kRowChunk];
    for (Index r = rows; r < kRows; ++r) __builtin_memset(chunk[r], 0, sizeof chunk[r]);  // missing rows
    for (Index c = 0; c < problem.headDim; c += kRowChunk) {
      const Index count = minimum(kRowChunk, problem.headDim - c);
      const float* row[kRows];
      for (Index r = 0; r < kRows; ++r) {
        row[r] = r < rows ? asFloat32(problem.queryType, elementAt(source[r], problem.queryType, c), count, chunk[r])
                          : chunk[r];
      }
      rowsToLanes<kRows>(row, count, scale, panel.query + c * width + lane, width);
    }
  }
}

// The state before any key: a sink is one more logit, seen by every row, whose value is zero.
template <class Shape>
LA_INLINE void initState(const FullProblem& problem, const Panel& panel, bool withSink) {
  constexpr Index width = Shape::kWidth;
  for (Index i = 0; i < problem.valueDim * width; ++i) panel.output[i] = 0;
  PanelRows places(problem, panel);
  for (Index lane = 0; lane < width; ++lane) {
    const Index head = places.next().head;
    const bool sink = withSink && problem.sinks != nullptr && lane < panel.rows;
    const float logit = sink ? problem.sinks[head] * log2Unit(problem) : -kInfinity;
    panel.rowMax[lane] = logit;
    panel.rowSum[lane] = logit == -kInfinity ? 0.0f : 1.0f;
  }
}

// Adds the state of a later key range to that of an earlier one: both are brought to the larger maximum.
template <class Shape>
LA_INLINE void mergeState(const FullProblem& problem, const Panel& into, const Panel& from) {
  using D = typename Shape::Tag;
  const D d;
  constexpr Index width = Shape::kWidth;
  for (Index lane = 0; lane < width; lane += kLanes<D>) {
    const auto maxA = hn::Load(d, into.rowMax + lane);
    const auto maxB = hn::Load(d, from.rowMax + lane);
    const auto max = hn::Max(maxA, maxB);
    // Two empty states would give −∞ − (−∞); with 0 in place of the maximum both factors are 0, as are the sums.
    const auto safe = hn::IfThenElse(hn::Eq(max, hn::Set(d, -kInfinity)), hn::Zero(d), max);
    const auto factorA = exp2NonPositive(d, hn::Sub(maxA, safe));
    const auto factorB = exp2NonPositive(d, hn::Sub(maxB, safe));
    const auto combine = [&](float* a, const float* b) {
      hn::Store(hn::MulAdd(hn::Load(d, b), factorB, hn::Mul(hn::Load(d, a), factorA)), d, a);
    };
    combine(into.rowSum + lane, from.rowSum + lane);
    for (Index c = 0; c < problem.valueDim; ++c)
      combine(into.output + c * width + lane, from.output + c * width + lane);
    hn::Store(max, d, into.rowMax + lane);
  }
}

// ln Σ e^score, or log2 Σ 2^score where the problem is in those units, of a row with the sum Σ 2^(score − max).
LA_INLINE float lseOf(const FullProblem& problem, float max, float sum) {
  const float lse = max + ::log2f(sum);
  return problem.base2 ? lse : kLn2 * lse;
}

// Writes output / rowSum and lse = ln Σ e^score of every row. A row that saw no key gives zeros.
template <class Shape>
LA_INLINE void storeRows(const FullProblem& problem, const FullSequence& sequence, const Panel& panel) {
  constexpr Index width = Shape::kWidth;
  constexpr Index kRows = kRowBlock<Shape>;
  PanelRows places(problem, panel);
  for (Index lane = 0; lane < panel.rows; lane += kRows) {
    const Index rows = minimum(kRows, panel.rows - lane);
    void* target[kRows] = {};
    float inverse[kRows];
    for (Index r = 0; r < kRows; ++r) {
      const float sum = panel.rowSum[lane + r];
      inverse[r] = sum == 0 ? 0.0f : 1.0f / sum;
      if (r >= rows) continue;
      const auto [query, head] = places.next();
      target[r] = rowOf(sequence.output, problem.outputType, head, query);
      if (sequence.lse != nullptr) {
        sequence.lse[head * sequence.queryRows + query] = lseOf(problem, panel.rowMax[lane + r], sum);
      }
    }
    for (Index c = 0; c < problem.valueDim; c += kRowChunk) {
      const Index count = minimum(kRowChunk, problem.valueDim - c);
      // Straight to where they belong if that is float32; missing rows go nowhere.
      float chunk[kRows][kRowChunk];
      float* row[kRows];
      for (Index r = 0; r < kRows; ++r) {
        row[r] = r < rows && problem.outputType == DataType::kFloat32 ? static_cast<float*>(target[r]) + c : chunk[r];
      }
      lanesToRows<kRows>(panel.output + c * width + lane, width, count, inverse, row);
      if (problem.outputType == DataType::kFloat32) continue;
      for (Index r = 0; r < rows; ++r) {
        convertRow(DataType::kFloat32, chunk[r], problem.outputType, elementAt(target[r], problem.outputType, c),
                   count);
      }
    }
  }
}

// Rows past a sequence's query length: zeros, and lse = −∞.
LA_INLINE void clearPadding(const FullProblem& problem, const FullSequence& sequence) {
  for (Index head = 0; head < problem.heads; ++head) {
    for (Index row = sequence.queries; row < sequence.queryRows; ++row) {
      __builtin_memset(rowOf(sequence.output, problem.outputType, head, row), 0,
                       static_cast<std::size_t>(problem.valueDim * elementBytes(problem.outputType)));
      if (sequence.lse != nullptr) sequence.lse[head * sequence.queryRows + row] = -kInfinity;
    }
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_PANEL_H_
