#include "core/lrkv.h"

#include "binding/full_problem.h"
#include "binding/lrkv_model.h"
#include "binding/ops.h"
#include "binding/task.h"
#include "core/lrkv_cache.h"

namespace lowrank_attention {

namespace {

// Then come TensorScoreOperands, LrkvRowOperands and LrkvModelOperands.
struct LrkvOperands {
  enum : std::size_t { kQuery, kOutput, kScores };
  static constexpr std::size_t kRows = kScores + TensorScoreOperands::kCount;
  static constexpr std::size_t kModel = kRows + LrkvRowOperands::kCount;
  static constexpr std::size_t kCount = kModel + LrkvModelOperands::kCount;
};

// Then come TensorScoreNumbers and LrkvModelNumbers.
struct LrkvNumbers {
  enum : std::size_t { kQueryType, kOutputType, kRowsType, kBatch, kHeads, kQueries, kKeys, kRowsBeforeHeads, kScores };
  static constexpr std::size_t kModel = kScores + TensorScoreNumbers::kCount;
  static constexpr std::size_t kCount = kModel + LrkvModelNumbers::kCount;
};

// What an LrkvProblem points to beside the caller's arrays.
struct LrkvMemory {
  FullMemory full;
  LrkvRanks ranks;
  SharedLayout layout;
  std::vector<LrkvStoreProblem> stores;
  std::vector<std::byte*> pages;
};

// The rows of each sequence, to be stored by the kernel in pages of its own.
void readStores(Operands& operands, const LrkvRows& rows, Index keys, LrkvProblem* problem, LrkvMemory* memory) {
  Index pages = 0;
  for (const FullSequence& sequence : memory->full.sequences) pages += divideUp(sequence.keys, LrkvLayout::kPageRows);
  // The kernel's workspace must have a size.
  if (static_cast<double>(pages) * static_cast<double>(problem->layout.pageBytes()) > kMaxExtent) {
    operands.fail({Code::kMemory, "", "a call whose workspace does not fit"});
    return;
  }
  memory->pages.resize(static_cast<std::size_t>(pages));
  problem->pages = memory->pages.data();
  std::byte** next = problem->pages;
  Index item = 0;
  for (FullSequence& sequence : memory->full.sequences) {
    LrkvStoreProblem& store = memory->stores.emplace_back();
    store.model = problem->model;
    store.layout = problem->layout;
    store.rows = rowsFrom(rows, item++ * keys, problem->model, memory->ranks);
    store.count = sequence.keys;
    store.pages = next;
    // Addresses of the same memory, once as what is written and once as what is read.
    sequence.key.pages = reinterpret_cast<const void* const*>(next);
    next += divideUp(sequence.keys, LrkvLayout::kPageRows);
  }
  problem->stores = memory->stores.data();
}

}  // namespace

double operationsOf(const LrkvProblem& problem) {
  const LrkvLayout& layout = problem.layout;
  const FullProblem& full = problem.full;
  const double bases = static_cast<double>(layout.keyBaseDim + layout.valueBaseDim);
  const double latents = static_cast<double>(layout.keyStarts[layout.kvHeads] + layout.valueStarts[layout.kvHeads]);
  return operationsOf(full, static_cast<double>(full.heads) * bases +
                                static_cast<double>(full.heads / full.kvHeads) * latents);
}

// Attention over rows of a batch as the projections give them.
Napi::Value lrkv(const Napi::CallbackInfo& info) {
  Operands operands(info, LrkvOperands::kCount, LrkvNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  LrkvProblem problem;
  LrkvMemory memory;
  problem.model = readLrkvModel(operands, LrkvOperands::kModel, LrkvNumbers::kModel, &memory.ranks);
  problem.full = readLrkvHeads...
}

}  // namespace lowrank_attention
