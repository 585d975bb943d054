#include "core/linear.h"

#include "binding/ops.h"
#include "binding/qkv.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

// After QkvOperands; each may be null. The two states may be one array.
struct LinearOperands {
  enum : std::size_t {
    kStateIn = QkvOperands::kCount,  // float64 [batch][kvHeads][linearStateDoubles]
    kStateOut,
    kQueryWeights,  // float32 [rows, headDim], or [heads, rows, headDim]
    kKeyWeights,    // float32 [rows, headDim], or [kvHeads, rows, headDim]
    kDecay,         // float32, in the layout of the call: a number, or F of them, a key row
    kBeta,          // float32, in the layout of the call: a number a key row
    kKeyMask,       // uint8 [batch, keys]
    kCount
  };
};

// After QkvNumbers; lib/linear-call.ts writes them.
struct LinearNumbers {
  enum : std::size_t {
    kKind = QkvNumbers::kCount,  // of FeatureKind
    kFeatures,
    kFeatureScale,         // multiplies queries and keys before the map
    kQueryWeightsPerHead,  // 1: each head has weights of its own
    kKeyWeightsPerHead,
    kFirstQuery,  // position of query 0
    kFirstKey,
    kOffset,
    kPeriod,
    kJoint,
    kCausal,
    kRule,  // of UpdateRule
    kNormalize,
    kEpsilon,
    kOutputScale,
    kDecayPerFeature,
    kCount
  };
};

// Whether a number of features can be the map's: what the kernel touches of a row follows from it.
bool featuresFit(const LinearProblem& problem) {
  const Index features = problem.features;
  const Index headDim = problem.qkv.headDim;
  switch (problem.kind) {
    case FeatureKind::kIdentity:
    case FeatureKind::kElu:
      return features == headDim;
    case FeatureKind::kRelu:
    case FeatureKind::kFavor:
      return true;
    case FeatureKind::kCosformer:
      return features % 2 == 0 && features / 2 == headDim && problem.period > 0;
    case FeatureKind::kHedgehog:
      return features % 2 == 0;
    case FeatureKind::kTaylor:
      // A larger head would have more features than there is memory for a state.
      return headDim < (Index{1} << 20) && features == 1 + headDim + headDim * (headDim + 1) / 2;
  }
  return false;
}

// The map and its weights. Returns rows of weights, each headDim long; 0 without.
Index readMaps(Operands& operands, LinearProblem* problem) {
  const Qkv& qkv = problem->qkv;
  problem->kind = static_cast<FeatureKind>(
      minimum(operands.extent(LinearNumbers::kKind, "featureMap"), static_cast<Index>(FeatureKind::kTaylor)));
  problem->features = operands.extent(LinearNumbers::kFeatures, "featureMap", 1);
  problem->offset = static_cast<float>(operands.number(LinearNumbers::kOffset));
  problem->period = operands.extent(LinearNumbers::kPeriod, "featureMap");
  problem->jointSoftmax = operands.flag(LinearNumbers::kJoint);
  if (!featuresFit(*problem)) operands.fail("featureMap", "a number of features that cannot be");
  // Without a state nothing else keeps F·(valueDim + 1) from overflow.
  if (static_cast<double>(problem->features) * static_cast<double>(qkv.valueDim + 1) > kMaxExtent)
    operands.fail("featureMap", "more features than a state may have");

  const Index rows = problem->kind == FeatureKind::kHedgehog ? problem->features / 2 : problem->features;
  const auto readSide = [&](FeatureMap* map, std::size_t weights, std::size_t perHead, std::size_t first, Index heads) {
    map->scale = static_cast<float>(operands.number(LinearNumbers::kFeatureScale));
    map->firstPosition = operands.position(first, "featureMap");
    const bool own = operands.flag(perHead);
    map->weights =
        operands.optional<const float>(weights, "featureMap", napi_float32_array, {own ? heads : 1, rows, qkv.headDim});
    if (own && map->weights != nullptr && operands.ok()) map->weightHeadStride = rows * qkv.headDim;
  };
  readSide(&problem->queryMap, LinearOperands::kQueryWeights, LinearNumbers::kQueryWeightsPerHead,
           LinearNumbers::kFirstQuery, qkv.heads);
  readSide(&problem->keyMap, LinearOperands::kKeyWeights, LinearNumbers::kKeyWeightsPerHead, LinearNumbers::kFirstKey,
           qkv.kvHeads);

  const bool must = problem->kind == FeatureKind::kFavor || problem->kind == FeatureKind::kHedgehog ||
                    (problem->kind == FeatureKind::kRelu && problem->features != qkv.headDim);
  const bool lacks = (qkv.queries != 0 && problem->queryMap.weights == nullptr) ||
                     (qkv.keys != 0 && problem->keyMap.weights == nullptr);
  if (must && lacks) operands.fail("featureMap", "no weights");
  return problem->keyMap.weights == nullptr && problem->queryMap.weights == nullptr ? 0 : rows;
}

// The update rule with what it takes a key row, and which keys there are.
void readUpdates(Operands& operands, LinearProblem* problem) {
  const Qkv& qkv = problem->qkv;
  problem->causal = operands.flag(LinearNumbers::kCausal);
  problem->rule = static_cast<UpdateRule>(
      minimum(operands.extent(LinearNumbers::kRule, "updateRule"), static_cast<Index>(UpdateRule::kGatedDelta)));
  problem->normalize = operands.flag(LinearNumbers::kNormalize);
  problem->epsilon = static_cast<float>(operands.number(LinearNumbers::kEpsilon));
  problem->outputScale = static_cast<float>(operands.number(LinearNumbers::kOutputScale));
  problem->decayPerFeature = operands.flag(LinearNumbers::kDecayPerFeature);
  const bool gated = problem->rule == UpdateRule::kGated || problem->rule == UpdateRule::kGatedDelta;
  const bool delta = problem->rule == UpdateRule::kDelta || problem->rule == UpdateRule::kGatedDelta;
  if (problem->causal && qkv.queries != 0 && qkv.queries != qkv.keys) operands.fail("q", "not as many as keys");
  if (!problem->causal && problem->rule != UpdateRule::kLinear) operands.fail("updateRule", "not causal");
  if (problem->normalize && delta) operands.fail("normalize", "a delta rule");

  // Elements of a decay that stand together: those of one key row of one head.
  const Index width = problem->decayPerFeature ? problem->features : 1;
  problem->decay = operands.optional<const float>(LinearOperands::kDecay, "decay", napi_float32_array,
                                                  {qkv.batch, qkv.kvHeads, qkv.keys, width});
  problem->beta = operands.optional<const float>(LinearOperands::kBeta, "beta", napi_float32_array,
                                                 {qkv.batch, qkv.kvHeads, qkv.keys});
  problem->keyMask = operands.optional<const std::uint8_t>(LinearOperands::kKeyMask, "keyMask", napi_uint8_array,
                                                           {qkv.batch, qkv.keys});
  if (qkv.keys != 0 && gated != (problem->decay != nullptr)) operands.fail("decay", "not as the rule says");
  if (qkv.keys != 0 && delta != (problem->beta != nullptr)) operands.fail("beta", "not as the rule says");
  if (!operands.ok()) return;
  const bool rowsBeforeHeads = operands.flag(QkvNumbers::kRowsBeforeHeads);
  if (problem->decay != nullptr) {
    const BatchRows strides = denseRows(nullptr, qkv.kvHeads, qkv.keys, width, rowsBeforeHeads);
    problem->decayBatchStride = strides.batchStride;
    problem->decayHeadStride = strides.headStride;
    problem->decayRowStride = strides.rowStride;
  }
  if (problem->beta != nullptr) {
    const BatchRows strides = denseRows(nullptr, qkv.kvHeads, qkv.keys, 1, rowsBeforeHeads);
    problem->betaBatchStride = strides.batchStride;
    problem->betaHeadStride = strides.headStride;
    problem->betaRowStride = strides.rowStride;
  }
}

void readStates(Operands& operands, LinearProblem* problem) {
  const Qkv& qkv = problem->qkv;
  if (!operands.ok()) return;
  const auto read = [&](std::size_t index) {
    return operands.optional<double>(index, "state", napi_float64_array,
                                     {qkv.batch, qkv.kvHeads, linearStateDoubles(problem->features, qkv.valueDim)});
  };
  problem->stateIn = read(LinearOperands::kStateIn);
  problem->stateOut = read(LinearOperands::kStateOut);
}

// Operations of the call: every row is mapped, every key goes into the state and every query reads it. A few tokens of
// a state that is kept wait for its memory: a number of it that is read and written takes as long as kMoved operations.
double operationsOf(const LinearProblem& problem, Index weightRows) {
  const Qkv& qkv = problem.qkv;
  const double rows = static_cast<double>(qkv.queries) * static_cast<double>(qkv.heads) +
                      static_cast<double>(qkv.keys) * static_cast<double>(qkv.kvHeads);
  constexpr double kMoved = 32;
  const double state = static_cast<double>(problem.features) * static_cast<double>(qkv.valueDim + 1);
  const double moved = problem.stateOut == nullptr ? 0 : kMoved * static_cast<double>(qkv.kvHeads) * state;
  const double mapped = static_cast<double>(weightRows) * static_cast<double>(qkv.headDim);
  return static_cast<double>(qkv.batch) * (2.0 * rows * (mapped + state) + moved);
}

}  // namespace

Napi::Value linear(const Napi::CallbackInfo& info) {
  Operands operands(info, LinearOperands::kCount, LinearNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  // Without queries only keys say how many heads there may be.
  if (operands.number(QkvNumbers::kQueries) == 0 &&
      operands.number(QkvNumbers::kHeads) != operands.number(QkvNumbers::kKvHeads))
    operands.fail("q", "heads of no queries");
  LinearProblem problem;
  if (operands.ok()) problem.qkv = readQkv(operands);
  // Without rows no extent is bounded by memory that exists.
  if (!operands.ok() || problem.qkv.batch == 0 || (problem.qkv.queries == 0 && problem.qkv.keys == 0))
    return statusValue(info.Env(), operands.status());
  const Index weightRows = readMaps(operands, &problem);
  readUpdates(operands, &problem);
  readStates(operands, &problem);
  return runKernel(info, operands.status(), &KernelSet::linear, problem, operationsOf(problem, weightRows));
}

}  // namespace lowrank_attention
