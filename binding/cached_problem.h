// The part of a call on caches that is the same whatever they hold.
#ifndef LOWRANK_ATTENTION_BINDING_CACHED_PROBLEM_H_
#define LOWRANK_ATTENTION_BINDING_CACHED_PROBLEM_H_

#include "binding/cache_handle.h"
#include "binding/full_problem.h"

namespace lowrank_attention {

// Operands of such a call begin so. Arrays with one entry a sequence; lses and masks may be null. A single call has one
// sequence.
struct CachedOperands {
  enum : std::size_t { kCaches, kQueries, kOutputs, kLses, kMasks, kSinks, kCount };
};

// Numbers begin so, and end in the query rows of each sequence.
struct CachedNumbers {
  enum : std::size_t { kQueryType, kOutputType, kHeads, kRowsBeforeHeads, kScores };
  static constexpr std::size_t kCount = kScores + ScoreNumbers::kCount;
};

// Reads what the sequences of a call have in common, apart from their caches.
inline FullProblem readCachedCall(Operands& operands) {
  FullProblem problem;
  problem.queryType = operands.dataType(CachedNumbers::kQueryType, "query");
  problem.outputType = operands.dataType(CachedNumbers::kOutputType, "out");
  problem.heads = operands.extent(CachedNumbers::kHeads, "query", 1);
  readScores(operands, CachedNumbers::kScores, problem);
  problem.sinks = operands.optional<float>(CachedOperands::kSinks, "sinks", napi_float32_array, problem.heads);
  return problem;
}

// Reads sequence `s` but for its keys' and values' places, once the problem's head sizes are known.
inline FullSequence readCachedSequence(Operands& operands, std::size_t s, std::size_t queries, Index keys,
                                       const FullProblem& problem) {
  FullSequence sequence;
  sequence.queries = operands.extent(queries, "query");
  sequence.queryRows = sequence.queries;
  sequence.keys = keys;
  sequence.offset = readOffset(operands, CachedNumbers::kScores + ScoreNumbers::kOffset, sequence);
  const bool rowsBeforeHeads = operands.flag(CachedNumbers::kRowsBeforeHeads);
  const auto headRows = [&](std::size_t index, const char* name, DataType type, Index dim) {
    void* data = operands.tensor(operands.entry(index, s), name, type, {problem.heads, sequence.queries, dim});
    return HeadRows{data, rowsBeforeHeads ? dim : sequence.queries * dim, rowsBeforeHeads ? problem.heads * dim : dim};
  };
  sequence.query = headRows(CachedOperands::kQueries, "query", problem.queryType, problem.headDim);
  sequence.output = headRows(CachedOperands::kOutputs, "out", problem.outputType, problem.valueDim);
  const Array lse = operands.entry(CachedOperands::kLses, s);
  if (lse.present) {
    sequence.lse =
        static_cast<float*>(operands.tensor(lse, "lse", DataType::kFloat32, {problem.heads, sequence.queries}));
  }
  sequence.mask = readMask(operands, operands.entry(CachedOperands::kMasks, s), problem, 0, 0, sequence);
  return sequence;
}

// Reads the sequences, whose query rows are the numbers from `firstSequence` on. Calls fit(memory) for the cache of
// each: it takes the problem's shape from the first, and fails in `operands` where another differs. Whether there is
// anything to compute: without rows the number of heads is not bounded by memory that exists.
template <class Kind, class Fit>
bool readCachedSequences(const Napi::CallbackInfo& info, Operands& operands, std::size_t firstSequence,
                         FullProblem* problem, FullMemory* memory, const Fit& fit) {
  const std::size_t count = operands.numberCount() - firstSequence;
  std::vector<const typename Kind::Memory*> caches;
  std::vector<std::size_t> places;
  Index rows = 0;
  for (std::size_t s = 0; s < count && operands.ok(); ++s) {
    const auto* handle = CacheHandle<Kind>::of(info.Env(), operands.value(CachedOperands::kCaches, s));
    if (handle == nullptr) {
      operands.fail("cache", "not a cache");
    } else if (handle->memory() == nullptr) {
      operands.fail(kDisposedCache);
    } else {
      fit(*handle->memory());
    }
    if (!operands.ok()) return false;
    const FullSequence& sequence = memory->sequences.emplace_back(
        readCachedSequence(operands, s, firstSequence + s, handle->memory()->pages().length(), *problem));
    rows = maximum(rows, sequence.queries);
    caches.push_back(handle->memory());
    places.push_back(memory->pages.size());
    caches.back()->snapshot(&memory->pages, &memory->owners);
  }
  if (!operands.ok() || rows == 0) return false;
  // Addresses are final only now that the list of pages has stopped growing.
  for (std::size_t s = 0; s < count; ++s) {
    caches[s]->place(memory->pages.data() + places[s], &memory->sequences[s]);
  }
  problem->sequences = memory->sequences.data();
  problem->sequenceCount = static_cast<Index>(count);
  return true;
}

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_CACHED_PROBLEM_H_
