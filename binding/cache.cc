#include "core/cache.h"

#include <optional>

#include "binding/full_problem.h"
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

// The handle of a cache. Its methods run on the environment's own thread; calls in flight hold their pages themselves.
class KvCache final : public Napi::ObjectWrap<KvCache> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "KvCache",
        {InstanceMethod<&KvCache::append>("append"), InstanceMethod<&KvCache::truncate>("truncate"),
         InstanceMethod<&KvCache::fork>("fork"), InstanceMethod<&KvCache::dispose>("dispose"),
         InstanceMethod<&KvCache::bytes>("bytes"), InstanceMethod<&KvCache::sharedBytes>("sharedBytes")});
  }

  // new KvCache(heads, headDim, valueDim, type) or, as a fork, new KvCache(other). What is neither, or a fork of a
  // disposed cache, makes a disposed one.
  // No call here may throw: in an environment that is ending the object could not be parted any more from a handle
  // that was not made, and its finalizer would free that handle again.
  explicit KvCache(const Napi::CallbackInfo& info) : Napi::ObjectWrap<KvCache>(info) {
    napi_type_tag_object(info.Env(), info.This(), &kTag);
    if (const KvCache* other = of(info[0])) {
      if (other->pages_ != nullptr) pages_ = std::make_unique<KvPages>(*other->pages_);
    } else if (const auto shape = shapeOf(info)) {
      pages_ = std::make_unique<KvPages>(*shape);
    }
    reportMemory(info.Env());
  }

  void Finalize(Napi::Env env) override {
    pages_.reset();
    reportMemory(env);
  }

  // The cache behind a value, or null if it is none of ours. The tag keeps foreign objects from being taken for one.
  static KvCache* of(const Napi::Value& value) {
    bool tagged = false;
    void* cache = nullptr;
    if (!value.IsObject() || napi_check_object_type_tag(value.Env(), value, &kTag, &tagged) != napi_ok || !tagged ||
        napi_unwrap(value.Env(), value, &cache) != napi_ok)
      return nullptr;
    return static_cast<KvCache*>(cache);
  }

  // Null once disposed.
  const KvPages* pages() const { return pages_.get(); }

 private:
  // append(operands [key, value], numbers [type, count, rowsBeforeHeads])
  Napi::Value append(const Napi::CallbackInfo& info);
  Napi::Value truncate(const Napi::CallbackInfo& info) {
    const Index length = info[0].IsNumber() ? info[0].As<Napi::Number>().Int64Value() : 0;
    if (pages_ != nullptr) pages_->truncate(maximum(0, length));
    reportMemory(info.Env());
    return info.Env().Undefined();
  }
  Napi::Value fork(const Napi::CallbackInfo& info) { return State::of(info.Env()).kvCache.New({info.This()}); }
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    pages_.reset();
    reportMemory(info.Env());
    return info.Env().Undefined();
  }
  Napi::Value bytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), pages_ == nullptr ? 0 : static_cast<double>(pages_->bytes()));
  }
  Napi::Value sharedBytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), pages_ == nullptr ? 0 : static_cast<double>(pages_->sharedBytes()));
  }

  // The shape that the constructor's arguments say, if a page of it has a size.
  static std::optional<KvPages::Shape> shapeOf(const Napi::CallbackInfo& info) {
    constexpr double most = 2147483647;
    double numbers[4];
    for (std::size_t i = 0; i < 4; ++i) {
      if (!info[i].IsNumber()) return std::nullopt;
      numbers[i] = info[i].As<Napi::Number>().DoubleValue();
    }
    const auto [heads, headDim, valueDim, type] = numbers;
    const auto fits = [&](double extent) { return extent >= 1 && extent <= most; };
    if (!fits(heads) || !fits(headDim) || !fits(valueDim) || !(heads * (headDim + valueDim) <= most))
      return std::nullopt;
    if (type != 0 && type != 1 && type != 2) return std::nullopt;
    return KvPages::Shape{static_cast<Index>(heads), static_cast<Index>(headDim), static_cast<Index>(valueDim),
                          static_cast<DataType>(type)};
  }

  // Tells V8 how much native memory hangs on this object. A shared page counts for every cache that holds it.
  void reportMemory(Napi::Env env) {
    const std::int64_t bytes = pages_ == nullptr ? 0 : static_cast<std::int64_t>(pages_->bytes());
    if (bytes != reported_) Napi::MemoryManagement::AdjustExternalMemory(env, bytes - reported_);
    reported_ = bytes;
  }

  static constexpr napi_type_tag kTag{0x6c6f7772616e6b2d, 0x4b76436163686521};

  std::unique_ptr<KvPages> pages_;
  std::int64_t reported_ = 0;
};

Napi::Value KvCache::append(const Napi::CallbackInfo& info) {
  Operands operands(info, 2, 3);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  if (pages_ == nullptr) return statusValue(info.Env(), {Code::kClosed, "cache", "a disposed one"});
  const KvPages::Shape& shape = pages_->shape();
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
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  // The rows are checked, so only memory can be wanting.
  const bool done = pages_->append(key, value, count, *selectKernels(""));
  reportMemory(info.Env());
  return statusValue(info.Env(), done ? Status() : Status{Code::kMemory, "key", "rows whose pages do not fit"});
}

struct CachedOperands {
  // Arrays with one entry a sequence; lses and masks may be null. A single call has one sequence.
  enum : std::size_t { kCaches, kQueries, kOutputs, kLses, kMasks, kSinks, kCount };
};

struct CachedNumbers {
  enum : std::size_t { kQueryType, kOutputType, kHeads, kRowsBeforeHeads, kScores };
  static constexpr std::size_t kFirstSequence = kScores + ScoreNumbers::kCount;
};

}  // namespace

Napi::Function kvCacheClass(Napi::Env env) {
  const Napi::Function type = KvCache::define(env);
  State::of(env).kvCache = Napi::Persistent(type);
  return type;
}

// Attention of queries over caches, one sequence an entry. After the scores' numbers come the query rows of each.
Napi::Value cached(const Napi::CallbackInfo& info) {
  Operands operands(info, CachedOperands::kCount, CachedNumbers::kFirstSequence);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  FullProblem problem;
  problem.queryType = operands.dataType(CachedNumbers::kQueryType, "query");
  problem.outputType = operands.dataType(CachedNumbers::kOutputType, "out");
  problem.heads = operands.extent(CachedNumbers::kHeads, "query", 1);
  readScores(operands, CachedNumbers::kScores, problem);
  problem.sinks = operands.optional<float>(CachedOperands::kSinks, "sinks", napi_float32_array, problem.heads);
  const bool rowsBeforeHeads = operands.flag(CachedNumbers::kRowsBeforeHeads);
  const Index count = static_cast<Index>(operands.numberCount() - CachedNumbers::kFirstSequence);

  FullMemory memory;
  struct Place {
    std::size_t key;
    std::size_t value;
  };
  std::vector<Place> places;
  Index rows = 0;
  for (std::size_t s = 0; s < static_cast<std::size_t>(count) && operands.ok(); ++s) {
    const KvCache* cache = KvCache::of(Napi::Value(info.Env(), operands.value(CachedOperands::kCaches, s)));
    if (cache == nullptr) {
      operands.fail("cache", "not a cache");
      break;
    }
    if (cache->pages() == nullptr) return statusValue(info.Env(), {Code::kClosed, "cache", "a disposed one"});
    const KvPages& pages = *cache->pages();
    const KvPages::Shape& shape = pages.shape();
    if (s == 0) {
      problem.keyType = shape.type;
      problem.kvHeads = shape.heads;
      problem.headDim = shape.headDim;
      problem.valueDim = shape.valueDim;
      if (problem.heads % shape.heads != 0) operands.fail("query", "heads do not divide");
    } else if (shape.type != problem.keyType || shape.heads != problem.kvHeads || shape.headDim != problem.headDim ||
               shape.valueDim != problem.valueDim) {
      operands.fail("cache", "shapes differ");
    }
    FullSequence& sequence = memory.sequences.emplace_back();
    sequence.queries = operands.extent(CachedNumbers::kFirstSequence + s, "query");
    sequence.queryRows = sequence.queries;
    sequence.keys = pages.length();
    sequence.offset = readOffset(operands, CachedNumbers::kScores + ScoreNumbers::kOffset, sequence);
    rows = maximum(rows, sequence.queries);
    const auto headRows = [&](std::size_t index, const char* name, DataType type, Index dim) {
      void* data = operands.tensor(operands.entry(index, s), name, type, {problem.heads, sequence.queries, dim});
      return HeadRows{data, rowsBeforeHeads ? dim : sequence.queries * dim,
                      rowsBeforeHeads ? problem.heads * dim : dim};
    };
    sequence.query = headRows(CachedOperands::kQueries, "query", problem.queryType, shape.headDim);
    sequence.output = headRows(CachedOperands::kOutputs, "out", problem.outputType, shape.valueDim);
    const Array lse = operands.entry(CachedOperands::kLses, s);
    if (lse.present) {
      sequence.lse =
          static_cast<float*>(operands.tensor(lse, "lse", DataType::kFloat32, {problem.heads, sequence.queries}));
    }
    sequence.mask = readMask(operands, operands.entry(CachedOperands::kMasks, s), problem, 0, 0, sequence);
    places.push_back({memory.pages.size(), 0});
    std::vector<const void*> valuePages;
    pages.snapshot(&memory.pages, &valuePages, &memory.owners);
    places.back().value = memory.pages.size();
    memory.pages.insert(memory.pages.end(), valuePages.begin(), valuePages.end());
    sequence.key = {nullptr, KvPages::kPageRows, pages.keyHeadStride(), shape.headDim};
    sequence.value = {nullptr, KvPages::kPageRows, pages.valueHeadStride(), shape.valueDim};
  }
  // Without rows the number of heads is not bounded by memory that exists.
  if (!operands.ok() || rows == 0) return statusValue(info.Env(), operands.status());
  // Addresses are final only now that the list of pages has stopped growing.
  for (std::size_t s = 0; s < places.size(); ++s) {
    memory.sequences[s].key.pages = memory.pages.data() + places[s].key;
    memory.sequences[s].value.pages = memory.pages.data() + places[s].value;
  }
  problem.sequences = memory.sequences.data();
  problem.sequenceCount = count;

  return runKernel(info, operands.status(), &KernelSet::full, problem, operationsOf(problem), std::move(memory));
}

}  // namespace lowrank_attention
