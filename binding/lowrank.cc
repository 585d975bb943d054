#include "core/lowrank.h"

#include <vector>

#include "binding/ops.h"
#include "binding/qkv.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct LowRankOperands {
  enum : std::size_t { kQuery, kKey, kSingularValues, kEnergies, kRanks, kU, kV, kCount };
};
struct LowRankNumbers {
  enum : std::size_t {
    kQueryType,
    kKeyType,
    kBatch,
    kHeads,
    kKvHeads,
    kQueries,
    kKeys,
    kHeadDim,
    kRowsBeforeHeads,  // 1: [batch, length, heads, dim]
    kScale,
    kCausal,
    kRank,
    kWidth,
    kPowerIterations,
    kSeed,
    kEnergy,  // 0: rank alone decides
    kCount
  };
};

struct LowRankMemory {
  std::vector<FullSequence> sequences;
  std::vector<const void*> pages;
};

// Passes over all scores, each of 2 operations per element of a query and of the values; causal ones do half of it.
double operationsOf(const LowRankProblem& problem) {
  const double scores = static_cast<double>(problem.batch) * static_cast<double>(problem.heads) *
                        static_cast<double>(problem.queries) * static_cast<double>(problem.keys);
  const double passes = static_cast<double>(2 * problem.powerIterations + 2);
  return passes * scores * static_cast<double>(problem.headDim + problem.width) * (problem.causal ? 1 : 2);
}

}  // namespace

Napi::Value lowrank(const Napi::CallbackInfo& info) {
  Operands operands(info, LowRankOperands::kCount, LowRankNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  LowRankProblem problem;
  problem.queryType = operands.dataType(LowRankNumbers::kQueryType, "q");
  problem.keyType = operands.dataType(LowRankNumbers::kKeyType, "k");
  problem.batch = operands.extent(LowRankNumbers::kBatch, "q", 1);
  problem.heads = operands.extent(LowRankNumbers::kHeads, "q", 1);
  problem.kvHeads = operands.extent(LowRankNumbers::kKvHeads, "k", 1);
  problem.queries = operands.extent(LowRankNumbers::kQueries, "q", 1);
  problem.keys = operands.extent(LowRankNumbers::kKeys, "k", 1);
  problem.headDim = operands.extent(LowRankNumbers::kHeadDim, "q", 1);
  problem.scale = static_cast<float>(operands.number(LowRankNumbers::kScale));
  problem.causal = operands.flag(LowRankNumbers::kCausal);
  problem.width = operands.extent(LowRankNumbers::kWidth, "oversample", 1);
  problem.rank = operands.extent(LowRankNumbers::kRank, "rank", 1);
  problem.powerIterations = operands.extent(LowRankNumbers::kPowerIterations, "powerIterations");
  problem.seed = static_cast<std::uint32_t>(operands.extent(LowRankNumbers::kSeed, "seed"));
  problem.energy = operands.number(LowRankNumbers::kEnergy);
  // Far beyond any use, so that a call comes to its end.
  if (problem.powerIterations > 1000) operands.fail("powerIterations", "more than anyone waits for");
  if (problem.heads % problem.kvHeads != 0) operands.fail("k", "heads do not divide");
  if (problem.width > minimum(problem.queries, problem.keys)) operands.fail("oversample", "more columns than rows");
  if (problem.rank > problem.width) operands.fail("rank", "more than there are columns");
  if (!operands.ok()) return statusValue(info.Env(), operands.status());

  const bool rowsBeforeHeads = operands.flag(LowRankNumbers::kRowsBeforeHeads);
  const auto rows = [&](std::size_t index, const char* name, DataType type, Index heads, Index length) {
    return readRows(operands, index, name, type, problem.batch, heads, length, problem.headDim, rowsBeforeHeads);
  };
  problem.query = rows(LowRankOperands::kQuery, "q", problem.queryType, problem.heads, problem.queries);
  problem.key = rows(LowRankOperands::kKey, "k", problem.keyType, problem.kvHeads, problem.keys);
  const auto float64 = [&](std::size_t index, const char* name, Index count) {
    return operands.required<double>(index, name, napi_float64_array, {problem.batch, problem.heads, count});
  };
  problem.singularValues = float64(LowRankOperands::kSingularValues, "singularValues", problem.rank);
  problem.ranks = operands.required<std::int32_t>(LowRankOperands::kRanks, "ranks", napi_int32_array,
                                                  {problem.batch, problem.heads});
  if (operands.array(LowRankOperands::kEnergies).present) {
    problem.energies = float64(LowRankOperands::kEnergies, "energies", 1);
  } else if (problem.energy != 0) {
    operands.fail("energies", "no memory for them");
  }
  if (operands.array(LowRankOperands::kU).present) {
    const auto factor = [&](std::size_t index, const char* name, Index length) {
      return static_cast<float*>(operands.tensor(operands.array(index), name, DataType::kFloat32,
                                                 {problem.batch, problem.heads, length, problem.rank}));
    };
    problem.u = factor(LowRankOperands::kU, "u", problem.queries);
    problem.v = factor(LowRankOperands::kV, "v", problem.keys);
  }
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  // The workspace has rows of `width` for every row of the tensors, which no array vouches for.
  const double workspace = static_cast<double>(problem.batch) * static_cast<double>(problem.heads) *
                           static_cast<double>(problem.queries + problem.keys) * static_cast<double>(problem.width);
  if (workspace > kMaxExtent / 16) {
    return statusValue(info.Env(), {Code::kMemory, "", "a call whose workspace does not fit"});
  }

  LowRankMemory memory;
  memory.sequences.resize(static_cast<std::size_t>(2 * problem.batch * problem.heads));
  memory.pages.resize(static_cast<std::size_t>(4 * problem.batch * problem.heads));
  problem.sequences = memory.sequences.data();
  problem.pages = memory.pages.data();
  return runKernel(info, operands.status(), &KernelSet::lowrank, problem, operationsOf(problem), std::move(memory));
}

}  // namespace lowrank_attention
