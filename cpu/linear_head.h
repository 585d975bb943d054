// One key/value head of linear attention with the query heads that read its state: where its rows lie, the scratch they
// are worked on in, and how keys and values are brought there.
#ifndef LOWRANK_ATTENTION_CPU_LINEAR_HEAD_H_
#define LOWRANK_ATTENTION_CPU_LINEAR_HEAD_H_

#include "cpu/arena.h"
#include "cpu/linear_state.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Keys of a causal chunk, whose queries meet each other's keys one by one and those of earlier chunks in the state. Short
// enough for the former, which cost F + valueDim operations a pair, not to outweigh the latter.
constexpr Index kLinearChunk = 32;
// Rows of a tile where no query meets a key.
constexpr Index kLinearTile = 64;

LA_INLINE Index tileRowsOf(const LinearProblem& problem) { return problem.causal ? kLinearChunk : kLinearTile; }

LA_INLINE bool isDelta(const LinearProblem& problem) {
  return problem.rule == UpdateRule::kDelta || problem.rule == UpdateRule::kGatedDelta;
}

// What all workers read.
struct LinearShared {
  float* queryPanels = nullptr;  // [heads or 1] the packed weights; null where they are not packed
  float* keyPanels = nullptr;    // [kvHeads or 1]
  float* queryAngles = nullptr;  // [queries][2]; null for other maps than kCosformer
  float* keyAngles = nullptr;    // [keys][2]
};

// Floats of the packed weights of a head.
LA_INLINE Index panelFloats(const LinearProblem& problem) {
  return problem.qkv.headDim * panelColumns(projectedWidth(problem));
}

LA_INLINE FeatureRows featureRows(const LinearProblem& problem, const FeatureMap& map, const void* data, DataType type,
                                  Index rowStride, Index count, Index head, const float* panels,
                                  const float* angles) {
  FeatureRows rows{data, type, rowStride, count, map.scale, nullptr, nullptr, angles};
  const bool own = map.weightHeadStride != 0;
  if (map.weights != nullptr) rows.weights = map.weights + (own ? head * map.weightHeadStride : 0);
  if (panels != nullptr) rows.panels = panels + (own ? head * panelFloats(problem) : 0);
  return rows;
}

// Scratch of one worker. Tiles have tileRowsOf() rows.
struct LinearScratch {
  FeatureScratch features;
  float* key = nullptr;       // [rows][featureStride(F)]
  float* keyLog = nullptr;    // [rows]
  float* query = nullptr;     // [rows][featureStride(F)]
  float* queryLog = nullptr;  // [rows]
  float* value = nullptr;     // panels [rows][W]
  float* valueRow = nullptr;  // [columns]
  float* output = nullptr;    // [rows][columns]
  float* keyLanes = nullptr;  // causal: panels [F][W] of the chunk's keys
  float* keep = nullptr;      // causal: [F padded to 16], see StateUpdate
  float* carry = nullptr;
  float* decays = nullptr;  // of decays a feature, see cpu/linear_decay.h
  RangeSum sum;
  float* state = nullptr;      // the sum and the past
  float* past = nullptr;       // the state before the range
  double* total = nullptr;     // the same in float64
};

struct LinearHead {
  LA_METHOD LinearHead(const LinearProblem& theProblem, const LinearShared& theShared, Index theItem, Index theKvHead)
      : problem(theProblem), shared(theShared), shape(theProblem), item(theItem), kvHead(theKvHead) {
    const Qkv& qkv = problem.qkv;
    if (qkv.keys == 0) return;
    key = featureRows(problem, problem.keyMap, rowOf(qkv.key, qkv.keyType, item, kvHead, 0), qkv.keyType,
                      qkv.key.rowStride, qkv.keys, kvHead, shared.keyPanels, shared.keyAngles);
    value = rowOf(qkv.value, qkv.keyType, item, kvHead, 0);
    if (problem.decay != nullptr) {
      decay = problem.decay + item * problem.decayBatchStride + kvHead * problem.decayHeadStride;
    }
    if (problem.beta != nullptr) beta = problem.beta + item * problem.betaBatchStride + kvHead * problem.betaHeadStride;
    if (problem.keyMask != nullptr) mask = problem.keyMask + item * qkv.keys;
  }

  LA_METHOD bool hides(Index j) const { return mask != nullptr && mask[j] == 0; }
  LA_METHOD bool decaysHead() const { return decay != nullptr && !problem.decayPerFeature; }
  LA_METHOD bool decaysFeatures() const { return decay != nullptr && problem.decayPerFeature; }
  LA_METHOD Index queryHeads() const { return problem.qkv.heads / problem.qkv.kvHeads; }
  LA_METHOD FeatureRows queryRows(Index head) const {
    const Qkv& qkv = problem.qkv;
    return featureRows(problem, problem.queryMap, rowOf(qkv.query, qkv.queryType, item, head, 0), qkv.queryType,
                       qkv.query.rowStride, qkv.queries, head, shared.queryPanels, shared.queryAngles);
  }
  LA_METHOD const double* stateIn() const { return problem.stateIn == nullptr ? nullptr : problem.stateIn + place(); }
  LA_METHOD double* stateOut() const { return problem.stateOut == nullptr ? nullptr : problem.stateOut + place(); }
  LA_METHOD Index place() const {
    return (item * problem.qkv.kvHeads + kvHead) * linearStateDoubles(problem.features, problem.qkv.valueDim);
  }

  const LinearProblem& problem;
  const LinearShared& shared;
  StateShape shape;
  Index item;
  Index kvHead;
  FeatureRows key;
  const void* value = nullptr;         // row 0
  const float* decay = nullptr;        // of key 0
  const float* beta = nullptr;         // of key 0
  const std::uint8_t* mask = nullptr;  // of key 0
};

// Features of keys [first, first + count). A hidden key is a row of zeros with the logarithm of nothing.
LA_INLINE void stageKeys(const LinearHead& head, Index first, Index count, const LinearScratch& scratch) {
  makeFeatures(head.problem, head.key, first, count, scratch.key, scratch.keyLog, scratch.features);
  const Index stride = featureStride(head.shape.features);
  for (Index j = 0; j < count; ++j) {
    if (!head.hides(first + j)) continue;
    __builtin_memset(scratch.key + j * stride, 0, static_cast<std::size_t>(4 * stride));
    scratch.keyLog[j] = emptyLog(head.problem);
  }
}

// Values of keys [first, first + count) as panels [count][W]: zeros of a hidden key, and beyond the last column.
static void stageValues(const LinearHead& head, Index first, Index count, const LinearScratch& scratch) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Qkv& qkv = head.problem.qkv;
  const Index columns = head.shape.columns;
  const bool inPlace = qkv.keyType == DataType::kFloat32 && columns == qkv.valueDim;
  for (Index j = 0; j < count; ++j) {
    const void* source = elementAt(head.value, qkv.keyType, (first + j) * qkv.value.rowStride);
    prefetch<2>(elementAt(head.value, qkv.keyType, minimum(first + count + j, qkv.keys - 1) * qkv.value.rowStride),
                qkv.valueDim * elementBytes(qkv.keyType));
    const float* row = scratch.valueRow;
    if (head.hides(first + j)) {
      for (Index c = 0; c < columns; ++c) scratch.valueRow[c] = 0;
    } else if (inPlace) {
      row = static_cast<const float*>(source);
    } else {
      convertRow(qkv.keyType, source, DataType::kFloat32, scratch.valueRow, qkv.valueDim);
      for (Index c = qkv.valueDim; c < columns; ++c) scratch.valueRow[c] = 0;
    }
    forPanels(columns, [&](Index column, auto vectors) {
      constexpr int kVecs = decltype(vectors)::value;
      float* target = scratch.value + column * count + j * kVecs * n;
      for (Index v = 0; v < kVecs; ++v) hn::Store(hn::LoadU(d, row + column + v * n), d, target + v * n);
    });
  }
}

// Writes rows [first, first + count) of a query head: what they read, over their denominators or times the scale of the
// output. pairSums are the denominators' shares of the chunk's own keys; null for none.
static void writeRows(const LinearHead& head, Index queryHead, Index first, Index count, const StateReads& reads,
                      const float* pairSums, const LinearScratch& scratch) {
  const Full d;
  const LinearProblem& problem = head.problem;
  const Qkv& qkv = problem.qkv;
  const StateShape& shape = head.shape;
  float factors[kLinearTile];
  for (Index i = 0; i < count; ++i) {
    factors[i] = problem.outputScale;
    if (!problem.normalize) continue;
    float sum = pairSums == nullptr ? 0.0f : pairSums[i];
    if (reads.state != nullptr) {
      const float carry = reads.carry == nullptr ? 1.0f : reads.carry[i];
      sum += carry * dotRow(reads.rows + i * featureStride(shape.features), reads.state + shape.zBegin, shape.features);
    }
    sum += problem.epsilon;
    // Below float32's normal numbers there is nothing to tell a quotient from noise. NaN stays.
    factors[i] = ::fabsf(sum) < 0x1p-126f ? 0.0f : 1.0f / sum;
  }
  void* target = rowOf(qkv.output, qkv.outputType, head.item, queryHead, first);
  // Whole vectors of float32 go where they belong.
  const bool inPlace = qkv.outputType == DataType::kFloat32 && shape.columns == shape.valueDim;
  float* output = inPlace ? static_cast<float*>(target) : scratch.output;
  const Index stride = inPlace ? qkv.output.rowStride : shape.columns;
  readState(shape, count, reads, [&](Index row, Index column, Vec<Full> sum) {
    hn::StoreU(hn::Mul(sum, hn::Set(d, factors[row])), d, output + row * stride + column);
  });
  if (inPlace) return;
  for (Index i = 0; i < count; ++i) {
    convertRow(DataType::kFloat32, output + i * stride, qkv.outputType,
               elementAt(target, qkv.outputType, i * qkv.output.rowStride), shape.valueDim);
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LINEAR_HEAD_H_
