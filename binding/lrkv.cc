#include "core/lrkv.h"

#include "binding/lrkv_model.h"
#include "binding/ops.h"
#include "binding/qkv.h"
#include "binding/task.h"

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

// Attention over rows of a batch as the projections give them.
Napi::Value lrkv(const Napi::CallbackInfo& info) {
  Operands operands(info, LrkvOperands::kCount, LrkvNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  LrkvProblem problem;
  LrkvMemory memory;
  problem.model = readLrkvModel(operands, LrkvOperands::kModel, LrkvNumbers::kModel, &memory.ranks);
  FullProblem& full = problem.full;
  full.queryType = operands.dataType(LrkvNumbers::kQueryType, "q");
  full.outputType = operands.dataType(LrkvNumbers::kOutputType, "out");
  full.heads = operands.extent(LrkvNumbers::kHeads, "q", 1);
  const DataType rowsType = operands.dataType(LrkvNumbers::kRowsType, "keyBase");
  const Index batch = operands.extent(LrkvNumbers::kBatch, "q");
  const Index queries = operands.extent(LrkvNumbers::kQueries, "q");
  const Index keys = operands.extent(LrkvNumbers::kKeys, "keyBase");
  if (full.heads % problem.model.kvHeads != 0) operands.fail("q", "heads do not divide");
  // Nothing is wanted, or nothing that exists bounds the extents.
  if (!operands.ok() || batch == 0 || queries == 0) return statusValue(info.Env(), operands.status());

  // Rows are stored for this call only, so nothing is rounded to save memory.
  memory.layout = layoutOf(problem.model, DataType::kFloat32);
  setLayout(*memory.layout, &problem);
  const bool rowsBeforeHeads = operands.flag(LrkvNumbers::kRowsBeforeHeads);
  const auto rows = [&](std::size_t index, const char* name, DataType type, Index dim) {
    return readRows(operands, index, name, type, batch, full.heads, queries, dim, rowsBeforeHeads);
  };
  const BatchRows query = rows(LrkvOperands::kQuery, "q", full.queryType, full.headDim);
  const BatchRows output = rows(LrkvOperands::kOutput, "out", full.outputType, full.valueDim);
  const LrkvRows stored =
      readLrkvRows(operands, LrkvOperands::kRows, rowsType, batch, keys, problem.model, memory.ranks);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  for (Index b = 0; b < batch; ++b) {
    FullSequence& sequence = memory.full.sequences.emplace_back();
    sequence.queries = queries;
    sequence.queryRows = queries;
    sequence.keys = keys;
    sequence.query = headRows(query, full.queryType, b);
    sequence.output = headRows(output, full.outputType, b);
  }
  readSequences(operands, LrkvOperands::kScores, LrkvNumbers::kScores, full, memory.full.sequences);
  if (operands.ok()) readStores(operands, stored, keys, &problem, &memory);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());

  double operations = operationsOf(problem);
  for (const LrkvStoreProblem& store : memory.stores)
    operations += storeOperations(problem.model, memory.ranks, store.count);
  return runKernel(info, operands.status(), &KernelSet::lrkv, problem, operations, std::move(memory));
}

}  // namespace lowrank_attention
