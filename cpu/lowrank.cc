// Low-rank factors of attention matrices on the CPU. See core/lowrank.h for the mathematics.
//
// A pass is one problem of exact attention whose sequences are the matrices, one a (batch item, query head), so a
// matrix is cut by its own extents alone and has the same bits in any batch. Between passes the threads share the
// matrices.
//
// Accuracy: an entry of A carries the rounding of its logit, a relative ε·|logit|, and the singular values an absolute
// ε·σ₁ of it. A and Aᵀ must be the same matrix to that precision, which the subtraction of a large lse endangers. So
// the scale is multiplied into a copy of the queries, which makes a score of the exchanged roles the same sum of the
// same products, bit for bit; and everything is kept in units of log2, so the lse of a row that one key dominates is
// that key's score and the weight is exactly 1.

#include "core/lowrank.h"

#include "cpu/arena.h"
#include "cpu/decompositions.h"
#include "cpu/kernels.h"
#include "cpu/panel.h"

namespace lowrank_attention::HWY_NAMESPACE {

struct LowRankSpace {
  BatchRows query;               // float32 copy, in units of log2
  BatchRows key;                 // float32: as given, or a copy
  float* minusLse = nullptr;     // [matrices][queries], an additive mask
  float* columnLse = nullptr;    // [matrices][keys], log2 of A's column sums
  float* left = nullptr;         // [matrices][queries][width]: Y, then P
  float* right = nullptr;        // [matrices][keys][width]: Ω, Z, B, then an orthonormal basis of B's columns
  float* rotateLeft = nullptr;   // [matrices][width][width], u = left·rotateLeft
  float* rotateRight = nullptr;  // and v = right·rotateRight
  float* squares = nullptr;      // [matrices][2][queries], only where energies are wanted
  std::byte* scratch = nullptr;  // of a pass, or of the workers between passes
  Index workerBytes = 0;         // of the latter
  std::size_t bytes = 0;

  LA_METHOD Arena ofWorker(Index worker) const { return Arena(scratch + worker * workerBytes); }
};

LA_INLINE Index matricesOf(const LowRankProblem& problem) { return problem.batch * problem.heads; }

// Scratch of one worker between passes: two matrices of rows, then three of width × width and the values in float64.
struct LowRankScratch {
  float* rows = nullptr;
  float* reflectors = nullptr;
  double* core = nullptr;
  double* leftVectors = nullptr;
  double* rightVectors = nullptr;
  double* values = nullptr;
};

LA_INLINE LowRankScratch placeScratch(const LowRankProblem& problem, Arena& arena) {
  const Index rows = maximum(problem.queries, problem.keys) * problem.width;
  const Index square = problem.width * problem.width;
  LowRankScratch scratch;
  scratch.rows = arena.take<float>(rows);
  scratch.reflectors = arena.take<float>(rows);
  scratch.core = arena.take<double>(square);
  scratch.leftVectors = arena.take<double>(square);
  scratch.rightVectors = arena.take<double>(square);
  scratch.values = arena.take<double>(problem.width);
  return scratch;
}

// Products with A, or with Aᵀ where `transposed`, of all matrices. The sequences are those `placeSequences` made.
LA_INLINE FullProblem passOf(const LowRankProblem& problem, bool transposed) {
  FullProblem pass;
  pass.heads = 1;
  pass.kvHeads = 1;
  pass.headDim = problem.headDim;
  pass.valueDim = problem.width;
  pass.base2 = true;
  // Key j is seen by the queries from j − (keys − queries) on.
  if (problem.causal) (transposed ? pass.left : pass.right) = 0;
  if (transposed) pass.maskKind = MaskKind::kAdditive;
  pass.sequences = problem.sequences + (transposed ? matricesOf(problem) : 0);
  pass.sequenceCount = matricesOf(problem);
  return pass;
}

// Σⱼ 2^(2·sᵢⱼ) of every row, as the lse of attention at twice the scale. There has to be a value: one column, not used.
LA_INLINE FullProblem squaresOf(const LowRankProblem& problem) {
  FullProblem pass = passOf(problem, false);
  pass.scale = 2;
  pass.valueDim = 1;
  return pass;
}

// Fills problem.sequences with extents, and with memory once there is a workspace: a matrix reads `right` and writes
// `left`, its transpose the other way round.
LA_INLINE void placeSequences(const LowRankProblem& problem, const LowRankSpace& space, bool withMemory) {
  const Index matrices = matricesOf(problem);
  const auto rowsOf = [&](float* rows, Index matrix, Index length) {
    return HeadRows{rows + matrix * length * problem.width, 0, problem.width};
  };
  const auto paged = [&](const HeadRows& rows, Index length, const void** page) {
    *page = rows.data;
    return PagedRows{page, length, 0, rows.rowStride};
  };
  for (Index m = 0; m < matrices; ++m) {
    FullSequence& product = problem.sequences[m];
    product = FullSequence();
    product.queries = product.queryRows = problem.queries;
    product.keys = problem.keys;
    product.offset = problem.keys - problem.queries;
    FullSequence& transposed = problem.sequences[matrices + m];
    transposed = FullSequence();
    transposed.queries = transposed.queryRows = problem.keys;
    transposed.keys = problem.queries;
    transposed.offset = problem.queries - problem.keys;
    if (!withMemory) continue;

    const Index item = m / problem.heads;
    const Index head = m % problem.heads;
    const HeadRows query = {rowOf(space.query, DataType::kFloat32, item, head, 0), 0, space.query.rowStride};
    const HeadRows key = {rowOf(space.key, DataType::kFloat32, item, head / (problem.heads / problem.kvHeads), 0), 0,
                          space.key.rowStride};
    const HeadRows left = rowsOf(space.left, m, problem.queries);
    const HeadRows right = rowsOf(space.right, m, problem.keys);
    const void** pages = problem.pages + 4 * m;
    product.query = query;
    product.key = paged(key, problem.keys, pages);
    product.value = paged(right, problem.keys, pages + 1);
    product.output = left;
    transposed.query = key;
    transposed.key = paged(query, problem.queries, pages + 2);
    transposed.value = paged(left, problem.queries, pages + 3);
    transposed.output = right;
    transposed.lse = space.columnLse + m * problem.keys;
    transposed.mask = space.minusLse + m * problem.queries;
  }
}

// The op's one workspace formula. Fills problem.sequences too, without memory if `memory` is null.
LA_INLINE LowRankSpace layOut(const LowRankProblem& problem, Index threads, std::byte* memory) {
  LowRankSpace space;
  Arena arena(memory);
  const auto copy = [&](Index heads, Index length) {
    float* rows = arena.take<float>(problem.batch * heads * length * problem.headDim);
    return denseRows(rows, heads, length, problem.headDim, false);
  };
  const Index matrices = matricesOf(problem);
  space.query = copy(problem.heads, problem.queries);
  space.key = problem.keyType == DataType::kFloat32 ? problem.key : copy(problem.kvHeads, problem.keys);
  space.minusLse = arena.take<float>(matrices * problem.queries);
  space.columnLse = arena.take<float>(matrices * problem.keys);
  space.left = arena.take<float>(matrices * problem.queries * problem.width);
  space.right = arena.take<float>(matrices * problem.keys * problem.width);
  space.rotateLeft = arena.take<float>(matrices * problem.width * problem.width);
  space.rotateRight = arena.take<float>(matrices * problem.width * problem.width);
  if (problem.energies != nullptr) space.squares = arena.take<float>(2 * matrices * problem.queries);
  placeSequences(problem, space, memory != nullptr);

  Arena worker(nullptr);
  placeScratch(problem, worker);
  // Whole pages a worker.
  space.workerBytes = roundUp(worker.bytes(), 4096);
  Index scratch = threads * space.workerBytes;
  for (const FullProblem& pass : {passOf(problem, false), passOf(problem, true), squaresOf(problem)}) {
    scratch = maximum(scratch, static_cast<Index>(fullWorkspaceBytes(pass, threads)));
  }
  space.scratch = arena.take<std::byte>(scratch);
  space.bytes = static_cast<std::size_t>(arena.bytes());
  return space;
}

std::size_t lowRankWorkspaceBytes(const LowRankProblem& problem, Index threads) {
  return layOut(problem, threads, nullptr).bytes;
}

// Queries times the scale, and keys that are not float32: values are, and exact attention reads keys and values of one
// type.
LA_INLINE void copyInputs(const LowRankProblem& problem, const LowRankSpace& space, const Execution& execution) {
  const auto copy = [&](const BatchRows& from, DataType type, const BatchRows& to, Index heads, Index length,
                        float factor) {
    forEachUnit(execution, problem.batch * heads, [&](Index, Index unit) {
      for (Index row = 0; row < length; ++row) {
        float* target = static_cast<float*>(rowOf(to, DataType::kFloat32, unit / heads, unit % heads, row));
        convertRow(type, rowOf(from, type, unit / heads, unit % heads, row), DataType::kFloat32, target,
                   problem.headDim);
        for (Index c = 0; c < problem.headDim; ++c) target[c] *= factor;
      }
    });
  };
  copy(problem.query, problem.queryType, space.query, problem.heads, problem.queries, problem.scale * kLog2E);
  if (problem.keyType != DataType::kFloat32) {
    copy(problem.key, problem.keyType, space.key, problem.kvHeads, problem.keys, 1);
  }
}

LA_INLINE double exp2Of(double x) { return ::exp(x * 0.69314718055994530942); }

// Number `index` of the stream that begins at `state`, 64 bits: splitmix64 (Steele, Lea & Flood 2014).
LA_INLINE std::uint64_t splitmix(std::uint64_t state, std::uint64_t index) {
  std::uint64_t z = state + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The bits as a float32 uniform in (−1, 1): sub-Gaussian as the theory wants it, and the same on every machine, which a
// logarithm is not.
LA_INLINE float uniform(std::uint64_t bits) {
  return static_cast<float>(static_cast<std::int64_t>(bits >> 40) * 2 + 1 - (std::int64_t{1} << 24)) * 0x1p-24f;
}

// right ← Ω. Element (j, c) does not depend on the width, so more columns only add to the others.
LA_INLINE void drawStart(const LowRankProblem& problem, const LowRankSpace& space, const Execution& execution) {
  const std::uint64_t state = splitmix(0, problem.seed);
  forEachUnit(execution, matricesOf(problem), [&](Index, Index matrix) {
    float* start = space.right + matrix * problem.keys * problem.width;
    for (Index j = 0; j < problem.keys; ++j) {
      for (Index c = 0; c < problem.width; ++c) {
        const std::uint64_t index = (static_cast<std::uint64_t>(c) << 32) + static_cast<std::uint64_t>(j);
        start[j * problem.width + c] = uniform(splitmix(state, index));
      }
    }
  });
}

// Replaces the rows × width matrices by orthonormal bases of their columns.
LA_INLINE void orthonormalizeAll(const LowRankProblem& problem, const LowRankSpace& space, float* matrices, Index rows,
                                 const Execution& execution) {
  forEachUnit(execution, matricesOf(problem), [&](Index worker, Index matrix) {
    Arena arena = space.ofWorker(worker);
    const bool done = orthonormalize(matrices + matrix * rows * problem.width, rows, problem.width,
                                     placeScratch(problem, arena).reflectors);
    if (!done) execution.fail(Code::kMemory);
  });
}

// left ← A·right. The first such pass leaves −lse of the rows, −∞ for rows that see no key.
LA_INLINE void multiply(const LowRankProblem& problem, const LowRankSpace& space, bool first,
                        const Execution& execution) {
  const Index matrices = matricesOf(problem);
  for (Index m = 0; m < matrices; ++m) {
    problem.sequences[m].lse = first ? space.minusLse + m * problem.queries : nullptr;
  }
  runFull(passOf(problem, false), execution);
  if (!first || execution.aborted()) return;
  for (Index i = 0; i < matrices * problem.queries; ++i) {
    float& lse = space.minusLse[i];
    if (lse != -kInfinity) lse = -lse;
  }
}

// right ← Aᵀ·left.
LA_INLINE void multiplyTransposed(const LowRankProblem& problem, const LowRankSpace& space,
                                  const Execution& execution) {
  runFull(passOf(problem, true), execution);
  forEachUnit(execution, matricesOf(problem), [&](Index, Index matrix) {
    for (Index j = 0; j < problem.keys; ++j) {
      const float sum = static_cast<float>(exp2Of(static_cast<double>(space.columnLse[matrix * problem.keys + j])));
      float* row = space.right + (matrix * problem.keys + j) * problem.width;
      for (Index c = 0; c < problem.width; ++c) row[c] *= sum;
    }
  });
}

// ‖A‖_F² = Σᵢ 2^(lse of the doubled logits − 2·lse).
LA_INLINE void measureEnergies(const LowRankProblem& problem, const LowRankSpace& space, const Execution& execution) {
  const Index matrices = matricesOf(problem);
  float* lse = space.squares;
  for (Index m = 0; m < matrices; ++m) {
    problem.sequences[m].lse = lse + m * problem.queries;
    problem.sequences[m].output = {lse + (matrices + m) * problem.queries, 0, 1};
  }
  runFull(squaresOf(problem), execution);
  if (execution.aborted()) return;
  for (Index m = 0; m < matrices; ++m) {
    double sum = 0;
    for (Index i = m * problem.queries; i < (m + 1) * problem.queries; ++i) {
      if (space.minusLse[i] == -kInfinity) continue;
      sum += exp2Of(static_cast<double>(lse[i]) + 2 * static_cast<double>(space.minusLse[i]));
    }
    problem.energies[m] = sum;
  }
}

// product (width × width) = aᵀ·b of matrices with so many rows, in float64.
LA_INLINE void innerProducts(const float* a, const float* b, Index rows, Index width, double* product) {
  constexpr Index kBlock = 8;  // columns of a at a time, so that their rows of the product stay in L1
  for (Index first = 0; first < width; first += kBlock) {
    const Index end = minimum(first + kBlock, width);
    for (Index i = first * width; i < end * width; ++i) product[i] = 0;
    for (Index row = 0; row < rows; ++row) {
      const float* right = b + row * width;
      for (Index i = first; i < end; ++i) {
        const double left = static_cast<double>(a[row * width + i]);
        double* sums = product + i * width;
        for (Index j = 0; j < width; ++j) sums[j] += left * static_cast<double>(right[j]);
      }
    }
  }
}

// From B in `right` to the singular values, the basis of B and the rotations. With B = basis·R, R = X·Σ·Wᵀ:
// v = basis·X, u = P·W·Σ. So both are as orthonormal as float32 can be, also where singular values vanish.
LA_INLINE void decompose(const LowRankProblem& problem, const LowRankSpace& space, const Execution& execution) {
  const Index width = problem.width;
  forEachUnit(execution, matricesOf(problem), [&](Index worker, Index matrix) {
    Arena arena = space.ofWorker(worker);
    const LowRankScratch scratch = placeScratch(problem, arena);
    float* basis = space.right + matrix * problem.keys * width;
    __builtin_memcpy(scratch.rows, basis, static_cast<std::size_t>(4 * problem.keys * width));
    bool done = orthonormalize(basis, problem.keys, width, scratch.reflectors);
    innerProducts(basis, scratch.rows, problem.keys, width, scratch.core);
    done = svd(scratch.core, width, width, scratch.values, scratch.leftVectors, scratch.rightVectors) && done;
    if (!done) execution.fail(Code::kMemory);
    float* left = space.rotateLeft + matrix * width * width;
    float* right = space.rotateRight + matrix * width * width;
    for (Index i = 0; i < width * width; ++i) {
      left[i] = static_cast<float>(scratch.rightVectors[i] * scratch.values[i % width]);
      right[i] = static_cast<float>(scratch.leftVectors[i]);
    }
    for (Index c = 0; c < problem.rank; ++c) {
      problem.singularValues[matrix * problem.rank + c] = scratch.values[c];
    }
  });
}

// The columns that keep the share `energy` of one matrix, or 0 if `rank` of them do not. What remains beyond them is
// exactly ‖A‖_F² − Σσ², as P is orthonormal; so the sums are compared up to the rounding of the logits only.
LA_INLINE Index rankOf(const LowRankProblem& problem, const LowRankSpace& space, Index matrix) {
  if (problem.energy == 0) return problem.rank;
  double largestLse = 0;
  for (Index i = matrix * problem.queries; i < (matrix + 1) * problem.queries; ++i) {
    const double lse = static_cast<double>(__builtin_fabsf(space.minusLse[i]));
    if (lse < static_cast<double>(kInfinity) && lse > largestLse) largestLse = lse;
  }
  const double rounding = 8 * 0x1p-23 * (1 + largestLse);
  const double wanted = problem.energy * problem.energies[matrix] * (1 - rounding);
  double kept = 0;
  for (Index c = 0; c < problem.rank; ++c) {
    const double value = problem.singularValues[matrix * problem.rank + c];
    kept += value * value;
    if (kept >= wanted) return c + 1;
  }
  return 0;
}

// target (rows × stride) = source (rows × width)·the first `rank` columns of `rotation`, and zeros up to `stride`.
LA_INLINE void rotateRows(const float* source, const float* rotation, Index width, Index rows, Index rank, Index stride,
                          float* target) {
  for (Index row = 0; row < rows; ++row) {
    float* sums = target + row * stride;
    for (Index c = 0; c < stride; ++c) sums[c] = 0;
    for (Index i = 0; i < width; ++i) {
      const float factor = source[row * width + i];
      const float* addends = rotation + i * width;
      for (Index c = 0; c < rank; ++c) sums[c] += factor * addends[c];
    }
  }
}

LA_INLINE void writeFactors(const LowRankProblem& problem, const LowRankSpace& space, Index stride,
                            const Execution& execution) {
  constexpr Index kRows = 256;  // of a unit
  const Index width = problem.width;
  const auto write = [&](const float* source, const float* rotations, Index length, float* target) {
    const Index blocks = divideUp(length, kRows);
    forEachUnit(execution, matricesOf(problem) * blocks, [&](Index, Index unit) {
      const Index matrix = unit / blocks;
      const Index first = unit % blocks * kRows;
      rotateRows(source + (matrix * length + first) * width, rotations + matrix * width * width, width,
                 minimum(kRows, length - first), problem.ranks[matrix], stride,
                 target + (matrix * length + first) * stride);
    });
  };
  write(space.left, space.rotateLeft, problem.queries, problem.u);
  write(space.right, space.rotateRight, problem.keys, problem.v);
}

void runLowRank(const LowRankProblem& problem, const Execution& execution) {
  const LowRankSpace space = layOut(problem, execution.threads, execution.workspace);
  Execution pass = execution;
  pass.workspace = space.scratch;
  copyInputs(problem, space, execution);
  drawStart(problem, space, execution);
  multiply(problem, space, true, pass);
  for (Index i = 0; i < problem.powerIterations; ++i) {
    orthonormalizeAll(problem, space, space.left, problem.queries, execution);
    multiplyTransposed(problem, space, pass);
    orthonormalizeAll(problem, space, space.right, problem.keys, execution);
    multiply(problem, space, false, pass);
  }
  orthonormalizeAll(problem, space, space.left, problem.queries, execution);
  multiplyTransposed(problem, space, pass);
  if (problem.energies != nullptr) measureEnergies(problem, space, pass);
  decompose(problem, space, execution);
  if (execution.aborted()) return;

  Index largest = 0;
  Index smallest = problem.rank;
  for (Index matrix = 0; matrix < matricesOf(problem); ++matrix) {
    const Index rank = rankOf(problem, space, matrix);
    problem.ranks[matrix] = static_cast<std::int32_t>(rank);
    largest = maximum(largest, rank);
    smallest = minimum(smallest, rank);
  }
  if (problem.u != nullptr && smallest > 0) writeFactors(problem, space, largest, execution);
}

}  // namespace lowrank_attention::HWY_NAMESPACE
