// Feature maps of linear attention: rows of queries or keys to rows of features, φ, a tile at a time. See core/linear.h
// for the formulas.
#ifndef LOWRANK_ATTENTION_CPU_FEATURES_H_
#define LOWRANK_ATTENTION_CPU_FEATURES_H_

#include <cmath>

#include "core/linear.h"
#include "cpu/math.h"
#include "cpu/microkernel.h"
#include "cpu/panel.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Floats from one row of features to the next: an odd number of cache lines, so that a column of a tile, which is what
// products run along, is spread over all sets of the cache; and at least a vector more than needed, so that a row may be
// written in whole vectors from any feature on.
LA_INLINE constexpr Index featureStride(Index features) { return ((divideUp(features, 16) + 1) | 1) * 16; }

// Calls body(column, Constant<vectors>) for the panels, of one or two vectors, that so many columns are cut into. A panel
// of `depth` rows begins at column·depth floats, as the panels follow one another.
template <class Body>
LA_INLINE void forPanels(Index columns, const Body& body) {
  constexpr Index n = kLanes<Full>;
  Index column = 0;
  for (; column + n < columns; column += 2 * n) body(column, Constant<2>());
  if (column < columns) body(column, Constant<1>());
}

// Columns of the panels that hold `count` of them; the last ones are zero.
LA_INLINE Index panelColumns(Index count) { return roundUp(count, kLanes<Full>); }

// Outputs of a map's weights.
LA_INLINE Index projectedWidth(const LinearProblem& problem) {
  return problem.kind == FeatureKind::kHedgehog ? problem.features / 2 : problem.features;
}

// Rows of one head before their map.
struct FeatureRows {
  const void* data = nullptr;
  DataType type = DataType::kFloat32;
  Index rowStride = 0;
  Index count = 0;
  float scale = 1;
  const float* weights = nullptr;  // [outputs][headDim]; null for a map without
  const float* panels = nullptr;   // the same as panels [headDim][W]; null where there are too few rows to pack them for
  const float* angles = nullptr;   // [rows][2], sine and cosine; of kCosformer
};

// Scratch of one worker.
struct FeatureScratch {
  float* input = nullptr;      // [rows][inputStride]
  float* projected = nullptr;  // [rows][featureStride(outputs)]
};

LA_INLINE Index inputStride(const LinearProblem& problem) { return featureStride(problem.qkv.headDim); }

// panels[p][k][lane] = weights[p·W + lane][k].
LA_INLINE void packWeights(const float* weights, Index outputs, Index depth, float* panels) {
  forPanels(panelColumns(outputs), [&](Index column, auto vectors) {
    constexpr Index width = decltype(vectors)::value * kLanes<Full>;
    float* panel = panels + column * depth;
    for (Index lane = 0; lane < width; ++lane) {
      const float* row = weights + (column + lane) * depth;
      for (Index k = 0; k < depth; ++k) panel[k * width + lane] = column + lane < outputs ? row[k] : 0.0f;
    }
  });
}

// projected[r] = weights · input[r].
static void projectRows(const LinearProblem& problem, const FeatureRows& rows, Index count,
                        const FeatureScratch& scratch) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Index depth = problem.qkv.headDim;
  const Index outputs = projectedWidth(problem);
  const Index stride = featureStride(outputs);
  if (rows.panels == nullptr) {
    for (Index f = 0; f < outputs; ++f) {
      for (Index r = 0; r < count; ++r) {
        scratch.projected[r * stride + f] =
            dotRow(rows.weights + f * depth, scratch.input + r * inputStride(problem), depth);
      }
    }
    return;
  }
  forPanels(panelColumns(outputs), [&](Index column, auto vectors) {
    constexpr int kVecs = decltype(vectors)::value;
    forRowGroups<kMaxRows<kVecs>>(count, [&](Index first, auto size) {
      float* target = scratch.projected + first * stride + column;
      outerProduct<decltype(size)::value, kVecs>(
          d, scratch.input + first * inputStride(problem), inputStride(problem), 1, rows.panels + column * depth,
          kVecs * n, depth, [&](int, int) { return hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) { hn::Store(sum, d, target + r * stride + v * n); });
    });
  });
}

// target[c] = map(source[c]) in whole vectors, the last of which may go beyond `count`.
template <class Map>
LA_INLINE void mapVectors(const float* source, Index count, float* target, const Map& map) {
  const Full d;
  for (Index c = 0; c < count; c += kLanes<Full>) hn::StoreU(map(hn::LoadU(d, source + c)), d, target + c);
}

LA_INLINE void scaleRow(float* row, Index count, float factor) {
  for (Index c = 0; c < count; ++c) row[c] *= factor;
}

// max(x, 0), and NaN for NaN.
LA_INLINE Vec<Full> positivePart(Vec<Full> x) {
  const auto zero = hn::Zero(Full());
  return hn::IfThenElse(hn::Lt(x, zero), zero, x);
}

// Largest of sign·row[c].
LA_INLINE float largest(const float* row, Index count, float sign) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  auto max = hn::Set(d, -kInfinity);
  Index c = 0;
  for (; c + n <= count; c += n) max = hn::Max(max, hn::Mul(hn::LoadU(d, row + c), hn::Set(d, sign)));
  float result = hn::GetLane(hn::MaxOfLanes(d, max));
  for (; c < count; ++c) result = sign * row[c] > result ? sign * row[c] : result;
  return result;
}

// target[c] = e^(sign·source[c] − max) for the `max` of largest(). Returns their sum.
LA_INLINE float expRow(const float* source, Index count, float sign, float max, float* target) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  // −∞ − (−∞) would be NaN where all are −∞.
  const auto shift = hn::Set(d, max == -kInfinity ? 0.0f : max);
  mapVectors(source, count, target,
             [&](Vec<Full> x) { return expNonPositive(d, hn::Sub(hn::Mul(x, hn::Set(d, sign)), shift)); });
  auto sum = hn::Zero(d);
  Index c = 0;
  for (; c + n <= count; c += n) sum = hn::Add(sum, hn::LoadU(d, target + c));
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; c < count; ++c) total += target[c];
  return total;
}

LA_INLINE void hedgehogRow(const float* source, Index half, bool joint, float* target) {
  float positiveMax = largest(source, half, 1);
  float negativeMax = largest(source, half, -1);
  if (joint) positiveMax = negativeMax = positiveMax > negativeMax ? positiveMax : negativeMax;
  float positive = expRow(source, half, 1, positiveMax, target);
  float negative = expRow(source, half, -1, negativeMax, target + half);
  if (joint) positive = negative = positive + negative;
  scaleRow(target, half, 1 / positive);
  scaleRow(target + half, half, 1 / negative);
}

// 1, x, x_i²/√2, x_i·x_j for i < j: φ(x)·φ(y) = 1 + x·y + (x·y)²/2 (Arora et al. 2024, arXiv 2402.18668).
LA_INLINE void taylorRow(const float* source, Index dim, float* target) {
  const Full d;
  const auto half = hn::Set(d, 0.707106781186547524f);
  target[0] = 1;
  mapVectors(source, dim, target + 1, [](Vec<Full> x) { return x; });
  mapVectors(source, dim, target + 1 + dim, [&](Vec<Full> x) { return hn::Mul(hn::Mul(x, x), half); });
  float* pairs = target + 1 + 2 * dim;
  for (Index i = 0; i + 1 < dim; ++i) {
    const auto factor = hn::Set(d, source[i]);
    mapVectors(source + i + 1, dim - i - 1, pairs, [&](Vec<Full> x) { return hn::Mul(x, factor); });
    pairs += dim - i - 1;
  }
}

// φ of rows [first, first + count) into rows of `target`, featureStride(F) apart, zero from feature F up to a multiple of
// 16. What a map cannot hold as a number comes apart: row r stands for e^logs[r]·target[r].
static void makeFeatures(const LinearProblem& problem, const FeatureRows& rows, Index first, Index count, float* target,
                         float* logs, const FeatureScratch& scratch) {
  const Full d;
  const Index dim = problem.qkv.headDim;
  const Index features = problem.features;
  const bool projects = rows.weights != nullptr;
  // Whole vectors of float32 are used where they lie, save by a map that reads them from any element on.
  const bool inPlace = rows.type == DataType::kFloat32 && rows.scale == 1 && dim % kLanes<Full> == 0 && !projects &&
                       problem.kind != FeatureKind::kTaylor;
  for (Index r = 0; r < count && !inPlace; ++r) {
    float* input = scratch.input + r * inputStride(problem);
    convertRow(rows.type, elementAt(rows.data, rows.type, (first + r) * rows.rowStride), DataType::kFloat32, input, dim);
    if (rows.scale != 1) scaleRow(input, dim, rows.scale);
    for (Index c = dim; c < roundUp(dim, 16); ++c) input[c] = 0;
  }
  if (projects) projectRows(problem, rows, count, scratch);
  for (Index r = 0; r < count; ++r) {
    // The same row of the next tile, as between two tiles of queries or keys memory is left for long.
    prefetch<2>(elementAt(rows.data, rows.type, minimum(first + count + r, rows.count - 1) * rows.rowStride),
                dim * elementBytes(rows.type));
    const float* input = inPlace ? static_cast<const float*>(rows.data) + (first + r) * rows.rowStride
                                 : scratch.input + r * inputStride(problem);
    const float* source = projects ? scratch.projected + r * featureStride(projectedWidth(problem)) : input;
    float* row = target + r * featureStride(features);
    logs[r] = 0;
    switch (problem.kind) {
      case FeatureKind::kIdentity:
        mapVectors(source, features, row, [](Vec<Full> x) { return x; });
        break;
      case FeatureKind::kElu:
        mapVectors(source, features, row, [&](Vec<Full> x) {
          const auto zero = hn::Zero(d);
          const auto above = hn::Add(x, hn::Set(d, 1.0f));
          // What x·log2(e) loses to rounding is lost to a feature below 1/e, beside others of about 1.
          return hn::IfThenElse(hn::Gt(x, zero), above, exp2NonPositive(d, hn::Mul(x, hn::Set(d, kLog2E))));
        });
        break;
      case FeatureKind::kRelu:
        mapVectors(source, features, row,
                   [&](Vec<Full> x) { return hn::Add(positivePart(x), hn::Set(d, problem.offset)); });
        break;
      case FeatureKind::kFavor: {
        const float max = largest(source, features, 1);
        expRow(source, features, 1, max, row);
        logs[r] = max - 0.5f * dotRow(input, input, dim);
        // Of a row with NaN the features tell; its logarithm must not reach the maxima.
        if (!(logs[r] >= -kInfinity)) logs[r] = -kInfinity;
        break;
      }
      case FeatureKind::kCosformer: {
        const float* angle = rows.angles + 2 * (first + r);
        for (Index part = 0; part < 2; ++part) {
          mapVectors(source, dim, row + part * dim,
                     [&](Vec<Full> x) { return hn::Mul(positivePart(x), hn::Set(d, angle[part])); });
        }
        break;
      }
      case FeatureKind::kHedgehog:
        hedgehogRow(source, features / 2, problem.jointSoftmax, row);
        break;
      case FeatureKind::kTaylor:
        taylorRow(source, dim, row);
        break;
    }
    for (Index f = features; f < roundUp(features, 16); ++f) row[f] = 0;
  }
}

// Sine and cosine of π/2·(position + 1)/period for rows [first, first + count).
LA_INLINE void fillAngles(const LinearProblem& problem, const FeatureMap& map, Index first, Index count,
                          float* angles) {
  for (Index r = first; r < first + count; ++r) {
    const double angle = 1.57079632679489661923 * static_cast<double>(map.firstPosition + r + 1) /
                         static_cast<double>(problem.period);
    angles[2 * r] = static_cast<float>(::sin(angle));
    angles[2 * r + 1] = static_cast<float>(::cos(angle));
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_FEATURES_H_
