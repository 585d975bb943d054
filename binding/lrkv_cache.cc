#include "core/lrkv_cache.h"

#include "binding/cached_problem.h"
#include "binding/lrkv_model.h"
#include "binding/ops.h"

namespace lowrank_attention {

namespace {

// append(operands [keyBase, keyLatent, valueBase, valueLatent, …model], numbers [type, count, …model])
struct AppendNumbers {
  enum : std::size_t { kType, kRowCount, kModel };
};

struct LrkvKind {
  using Memory = LrkvPages;
  static constexpr const char* kName = "LrkvCache";
  static constexpr napi_type_tag kTag{0x6c6f7772616e6b2d, 0x4c726b7643616368};
  static constexpr Napi::FunctionReference State::*kClass = &State::lrkvCache;
  static constexpr std::size_t kOperands = LrkvRowOperands::kCount + LrkvModelOperands::kCount;
  static constexpr std::size_t kNumbers = AppendNumbers::kModel + LrkvModelNumbers::kCount;

  static std::unique_ptr<LrkvPages> create(const Napi::CallbackInfo& info);
  static Status append(Operands& operands, LrkvPages* pages);
};

// The widths of all heads, or none where they are not what a layout may have.
std::vector<Index> widthsOf(const Array& array, Index heads) {
  std::vector<Index> widths;
  if (!array.present || array.type != napi_int32_array ||
      array.bytes / sizeof(std::int32_t) < static_cast<std::size_t>(heads))
    return widths;
  const auto* given = static_cast<const std::int32_t*>(array.data);
  for (Index head = 0; head < heads; ++head) {
    if (given[head] < 0 || given[head] % kRankStep != 0) return {};
    widths.push_back(given[head]);
  }
  return widths;
}

// new LrkvCache(heads, type, keyBaseDim, valueBaseDim, scaled, keyWidths, valueWidths)
std::unique_ptr<LrkvPages> LrkvKind::create(const Napi::CallbackInfo& info) {
  double numbers[5];
  for (std::size_t i = 0; i < 5; ++i) {
    if (!info[i].IsNumber()) return nullptr;
    numbers[i] = info[i].As<Napi::Number>().DoubleValue();
  }
  const auto [heads, type, keyBaseDim, valueBaseDim, scaled] = numbers;
  if (!(heads >= 1 && heads <= kMaxRow) || !(keyBaseDim >= 0 && keyBaseDim <= kMaxRow) ||
      !(valueBaseDim >= 0 && valueBaseDim <= kMaxRow) || (type != 0 && type != 1 && type != 2))
    return nullptr;
  LrkvLayout layout;
  layout.type = static_cast<DataType>(type);
  layout.kvHeads = static_cast<Index>(heads);
  layout.keyBaseDim = static_cast<Index>(keyBaseDim);
  layout.valueBaseDim = static_cast<Index>(valueBaseDim);
  layout.scaled = scaled != 0;
  const std::vector<Index> keyWidths = widthsOf(Operands::arrayOf(info.Env(), info[5]), layout.kvHeads);
  const std::vector<Index> valueWidths = widthsOf(Operands::arrayOf(info.Env(), info[6]), layout.kvHeads);
  if (keyWidths.empty() || valueWidths.empty()) return nullptr;
  SharedLayout shared = shareLayout(layout, keyWidths, valueWidths);
  // Widths are below 2^31 each and arrays of them exist, so this sum has not overflowed.
  const Index elements = shared->rowElements();
  if (elements < 1 || elements + layout.kvHeads > static_cast<Index>(kMaxRow)) return nullptr;
  return std::make_unique<LrkvPages>(std::move(shared));
}

Status LrkvKind::append(Operands& operands, LrkvPages* pages) {
  LrkvRanks ranks;
  const LrkvModel model = readLrkvModel(operands, LrkvRowOperands::kCount, AppendNumbers::kModel, &ranks);
  const DataType type = operands.dataType(AppendNumbers::kType, "keyBase");
  const Index count = operands.extent(AppendNumbers::kRowCount, "keyBase");
  if (!operands.ok()) return operands.status();
  if (!stores(pages->layout(), model)) return {Code::kArgument, "cache", "one of another model"};
  const LrkvRows rows = readLrkvRows(operands, 0, type, 1, count, model, ranks);
  if (!operands.ok()) return operands.status();
  const Code code = pages->append(model, rows, count, *selectKernels(""));
  return code == Code::kOk ? Status() : Status{code, "keyBase", "rows whose pages do not fit"};
}

// After CachedNumbers come LrkvModelNumbers, after CachedOperands LrkvModelOperands.
constexpr std::size_t kOperands = CachedOperands::kCount + LrkvModelOperands::kCount;
constexpr std::size_t kFirstSequence = CachedNumbers::kCount + LrkvModelNumbers::kCount;

// What an LrkvProblem on caches points to beside the caller's arrays.
struct LrkvCachedMemory {
  FullMemory full;
  LrkvRanks ranks;
};

}  // namespace

Napi::Function lrkvCacheClass(Napi::Env env) { return CacheHandle<LrkvKind>::define(env); }

// Attention of queries over caches of one model, one sequence an entry.
Napi::Value lrkvCached(const Napi::CallbackInfo& info) {
  Operands operands(info, kOperands, kFirstSequence);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  LrkvProblem problem;
  LrkvCachedMemory memory;
  problem.model = readLrkvModel(operands, CachedOperands::kCount, CachedNumbers::kCount, &memory.ranks);
  problem.full = readCachedCall(operands);
  if (problem.full.heads % problem.model.kvHeads != 0) operands.fail("query", "heads do not divide");
  const auto fit = [&](const LrkvPages& pages) {
    const bool first = memory.full.sequences.empty();
    if (!stores(pages.layout(), problem.model)) {
      operands.fail("cache", "one of another model");
    } else if (!first && pages.layout().type != problem.layout.type) {
      operands.fail("cache", "types differ");
    } else if (first) {
      setLayout(pages.layout(), &problem);
    }
  };
  if (!operands.ok() ||
      !readCachedSequences<LrkvKind>(info, operands, kFirstSequence, &problem.full, &memory.full, fit))
    return statusValue(info.Env(), operands.status());
  return runKernel(info, operands.status(), &KernelSet::lrkv, problem, operationsOf(problem), std::move(memory));
}

}  // namespace lowrank_attention
