// A range of keys of one head, chunk by chunk (Yang et al. 2023, arXiv 2312.06635, section 4): a query reads the state
// before its chunk and, of its own chunk, the values of the keys up to its own, weighted by φ(q)·φ(k).
//
// Decays of a head and kFavor's logarithms are weights of a pair, all at most 1: of row i with the state before the chunk
// and with key j
//   carry_i = Π_{t ≤ i} step_t      weight_ij = own_j·Π_{j < t ≤ i} step_t
//   step_t = e^(g_t + C_{t−1} − C_t)      own_j = e^(a_j − C_j)
// where a_j is the logarithm that key j's features are to be multiplied by e^ of and C_t the largest up to key t. A row is
// thus at the scale of what it has seen: neither later keys nor where chunks end show through ε.
#ifndef LOWRANK_ATTENTION_CPU_LINEAR_CHUNK_H_
#define LOWRANK_ATTENTION_CPU_LINEAR_CHUNK_H_

#include "core/execution.h"
#include "cpu/linear_decay.h"
#include "cpu/linear_delta.h"

namespace lowrank_attention::HWY_NAMESPACE {

struct ChunkWeights {
  alignas(64) float pair[kLinearChunk][kLinearChunk];  // weight_ij, j ≤ i
  float carry[kLinearTile];
  float key[kLinearTile];  // of key j in the range's sum after the chunk
  float keep = 1;          // of the sum before the chunk
};

// Also brings the logarithm and the decay of the sum to the end of the chunk; its state is left to the caller.
static void weighChunk(const LinearHead& head, Index first, Index count, const float* logs, float pastLog,
                       RangeSum& sum, ChunkWeights& weights) {
  float step[kLinearTile];
  float total = larger(pastLog, sum.log);
  float carry = 1;
  for (Index i = 0; i < count; ++i) {
    const bool decays = head.decaysHead() && !head.hides(first + i);
    const float decay = decays ? ::expf(head.decay[(first + i) * head.problem.decayRowStride]) : 1.0f;
    sum.decay *= static_cast<double>(decay);
    const float nextTotal = larger(total, logs[i]);
    const float totalStep = decay * expDifference(total, nextTotal);
    total = nextTotal;
    carry *= totalStep;
    weights.carry[i] = carry;
    if (head.problem.causal) {
      for (Index j = 0; j < i; ++j) weights.pair[i][j] = weights.pair[i - 1][j] * totalStep;
      weights.pair[i][i] = expDifference(logs[i], total);
    }
    // The sum has its own scale, as it may not know the past.
    const float nextLog = larger(sum.log, logs[i]);
    step[i] = decay * expDifference(sum.log, nextLog);
    weights.key[i] = expDifference(logs[i], nextLog);
    sum.log = nextLog;
  }
  weights.keep = 1;
  for (Index j = count - 1; j >= 0; --j) {
    weights.key[j] *= weights.keep;
    weights.keep *= step[j];
  }
}

// pairs[i][j] ← pairs[i][j]·weight_ij, and 0 where j > i, or j = i with `before`. Sums of the rows go to `sums`.
static void weighPairs(float* pairs, Index count, const ChunkWeights* weights, bool before, float* sums) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  for (Index i = 0; i < count; ++i) {
    const Index seen = before ? i : i + 1;
    auto sum = hn::Zero(d);
    for (Index j = 0; j < kLinearChunk; j += n) {
      float* place = pairs + i * kLinearChunk + j;
      auto pair = hn::Zero(d);
      if (j < seen) {
        pair = hn::Load(d, place);
        if (weights != nullptr) pair = hn::Mul(pair, hn::Load(d, weights->pair[i] + j));
        const auto mask = hn::FirstN(d, static_cast<std::size_t>(minimum(seen - j, n)));
        pair = hn::IfThenElseZero(mask, pair);
      }
      hn::Store(pair, d, place);
      sum = hn::Add(sum, pair);
    }
    sums[i] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

// The state before a range, at the scale e^log; null for an empty one.
struct PastState {
  const float* state = nullptr;
  float log = 0;
};

// One chunk of a range.
struct Chunk {
  const LinearHead& head;
  Index first;
  Index count;
  const LinearScratch& scratch;
  FeatureDecays decays;         // of decays a feature
  const ChunkWeights* weights;  // null where all are 1
  const float* state;           // before the chunk; null for an empty one
  bool finite;                  // all values
};

// pairs ← weighted products of rows of features with the chunk's keys. The rows are then those that read the state.
static void pairRows(const Chunk& chunk, float* rows, bool before, float* pairs, float* sums) {
  const Index features = chunk.head.shape.features;
  if (chunk.head.decaysFeatures()) {
    decayedPairs(rows, chunk.count, features, chunk.scratch.key, chunk.decays, pairs);
    scaleRows(rows, chunk.count, features, chunk.decays.fromStart);
  } else {
    multiplyPairs(rows, 0, chunk.count, features, chunk.scratch.keyLanes, chunk.count, true, pairs);
  }
  weighPairs(pairs, chunk.count, chunk.weights, before, sums);
}

LA_INLINE StateReads chunkReads(const Chunk& chunk) {
  StateReads reads;
  reads.rows = chunk.scratch.query;
  reads.state = chunk.state;
  reads.carry = chunk.weights == nullptr ? nullptr : chunk.weights->carry;
  return reads;
}

// Replaces the values by what the delta rule writes.
static void applyDelta(Chunk& chunk) {
  const LinearScratch& scratch = chunk.scratch;
  const Index floats = chunk.count * featureStride(chunk.head.shape.features);
  alignas(64) float pairs[kLinearChunk * kLinearChunk];
  float sums[kLinearChunk];
  __builtin_memcpy(scratch.query, scratch.key, static_cast<std::size_t>(4 * floats));
  pairRows(chunk, scratch.query, true, pairs, sums);
  solveDelta(chunk.head, chunk.first, chunk.count, chunkReads(chunk), pairs, scratch.value);
}

// Rows of the output of one query head.
static void attendChunk(const Chunk& chunk, Index queryHead) {
  const LinearScratch& scratch = chunk.scratch;
  alignas(64) float pairs[kLinearChunk * kLinearChunk];
  float sums[kLinearChunk];
  makeFeatures(chunk.head.problem, chunk.head.queryRows(queryHead), chunk.first, chunk.count, scratch.query,
               scratch.queryLog, scratch.features);
  pairRows(chunk, scratch.query, false, pairs, sums);
  StateReads reads = chunkReads(chunk);
  reads.pairs = pairs;
  reads.pairStride = kLinearChunk;
  reads.value = scratch.value;
  reads.finite = chunk.finite;
  writeRows(chunk.head, queryHead, chunk.first, chunk.count, reads, sums, scratch);
}

// Adds the chunk's keys to the sum; gives the state after it in scratch.state if there is a past, unless it is the range's
// last.
static void closeChunk(const Chunk& chunk, const PastState& past, bool last, RangeSum& sum) {
  const LinearScratch& scratch = chunk.scratch;
  const StateShape& shape = chunk.head.shape;
  const Index features = shape.features;
  const bool decaysFeatures = chunk.head.decaysFeatures();
  if (decaysFeatures) scaleRows(scratch.key, chunk.count, features, chunk.decays.toEnd);
  for (Index j = 0; chunk.weights != nullptr && j < chunk.count; ++j) {
    scaleRow(scratch.key + j * featureStride(features), features, chunk.weights->key[j]);
  }
  StateUpdate update;
  update.sum = sum.state;
  update.updatesZ = !isDelta(chunk.head.problem);
  if (past.state != nullptr && !last) {
    update.past = past.state;
    update.state = scratch.state;
  }
  if (chunk.weights != nullptr || decaysFeatures) {
    const float total = larger(past.log, sum.log);
    const float keep = chunk.weights == nullptr ? 1.0f : chunk.weights->keep;
    const float carry = static_cast<float>(sum.decay) * expDifference(past.log, total);
    const float* product = chunk.decays.fromStart + (chunk.count - 1) * decayStride(features);
    for (Index f = 0; f < roundUp(features, 16); ++f) {
      scratch.keep[f] = keep;
      scratch.carry[f] = carry;
      if (!decaysFeatures || f >= features) continue;
      sum.featureDecay[f] *= static_cast<double>(product[f]);
      scratch.keep[f] *= product[f];
      scratch.carry[f] *= static_cast<float>(sum.featureDecay[f]);
    }
    update.keep = scratch.keep;
    update.carry = scratch.carry;
    update.scale = expDifference(sum.log, total);
  }
  updateState(shape, scratch.key, chunk.count, scratch.value, update);
}

// Fills `sum` with keys [keys.begin, keys.end) and, with `attends`, writes the rows of their queries.
static void runRange(const LinearHead& head, KeyRange keys, const PastState& past, bool attends, RangeSum& sum,
                     const LinearScratch& scratch, const Execution& execution) {
  const LinearProblem& problem = head.problem;
  const Index features = head.shape.features;
  const Index step = tileRowsOf(problem);
  const bool delta = isDelta(problem);
  clearSum(problem, head.shape, sum);
  ChunkWeights weights;
  const bool weighted = problem.kind == FeatureKind::kFavor || head.decaysHead();
  const float* state = past.state;
  for (Index first = keys.begin; first < keys.end; first += step) {
    if (execution.aborted()) return;
    Chunk chunk{head,    first, minimum(step, keys.end - first), scratch, {}, weighted ? &weights : nullptr,
                state, true};
    stageKeys(head, first, chunk.count, scratch);
    stageValues(head, first, chunk.count, scratch);
    if (weighted) weighChunk(head, first, chunk.count, scratch.keyLog, past.log, sum, weights);
    if (head.decaysFeatures()) {
      chunk.decays = placeDecays(features, scratch.decays);
      prepareDecays(head, first, chunk.count, scratch.key, chunk.decays);
    } else if (attends || delta) {
      rowsToLanePanels(scratch.key, chunk.count, features, scratch.keyLanes);
    }
    if (delta) applyDelta(chunk);
    if (attends) {
      chunk.finite = finiteRow(scratch.value, chunk.count * head.shape.columns);
      for (Index g = 0; g < head.queryHeads(); ++g) attendChunk(chunk, head.kvHead * head.queryHeads() + g);
    }
    closeChunk(chunk, past, first + step >= keys.end, sum);
    state = past.state == nullptr ? sum.state : scratch.state;
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LINEAR_CHUNK_H_
