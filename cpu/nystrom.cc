// Nyström attention on the CPU, from right to left, in one call: see core/nystrom.h for the mathematics.
//
//   1. landmarks       means of the queries and keys, as float32, live ones first
//   2. B·V             exact attention of the landmarks as queries over all keys (cpu/full.h)
//   3. W = Z·(B·V)     one head a unit (cpu/pseudo_inverse.h)
//   4. O = F·W         exact attention of all queries over the landmark keys with W as values; then the convolution
//
// Nothing of it is as large as queries × keys: beside the output O(length + m·(headDim + valueDim)) a head, and O(m²) a
// thread.

#include "cpu/convolution.h"
#include "cpu/kernels.h"
#include "cpu/landmarks.h"
#include "cpu/pseudo_inverse.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kLandmarkUnit = 16;
// With a convolution F·W is kept in float32 until that is added, so that it is rounded once: so many rows of all heads
// of one batch item at a time.
constexpr Index kStagedRows = 1024;

// Where everything lies in the workspace. Landmarks have one key a query head, as W has, also where heads share keys.
struct NystromWorkspace {
  FullSequence* sequences = nullptr;  // [batch]
  const void** pages = nullptr;       // [batch][2]
  Index* live = nullptr;              // [batch][m], landmarks that are not left out
  Index* liveCount = nullptr;         // [batch]
  float* queries = nullptr;           // [batch][heads][m][headDim]
  float* keys = nullptr;              // [batch][heads][m][headDim]
  float* values = nullptr;            // [batch][heads][m][valueDim], B·V and then W
  float* staged = nullptr;            // [heads][kStagedRows][valueDim], with a convolution only
  std::byte* shared = nullptr;        // of one phase after the other
  Index workerBytes = 0;              // of it between runs of exact attention
  std::size_t bytes = 0;

  LA_METHOD Arena ofWorker(Index worker) const { return Arena(shared + worker * workerBytes); }
};

// The landmarks as queries over all keys, with B·V for output.
LA_INLINE Qkv landmarkQueries(const NystromProblem& problem, const NystromWorkspace& space) {
  Qkv qkv = problem.qkv;
  qkv.queryType = DataType::kFloat32;
  qkv.outputType = DataType::kFloat32;
  qkv.queries = problem.landmarks;
  qkv.query = denseRows(space.queries, qkv.heads, problem.landmarks, qkv.headDim, false);
  qkv.output = denseRows(space.values, qkv.heads, problem.landmarks, qkv.valueDim, false);
  return qkv;
}

// All queries over the landmark keys with W for values.
LA_INLINE Qkv landmarkKeys(const NystromProblem& problem, const NystromWorkspace& space) {
  Qkv qkv = problem.qkv;
  qkv.keyType = DataType::kFloat32;
  qkv.kvHeads = qkv.heads;
  qkv.keys = problem.landmarks;
  qkv.key = denseRows(space.keys, qkv.heads, problem.landmarks, qkv.headDim, false);
  qkv.value = denseRows(space.values, qkv.heads, problem.landmarks, qkv.valueDim, false);
  return qkv;
}

LA_INLINE FullProblem attentionOver(const NystromProblem& problem, const Qkv& qkv, const FullSequence* sequences) {
  FullProblem full = fullProblemOf(qkv);
  full.scale = problem.scale;
  full.sequences = sequences;
  return full;
}

LA_INLINE FullProblem landmarkQueryProblem(const NystromProblem& problem, const Qkv& qkv,
                                           const FullSequence* sequences) {
  FullProblem full = attentionOver(problem, qkv, sequences);
  // However many landmarks: one long sequence must have work for all threads.
  full.splitRows = FullProblem::kOpen;
  if (problem.keyMask != nullptr) full.maskKind = MaskKind::kBool;
  return full;
}

// F·W into the output, or into the staged rows of one batch item.
LA_INLINE FullProblem landmarkKeyProblem(const NystromProblem& problem, const Qkv& qkv, const FullSequence* sequences) {
  FullProblem full = attentionOver(problem, qkv, sequences);
  if (problem.convFilters == nullptr) return full;
  full.outputType = DataType::kFloat32;
  full.sequenceCount = 1;
  return full;
}

// The op's one workspace formula.
LA_INLINE NystromWorkspace layOut(const NystromProblem& problem, Index threads, std::byte* memory) {
  NystromWorkspace space;
  const Qkv& qkv = problem.qkv;
  Arena arena(memory);
  const Index rows = qkv.batch * qkv.heads * problem.landmarks;
  const bool convolves = problem.convFilters != nullptr;
  space.sequences = arena.take<FullSequence>(qkv.batch);
  space.pages = arena.take<const void*>(2 * qkv.batch);
  space.live = arena.take<Index>(qkv.batch * problem.landmarks);
  space.liveCount = arena.take<Index>(qkv.batch);
  space.queries = arena.take<float>(rows * qkv.headDim);
  space.keys = arena.take<float>(rows * qkv.headDim);
  space.values = arena.take<float>(rows * qkv.valueDim);
  if (convolves) {
    space.staged = arena.take<float>(qkv.heads * minimum(kStagedRows, qkv.queries) * qkv.valueDim);
  }

  Arena inverse(nullptr);
  placeInverse(problem, inverse);
  Arena convolution(nullptr);
  if (convolves) placeConvolution(problem, convolution);
  // Whole pages a worker.
  space.workerBytes = roundUp(maximum(inverse.bytes(), convolution.bytes()), 4096);

  FullSequence extents;
  extents.queries = problem.landmarks;
  extents.keys = qkv.keys;
  const Qkv queries = landmarkQueries(problem, space);
  const Index first =
      static_cast<Index>(uniformFullWorkspaceBytes(landmarkQueryProblem(problem, queries, &extents), threads));
  const Qkv keys = landmarkKeys(problem, space);
  extents.queries = convolves ? minimum(kStagedRows, qkv.queries) : qkv.queries;
  extents.keys = problem.landmarks;
  const Index second =
      static_cast<Index>(uniformFullWorkspaceBytes(landmarkKeyProblem(problem, keys, &extents), threads));
  space.shared = arena.take<std::byte>(maximum(maximum(first, second), threads * space.workerBytes));
  space.bytes = static_cast<std::size_t>(arena.bytes());
  return space;
}

std::size_t nystromWorkspaceBytes(const NystromProblem& problem, Index threads) {
  return layOut(problem, threads, nullptr).bytes;
}

// Rows [first, first + kLandmarkUnit) of the landmarks of one batch item and key/value head: its own and those of its
// query heads. Those past the live ones are zero.
LA_INLINE void fillLandmarks(const NystromProblem& problem, const NystromWorkspace& space, Index item, Index kvHead,
                             Index first, float* scratch) {
  const Qkv& qkv = problem.qkv;
  const Index group = qkv.heads / qkv.kvHeads;
  const Index end = minimum(first + kLandmarkUnit, problem.landmarks);
  const LandmarkSource querySide = querySource(problem, item);
  const LandmarkSource keySide = keySource(problem, item);
  const auto bytes = static_cast<std::size_t>(4 * qkv.headDim);
  for (Index i = first; i < end; ++i) {
    const auto rowIn = [&](float* rows, Index head) {
      return rows + ((item * qkv.heads + head) * problem.landmarks + i) * qkv.headDim;
    };
    const bool live = i < space.liveCount[item];
    const Index landmark = live ? space.live[item * problem.landmarks + i] : 0;
    const auto fill = [&](const LandmarkSource& source, Index head, float* row) {
      if (!live) {
        __builtin_memset(row, 0, bytes);
        return;
      }
      const KeyRange range = landmarkRange(source.length, problem.landmarks, source.positions, landmark);
      meanOfRows(source, range, item, head, qkv.headDim, scratch, row);
    };
    const Index firstHead = kvHead * group;
    fill(keySide, kvHead, rowIn(space.keys, firstHead));
    for (Index h = firstHead; h < firstHead + group; ++h) {
      fill(querySide, h, rowIn(space.queries, h));
      if (h > firstHead) __builtin_memcpy(rowIn(space.keys, h), rowIn(space.keys, firstHead), bytes);
    }
  }
}

LA_INLINE void findAndFillLandmarks(const NystromProblem& problem, const NystromWorkspace& space,
                                    const Execution& execution) {
  const Qkv& qkv = problem.qkv;
  forEachUnit(execution, qkv.batch, [&](Index, Index item) {
    space.liveCount[item] = findLandmarks(problem, item, space.live + item * problem.landmarks);
  });
  if (execution.aborted()) return;
  const Index parts = divideUp(problem.landmarks, kLandmarkUnit);
  forEachUnit(execution, qkv.batch * qkv.kvHeads * parts, [&](Index worker, Index unit) {
    Arena arena = space.ofWorker(worker);
    // An inverse's scratch, headDim rows of it, is no smaller.
    float* scratch = arena.take<float>(qkv.headDim);
    const Index head = unit / parts;
    fillLandmarks(problem, space, head / qkv.kvHeads, head % qkv.kvHeads, unit % parts * kLandmarkUnit, scratch);
  });
}

LA_INLINE void applyInverses(const NystromProblem& problem, const NystromWorkspace& space, const Execution& execution) {
  const Qkv& qkv = problem.qkv;
  forEachUnit(execution, qkv.batch * qkv.heads, [&](Index worker, Index head) {
    const Index first = head * problem.landmarks;
    const Index count = space.liveCount[head / qkv.heads];
    if (count == 0) return;
    Arena arena = space.ofWorker(worker);
    applyInverse(problem, space.queries + first * qkv.headDim, space.keys + first * qkv.headDim, count,
                 space.values + first * qkv.valueDim, placeInverse(problem, arena), execution);
  });
}

LA_INLINE void clearOutputRow(const Qkv& qkv, Index item, Index head, Index row) {
  __builtin_memset(rowOf(qkv.output, qkv.outputType, item, head, row), 0,
                   static_cast<std::size_t>(qkv.valueDim * elementBytes(qkv.outputType)));
}

// Step 4 without a convolution: straight into the output. What masked queries gave is written over.
LA_INLINE void attendLandmarks(const NystromProblem& problem, const NystromWorkspace& space,
                               const Execution& inShared) {
  const Qkv& qkv = problem.qkv;
  const Qkv toKeys = landmarkKeys(problem, space);
  for (Index item = 0; item < qkv.batch; ++item) {
    space.sequences[item] = sequenceOf(toKeys, item, space.pages + 2 * item);
    space.sequences[item].keys = space.liveCount[item];
  }
  runFull(landmarkKeyProblem(problem, toKeys, space.sequences), inShared);
  if (problem.queryMask == nullptr) return;
  forEachUnit(inShared, qkv.batch * qkv.heads, [&](Index, Index unit) {
    const Index item = unit / qkv.heads;
    const std::uint8_t* mask = querySource(problem, item).mask;
    for (Index row = 0; row < qkv.queries; ++row) {
      if (!isLive(mask, row)) clearOutputRow(qkv, item, unit % qkv.heads, row);
    }
  });
}

// Output rows of one head of one batch item: staged rows and convolution, rounded once. `first` is the row that is
// staged first.
LA_INLINE void convolveBlock(const NystromProblem& problem, const NystromWorkspace& space, Index item, Index head,
                             Index first, KeyRange block, const ConvolutionScratch& scratch,
                             const Execution& execution) {
  const Qkv& qkv = problem.qkv;
  const auto bytes = static_cast<std::size_t>(4 * qkv.valueDim);
  const float* staged = space.staged + (head * minimum(kStagedRows, qkv.queries) + block.begin - first) * qkv.valueDim;
  for (Index i = 0; i < block.end - block.begin; ++i) {
    __builtin_memcpy(scratch.sums.row(i), staged + i * qkv.valueDim, bytes);
  }
  addConvolution(problem, item, head, block, scratch, execution);
  const std::uint8_t* mask = querySource(problem, item).mask;
  for (Index row = block.begin; row < block.end; ++row) {
    if (isLive(mask, row)) {
      convertRow(DataType::kFloat32, scratch.sums.row(row - block.begin), qkv.outputType,
                 rowOf(qkv.output, qkv.outputType, item, head, row), qkv.valueDim);
    } else {
      clearOutputRow(qkv, item, head, row);
    }
  }
}

LA_INLINE void attendAndConvolve(const NystromProblem& problem, const NystromWorkspace& space,
                                 const Execution& inShared) {
  const Qkv& qkv = problem.qkv;
  const Qkv toKeys = landmarkKeys(problem, space);
  const Index stagedRows = minimum(kStagedRows, qkv.queries);
  for (Index item = 0; item < qkv.batch; ++item) {
    FullSequence& sequence = space.sequences[0];
    sequence = sequenceOf(toKeys, item, space.pages);
    sequence.keys = space.liveCount[item];
    sequence.output = {space.staged, stagedRows * qkv.valueDim, qkv.valueDim};
    for (Index first = 0; first < qkv.queries && !inShared.aborted(); first += kStagedRows) {
      const Index rows = minimum(kStagedRows, qkv.queries - first);
      sequence.query.data = rowOf(qkv.query, qkv.queryType, item, 0, first);
      sequence.queries = rows;
      sequence.queryRows = rows;
      runFull(landmarkKeyProblem(problem, toKeys, space.sequences), inShared);
      if (inShared.aborted()) return;
      const Index blocks = divideUp(rows, kConvolutionRows);
      forEachUnit(inShared, qkv.heads * blocks, [&](Index worker, Index unit) {
        Arena arena = space.ofWorker(worker);
        const Index begin = first + unit % blocks * kConvolutionRows;
        convolveBlock(problem, space, item, unit / blocks, first,
                      {begin, minimum(begin + kConvolutionRows, first + rows)}, placeConvolution(problem, arena),
                      inShared);
      });
    }
  }
}

void runNystrom(const NystromProblem& problem, const Execution& execution) {
  const Qkv& qkv = problem.qkv;
  const NystromWorkspace space = layOut(problem, execution.threads, execution.workspace);
  Execution inShared = execution;
  inShared.workspace = space.shared;

  findAndFillLandmarks(problem, space, execution);
  if (execution.aborted()) return;
  const Qkv toQueries = landmarkQueries(problem, space);
  for (Index item = 0; item < qkv.batch; ++item) {
    space.sequences[item] = sequenceOf(toQueries, item, space.pages + 2 * item);
    space.sequences[item].mask = keySource(problem, item).mask;
  }
  runFull(landmarkQueryProblem(problem, toQueries, space.sequences), inShared);
  if (execution.aborted()) return;
  applyInverses(problem, space, execution);
  if (execution.aborted()) return;
  if (problem.convFilters == nullptr) {
    attendLandmarks(problem, space, inShared);
  } else {
    attendAndConvolve(problem, space, inShared);
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE
