#include "core/cache.h"

#include "binding/cached_problem.h"
#include "binding/ops.h"

namespace lowrank_attention {

namespace {

struct KvKind {
  using Memory = KvPages;
  static constexpr const char* kName = "KvCache";
  static constexpr napi_type_tag kTag{0x6c6f7772616e6b2d, 0x4b76436163686521};
  static constexpr Napi::FunctionReference State::*kClass = &State::kvCache;
  static constexpr std::size_t kOperands = 2;
  static constexpr std::size_t kNumbers = 3;

  static std::unique_ptr<KvPages> create(const Napi::CallbackInfo& info);
  static Status append(Operands& operands, KvPages* pages);
};

// new KvCache(heads, headDim, valueDim, type)
std::unique_ptr<KvPages> KvKind::create(const Napi::CallbackInfo& info) {
  double numbers[4];
  for (std::size_t i = 0; i < 4; ++i) {
    if (!info[i].IsNumber()) return nullptr;
    numbers[i] = info[i].As<Napi::Number>().DoubleValue();
  }
  const auto [heads, headDim, valueDim, type] = numbers;
  const auto fits = [&](double extent) { return extent >= 1 && extent <= kMaxRow; };
  if (!fits(heads) || !fits(headDim) || !fits(valueDim) || !(heads * (headDim + valueDim) <= kMaxRow)) return nullptr;
  if (type != 0 && type != 1 && type != 2) return nullptr;
  return std::make_unique<KvPages>(KvPages::Shape{static_cast<Index>(heads), static_cast<Index>(headDim),
                                                  static_cast<Index>(valueDim), static_cast<DataType>(type)});
}

// append(operands [key, value], numbers [type, count, rowsBeforeHeads])
Status KvKind::append(Operands& operands, KvPages* pages) {
  const KvPages::Shape& shape = pages->shape();
  const DataType type = operands.dataType(0, "key");
  const Index count = operands.extent(1, "key");
  const bool rowsBeforeHeads = operands.flag(2);
  const auto source = [&](std::size_t index, const char* name, Index dim) {
    void* data = operands.tensor(operands.array(index), name, type, {shape.heads, count, dim});
    const Index headStride = rowsBeforeHeads ? dim : count * dim;
    return KvPages::Source{type, HeadRows{data, headStride, rowsBeforeHeads ? shape.heads * dim : dim}};
  };
  const KvPages::Source key = source(0, "key", shape.headDim);
  const KvPages::Source value = source(1, "value", shape.valueDim);
  if (!operands.ok()) return operands.status();
  // The rows are checked, so only memory can be wanting.
  const bool done = pages->append(key, value, count, *selectKernels(""));
  return done ? Status() : Status{Code::kMemory, "key", "rows whose pages do not fit"};
}

}  // namespace

Napi::Function kvCacheClass(Napi::Env env) { return CacheHandle<KvKind>::define(env); }

// Attention of queries over caches, one sequence an entry.
Napi::Value cached(const Napi::CallbackInfo& info) {
  Operands operands(info, CachedOperands::kCount, CachedNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  FullProblem problem = readCachedCall(operands);
  FullMemory memory;
  const auto fit = [&](const KvPages& pages) {
    const KvPages::Shape& shape = pages.shape();
    if (memory.sequences.empty()) {
      problem.keyType = shape.type;
      problem.kvHeads = shape.heads;
      problem.headDim = shape.headDim;
      problem.valueDim = shape.valueDim;
      if (problem.heads % shape.heads != 0) operands.fail("query", "heads do not divide");
    } else if (shape.type != problem.keyType || shape.heads != problem.kvHeads || shape.headDim != problem.headDim ||
               shape.valueDim != problem.valueDim) {
      operands.fail("cache", "shapes differ");
    }
  };
  if (!readCachedSequences<KvKind>(info, operands, CachedNumbers::kCount, &problem, &memory, fit))
    return statusValue(info.Env(), operands.status());
  return runKernel(info, operands.status(), &KernelSet::full, problem, operationsOf(problem), std::move(memory));
}

}  // namespace lowrank_attention
