// A few tokens that continue a state: decoding. Reading the state and writing it back is the cost, so it is done once,
// row after row, and every token of the call passes over a few rows while they are in registers and L1. Arithmetic on
// the state is float64, as it is kept so. The state may be updated in place: every element is loaded before it is
// stored.
//
// The delta rules need k·S before they can write: their tokens go over the state of a head twice each, while it is in
// the caches.
#ifndef LOWRANK_ATTENTION_CPU_LINEAR_STEP_H_
#define LOWRANK_ATTENTION_CPU_LINEAR_STEP_H_

#include "core/execution.h"
#include "cpu/linear_head.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Tokens of such a call at most.
constexpr Index kStepTokens = 4;
// Rows of the state that pass through the registers together, so that an output is loaded and stored once for all.
constexpr int kStepRows = 4;
// Rows ahead that are asked for: left to the processor's own prefetcher they come too late (docs/performance.md).
constexpr Index kStepAhead = 16;

LA_INLINE bool isStep(const LinearProblem& problem) {
  return problem.causal && problem.stateOut != nullptr && problem.qkv.keys >= 1 && problem.qkv.keys <= kStepTokens;
}

// Scratch of one worker.
struct StepScratch {
  FeatureScratch features;
  float* rows = nullptr;     // [tokens][featureStride(F)]
  float* decays = nullptr;   // [F padded]
  double* key = nullptr;     // [tokens][F]
  double* keep = nullptr;    // [tokens][F]
  double* query = nullptr;   // [query heads of the group][tokens][F]
  double* value = nullptr;   // [tokens][valueDim]
  double* output = nullptr;  // [query heads of the group][tokens][valueDim]
  float* row = nullptr;      // [valueDim]
};

LA_INLINE StepScratch placeStep(const LinearProblem& problem, Arena& arena) {
  const Qkv& qkv = problem.qkv;
  const Index tokens = qkv.keys;
  const Index group = qkv.heads / qkv.kvHeads;
  const Index features = problem.features;
  StepScratch scratch;
  scratch.features.input = arena.take<float>(tokens * inputStride(problem));
  scratch.features.projected = arena.take<float>(tokens * featureStride(projectedWidth(problem)));
  scratch.rows = arena.take<float>(tokens * featureStride(features));
  scratch.decays = arena.take<float>(features + 16);
  scratch.key = arena.take<double>(tokens * features);
  scratch.keep = arena.take<double>(tokens * features);
  scratch.query = arena.take<double>(group * tokens * features);
  scratch.value = arena.take<double>(tokens * qkv.valueDim);
  scratch.output = arena.take<double>(group * tokens * qkv.valueDim);
  scratch.row = arena.take<float>(qkv.valueDim);
  return scratch;
}

LA_INLINE void widenRow(const float* source, Index count, double factor, double* target) {
  for (Index i = 0; i < count; ++i) target[i] = static_cast<double>(source[i]) * factor;
}

// Keys, factors of the state and values of all tokens. Returns the logarithm of the state after them.
static float loadTokens(const LinearHead& head, float log, const StepScratch& scratch) {
  const Full d;
  const LinearProblem& problem = head.problem;
  const Qkv& qkv = problem.qkv;
  const Index features = problem.features;
  float logs[kStepTokens];
  makeFeatures(problem, head.key, 0, qkv.keys, scratch.rows, logs, scratch.features);
  for (Index t = 0; t < qkv.keys; ++t) {
    double* key = scratch.key + t * features;
    double* keep = scratch.keep + t * features;
    double* value = scratch.value + t * qkv.valueDim;
    if (head.hides(t)) {
      for (Index f = 0; f < features; ++f) key[f] = 0;
      for (Index f = 0; f < features; ++f) keep[f] = 1;
      for (Index c = 0; c < qkv.valueDim; ++c) value[c] = 0;
      continue;
    }
    const float total = larger(log, logs[t]);
    widenRow(scratch.rows + t * featureStride(features), features, static_cast<double>(expDifference(logs[t], total)),
             key);
    double factor = static_cast<double>(expDifference(log, total));
    log = total;
    if (head.decaysHead()) factor *= ::exp(static_cast<double>(head.decay[t * problem.decayRowStride]));
    for (Index f = 0; f < features; ++f) keep[f] = factor;
    if (head.decaysFeatures()) {
      const float* decay = head.decay + t * problem.decayRowStride;
      for (Index f = 0; f < features; ++f) scratch.decays[f] = decay[f];
      mapVectors(scratch.decays, features, scratch.decays, [&](Vec<Full> x) { return expNonPositive(d, x); });
      widenRow(scratch.decays, features, factor, keep);
    }
    convertRow(qkv.keyType, elementAt(head.value, qkv.keyType, t * qkv.value.rowStride), DataType::kFloat32,
               scratch.row, qkv.valueDim);
    widenRow(scratch.row, qkv.valueDim, 1, value);
  }
  return log;
}

static void loadTokenQueries(const LinearHead& head, const StepScratch& scratch) {
  const LinearProblem& problem = head.problem;
  const Index tokens = problem.qkv.queries;
  float logs[kStepTokens];
  for (Index g = 0; g < head.queryHeads() && tokens > 0; ++g) {
    makeFeatures(problem, head.queryRows(head.kvHead * head.queryHeads() + g), 0, tokens, scratch.rows, logs,
                 scratch.features);
    for (Index t = 0; t < tokens; ++t) {
      widenRow(scratch.rows + t * featureStride(problem.features), problem.features, 1,
               scratch.query + (g * tokens + t) * problem.features);
    }
  }
  for (Index i = 0; i < head.queryHeads() * tokens * problem.qkv.valueDim; ++i) scratch.output[i] = 0;
}

// Tokens [first, last) pass over rows [f, f + kRows) of the state, for the columns of kVecs vectors from c on.
template <int kRows, int kVecs, class D>
LA_INLINE void stepRows(D d, const LinearHead& head, Index first, Index last, Index f, Index c, const double* before,
                        double* after, const StepScratch& scratch) {
  constexpr Index n = kLanes<D>;
  const Index features = head.shape.features;
  const Index valueDim = head.shape.valueDim;
  const Index tokens = head.problem.qkv.queries;
  const Index group = tokens == 0 ? 0 : head.queryHeads();
  Vec<D> state[kRows][kVecs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const double* row = before + (f + r) * valueDim + c;
    prefetch<3>(row + kStepAhead * valueDim, kVecs * n * static_cast<Index>(sizeof(double)));
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) state[r][v] = hn::LoadU(d, row + v * n);
  }
  for (Index t = first; t < last; ++t) {
    const double* key = scratch.key + t * features + f;
    const double* keep = scratch.keep + t * features + f;
    Vec<D> column[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) column[v] = hn::LoadU(d, scratch.value + t * valueDim + c + v * n);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto written = hn::Set(d, key[r]);
      const auto kept = hn::Set(d, keep[r]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) state[r][v] = hn::MulAdd(written, column[v], hn::Mul(kept, state[r][v]));
    }
    for (Index g = 0; g < group; ++g) {
      const double* query = scratch.query + (g * tokens + t) * features + f;
      double* output = scratch.output + (g * tokens + t) * valueDim + c;
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) column[v] = hn::LoadU(d, output + v * n);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto factor = hn::Set(d, query[r]);
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) column[v] = hn::MulAdd(factor, state[r][v], column[v]);
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) hn::StoreU(column[v], d, output + v * n);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) hn::StoreU(state[r][v], d, after + (f + r) * valueDim + c + v * n);
  }
}

// value ← value − k(keep ⊙ S) of token t; S is `before`.
template <int kRows, int kVecs, class D>
LA_INLINE void recallRows(D d, const LinearHead& head, Index t, Index f, Index c, const double* before,
                          const StepScratch& scratch) {
  constexpr Index n = kLanes<D>;
  const Index features = head.shape.features;
  double* value = scratch.value + t * head.shape.valueDim + c;
  Vec<D> rest[kVecs];
#pragma GCC unroll 2
  for (int v = 0; v < kVecs; ++v) rest[v] = hn::LoadU(d, value + v * n);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const Index place = t * features + f + r;
    const auto factor = hn::Set(d, -(scratch.key[place] * scratch.keep[place]));
    const double* row = before + (f + r) * head.shape.valueDim + c;
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) rest[v] = hn::MulAdd(factor, hn::LoadU(d, row + v * n), rest[v]);
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVecs; ++v) hn::StoreU(rest[v], d, value + v * n);
}

// Calls body(Constant<rows>, Constant<vectors>, vector tag, row, column) for all rows and columns of the state, rows in
// the outer loop.
template <class Body>
LA_INLINE void forStateVectors(const StateShape& shape, const Body& body) {
  const hn::ScalableTag<double> wide;
  const hn::CappedTag<double, 1> single;
  constexpr Index n = kLanes<hn::ScalableTag<double>>;
  const auto columns = [&](auto rows, Index f) {
    Index c = 0;
    for (; c + 2 * n <= shape.valueDim; c += 2 * n) body(rows, Constant<2>(), wide, f, c);
    for (; c + n <= shape.valueDim; c += n) body(rows, Constant<1>(), wide, f, c);
    for (; c < shape.valueDim; ++c) body(rows, Constant<1>(), single, f, c);
  };
  Index f = 0;
  for (; f + kStepRows <= shape.features; f += kStepRows) columns(Constant<kStepRows>(), f);
  for (; f < shape.features; ++f) columns(Constant<1>(), f);
}

static void stepState(const LinearHead& head, Index first, Index last, const double* before, double* after,
                      const StepScratch& scratch) {
  forStateVectors(head.shape, [&](auto rows, auto vectors, auto d, Index f, Index c) {
    stepRows<decltype(rows)::value, decltype(vectors)::value>(d, head, first, last, f, c, before, after, scratch);
  });
}

static void recallState(const LinearHead& head, Index t, const double* before, const StepScratch& scratch) {
  forStateVectors(head.shape, [&](auto rows, auto vectors, auto d, Index f, Index c) {
    recallRows<decltype(rows)::value, decltype(vectors)::value>(d, head, t, f, c, before, scratch);
  });
  const double beta = head.hides(t) ? 0.0 : static_cast<double>(head.beta[t * head.problem.betaRowStride]);
  double* value = scratch.value + t * head.shape.valueDim;
  for (Index c = 0; c < head.shape.valueDim; ++c) value[c] *= beta;
}

// One head: all its tokens.
static void runStep(const LinearHead& head, const StepScratch& scratch) {
  const LinearProblem& problem = head.problem;
  const Qkv& qkv = problem.qkv;
  const StateShape& shape = head.shape;
  const Index features = shape.features;
  const Index doubles = linearStateDoubles(features, shape.valueDim);
  double* after = head.stateOut();
  const double* before = head.stateIn();
  if (before == nullptr) {
    for (Index i = 0; i < doubles - 1; ++i) after[i] = 0;
    after[doubles - 1] = static_cast<double>(emptyLog(problem));
    before = after;
  }
  after[doubles - 1] = static_cast<double>(loadTokens(head, static_cast<float>(before[doubles - 1]), scratch));
  loadTokenQueries(head, scratch);
  const double* zBefore = before + features * shape.valueDim;
  double* zAfter = after + features * shape.valueDim;
  if (isDelta(problem)) {
    for (Index t = 0; t < qkv.keys; ++t) {
      recallState(head, t, before, scratch);
      stepState(head, t, t + 1, before, after, scratch);
      before = after;
    }
    for (Index f = 0; f < features; ++f) zAfter[f] = 0;
  } else {
    stepState(head, 0, qkv.keys, before, after, scratch);
  }
  for (Index t = 0; t < qkv.keys; ++t) {
    if (!isDelta(problem)) {
      const double* key = scratch.key + t * features;
      const double* keep = scratch.keep + t * features;
      for (Index f = 0; f < features; ++f) zAfter[f] = zBefore[f] * keep[f] + key[f];
      zBefore = zAfter;
    }
    for (Index g = 0; g < head.queryHeads() && t < qkv.queries; ++g) {
      const Index place = g * qkv.queries + t;
      double factor = static_cast<double>(problem.outputScale);
      if (problem.normalize) {
        const double sum =
            dotRow(scratch.query + place * features, zAfter, features) + static_cast<double>(problem.epsilon);
        factor = sum == 0 ? 0.0 : 1 / sum;
      }
      const double* output = scratch.output + place * shape.valueDim;
      for (Index c = 0; c < shape.valueDim; ++c) scratch.row[c] = static_cast<float>(output[c] * factor);
      convertRow(DataType::kFloat32, scratch.row, qkv.outputType,
                 rowOf(qkv.output, qkv.outputType, head.item, head.kvHead * head.queryHeads() + g, t), shape.valueDim);
    }
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LINEAR_STEP_H_
