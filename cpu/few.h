// Attention of many query rows over few keys, all of which every row sees: a short context, the landmarks of Nyström
// attention, the projected keys of Linformer. All scores of a row are there at once, so nothing is rescaled, and lanes
// can run along the keys for scores and along the head for outputs:
//
//   S [rows][keys] = q · kᵀ       rows of queries are broadcast as they lie, keys stand in lanes
//   O [rows][dim]  = P · v        weights are broadcast, values stand in lanes as they lie
//
// Queries and outputs, which are most of the memory here, are thus read and written once and in order, and never
// brought to lanes and back as in the panels of cpu/flash.h. Keys are brought to lanes once a block of rows.
//
// Cost: 2·keys·(headDim + valueDim) operations a row and one 2^x a score, plus two sums over the lanes a row.
#ifndef LOWRANK_ATTENTION_CPU_FEW_H_
#define LOWRANK_ATTENTION_CPU_FEW_H_

#include "core/execution.h"
#include "cpu/panel.h"

namespace lowrank_attention::HWY_NAMESPACE {

// More keys would push the scores of a tile out of L1.
constexpr Index kFewKeys = 256;
// Rows of a tile, a multiple of 6 and of 12.
constexpr Index kFewRows = 24;
constexpr Index kFewWidth = 2 * kLanes<Full>;  // of a panel of keys or of columns of values
// Keys and columns are padded to whole panels of the widest instruction set, so that the formula is one for all.
constexpr Index kFewPad = 32;

// Whether nothing can hide a key from a row or change a score, however many keys there are.
LA_INLINE bool seesAllKeys(const FullProblem& problem) {
  return problem.left == FullProblem::kOpen && problem.right == FullProblem::kOpen &&
         problem.maskKind == MaskKind::kNone && problem.softcap == 0 && problem.sinks == nullptr;
}

LA_INLINE bool seesFewKeys(const FullProblem& problem, const FullSequence& sequence, Index rows) {
  return seesAllKeys(problem) && sequence.keys >= 1 && sequence.keys <= kFewKeys && rows >= kFewRows;
}

// Scratch of one worker.
struct FewScratch {
  float* keys = nullptr;     // [panels][headDim][kFewWidth], scaled so that scores come out in units of log2
  float* values = nullptr;   // [keys][padded valueDim]
  float* scores = nullptr;   // [kFewRows][padded keys]
  float* queries = nullptr;  // [kFewRows][headDim], where they are not float32 rows at one stride
  float* outputs = nullptr;  // [kFewRows][padded valueDim], where they cannot be stored directly
};

// Floats of the scratch, also where fewer keys come than were planned for.
LA_INLINE Index fewScratchFloats(const FullProblem& problem, Index keys) {
  if (!seesAllKeys(problem)) return 0;
  const Index padded = roundUp(minimum(keys, kFewKeys), kFewPad);
  const Index columns = roundUp(problem.valueDim, kFewPad);
  return padded * problem.headDim + padded * columns + kFewRows * (padded + problem.headDim + columns) + 16;
}

LA_INLINE FewScratch placeFewScratch(const FullProblem& problem, Index keys, float* memory) {
  const Index padded = roundUp(keys, kFewPad);
  const Index columns = roundUp(problem.valueDim, kFewPad);
  FewScratch scratch;
  scratch.keys = memory;
  scratch.values = scratch.keys + padded * problem.headDim;
  scratch.scores = scratch.values + padded * columns;
  scratch.outputs = scratch.scores + kFewRows * padded;
  scratch.queries = scratch.outputs + kFewRows * columns;
  return scratch;
}

// Keys to lanes, values to padded rows, both as float32. The few keys of a sequence may lie on several pages.
static void loadFewKeys(const FullProblem& problem, const FullSequence& sequence, Index kvHead,
                        const FewScratch& scratch) {
  const float scale = scaleOfQuery(problem);
  const auto row = [&](const PagedRows& rows, Index j) {
    return elementAt(rows.pages[j / rows.pageRows], problem.keyType,
                     kvHead * rows.headStride + j % rows.pageRows * rows.rowStride);
  };
  for (Index first = 0; first < roundUp(sequence.keys, kFewPad); first += kSquare) {
    float* panel = scratch.keys + first / kFewWidth * problem.headDim * kFewWidth + first % kFewWidth;
    float chunk[kSquare][kRowChunk];
    for (Index r = maximum(0, sequence.keys - first); r < kSquare; ++r) __builtin_memset(chunk[r], 0, sizeof chunk[r]);
    for (Index c = 0; c < problem.headDim; c += kRowChunk) {
      const Index count = minimum(kRowChunk, problem.headDim - c);
      const float* rows[kSquare];
      for (Index r = 0; r < kSquare; ++r) {
        if (first + r >= sequence.keys) {
          rows[r] = chunk[r];
          continue;
        }
        const void* source = elementAt(row(sequence.key, first + r), problem.keyType, c);
        rows[r] = asFloat32(problem.keyType, source, count, chunk[r]);
      }
      rowsToLanes<kSquare>(rows, count, scale, panel + c * kFewWidth, kFewWidth);
    }
  }
  const Index columns = roundUp(problem.valueDim, kFewPad);
  for (Index j = 0; j < sequence.keys; ++j) {
    float* target = scratch.values + j * columns;
    convertRow(problem.keyType, row(sequence.value, j), DataType::kFloat32, target, problem.valueDim);
    for (Index c = problem.valueDim; c < columns; ++c) target[c] = 0;
  }
}

// Turns the scores of one row into weights 2^(score − max) and gives their sum. Lanes past the last key weigh nothing.
LA_INLINE float weighFewKeys(float* scores, Index keys, float* rowMax) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const auto hidden = hn::Set(d, -kInfinity);
  if (keys % n != 0) {
    float* last = scores + keys / n * n;
    const auto valid = hn::FirstN(d, static_cast<std::size_t>(keys % n));
    hn::Store(hn::IfThenElse(valid, hn::Load(d, last), hidden), d, last);
  }
  auto max = hidden;
  for (Index j = 0; j < keys; j += n) max = hn::Max(max, hn::Load(d, scores + j));
  max = hn::MaxOfLanes(d, max);
  // As in the panels: a row whose scores are all −∞ has the sum 0.
  const auto shift = hn::IfThenElse(hn::Eq(max, hidden), hn::Zero(d), max);
  auto sum = hn::Zero(d);
  for (Index j = 0; j < keys; j += n) {
    const auto weight = exp2NonPositive(d, hn::Sub(hn::Load(d, scores + j), shift));
    hn::Store(weight, d, scores + j);
    sum = hn::Add(sum, weight);
  }
  *rowMax = hn::GetLane(max);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// Rows of one tile, at most kFewRows.
static void attendFewKeys(const FullProblem& problem, const FullSequence& sequence, const Panel& rows,
                          const FewScratch& scratch) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Index padded = roundUp(sequence.keys, kFewPad);
  const Index columns = roundUp(problem.valueDim, kFewPad);
  const bool inPlace = problem.queryType == DataType::kFloat32 && problem.heads == problem.kvHeads;
  PanelRows places(problem, rows);
  void* target[kFewRows];
  float* lse[kFewRows];
  const float* queries = scratch.queries;
  for (Index r = 0; r < rows.rows; ++r) {
    const auto [query, head] = places.next();
    const void* source = rowOf(sequence.query, problem.queryType, head, query);
    // The rows of the next tile, where there is one, so that they are in L1 when their turn comes.
    prefetch<3>(elementAt(source, problem.queryType, kFewRows * sequence.query.rowStride),
                problem.headDim * elementBytes(problem.queryType));
    if (!inPlace) {
      convertRow(problem.queryType, source, DataType::kFloat32, scratch.queries + r * problem.headDim, problem.headDim);
    } else if (r == 0) {
      queries = static_cast<const float*>(source);
    }
    target[r] = rowOf(sequence.output, problem.outputType, head, query);
    lse[r] = sequence.lse == nullptr ? nullptr : sequence.lse + head * sequence.queryRows + query;
  }
  const Index queryStride = inPlace ? sequence.query.rowStride : problem.headDim;

  for (Index j = 0; j < sequence.keys; j += kFewWidth) {
    forRowGroups<kMaxRows<2>>(rows.rows, [&](Index first, auto size) {
      float* scores = scratch.scores + first * padded + j;
      outerProduct<decltype(size)::value, 2>(
          d, queries + first * queryStride, queryStride, 1, scratch.keys + j * problem.headDim, kFewWidth,
          problem.headDim, [&](int, int) { return hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) { hn::Store(sum, d, scores + r * padded + v * n); });
    });
  }
  float inverse[kFewRows];
  for (Index r = 0; r < rows.rows; ++r) {
    float max;
    const float sum = weighFewKeys(scratch.scores + r * padded, sequence.keys, &max);
    inverse[r] = sum == 0 ? 0.0f : 1.0f / sum;
    if (lse[r] != nullptr) *lse[r] = lseOf(problem, max, sum);
  }
  const bool direct = problem.outputType == DataType::kFloat32;
  for (Index c = 0; c < problem.valueDim; c += kFewWidth) {
    const bool whole = direct && c + kFewWidth <= problem.valueDim;
    forRowGroups<kMaxRows<2>>(rows.rows, [&](Index first, auto size) {
      outerProduct<decltype(size)::value, 2>(
          d, scratch.scores + first * padded, padded, 1, scratch.values + c, columns, sequence.keys,
          [&](int, int) { return hn::Zero(d); },
          [&](int r, int v, Vec<Full> sum) {
            const Index row = first + r;
            float* out = whole ? static_cast<float*>(target[row]) : scratch.outputs + row * columns;
            hn::StoreU(hn::Mul(sum, hn::Set(d, inverse[row])), d, out + c + v * n);
          });
    });
  }
  const Index stored = direct ? problem.valueDim / kFewWidth * kFewWidth : 0;
  for (Index r = 0; stored < problem.valueDim && r < rows.rows; ++r) {
    convertRow(DataType::kFloat32, scratch.outputs + r * columns + stored, problem.outputType,
               elementAt(target[r], problem.outputType, stored), problem.valueDim - stored);
  }
}

// Rows [first, first + count) of a key/value head, numbered as in panels.
static void fewForward(const FullProblem& problem, const FullSequence& sequence, Index kvHead, Index first, Index count,
                       float* memory, const Execution& execution) {
  const FewScratch scratch = placeFewScratch(problem, sequence.keys, memory);
  loadFewKeys(problem, sequence, kvHead, scratch);
  for (Index row = 0; row < count && !execution.aborted(); row += kFewRows) {
    Panel rows;
    rows.kvHead = kvHead;
    rows.firstRow = first + row;
    rows.rows = minimum(kFewRows, count - row);
    attendFewKeys(problem, sequence, rows, scratch);
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_FEW_H_
