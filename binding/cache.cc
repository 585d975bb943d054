#include "core/cache.h"

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

  // new KvCache(heads, headDim, valueDim, type) or, as a fork, new KvCache(other).
  explicit KvCache(const Napi::CallbackInfo& info) : Napi::ObjectWrap<KvCache>(info) {
    if (const KvCache* other = of(info.Env(), info[0])) {
      pages_ = std::make_unique<KvPages>(*other->pages_);
    } else {
      KvPages::Shape shape;
      shape.heads = info[0].ToNumber().Int64Value();
      shape.headDim = info[1].ToNumber().Int64Value();
      shape.valueDim = info[2].ToNumber().Int64Value();
      shape.type = static_cast<DataType>(info[3].ToNumber().Uint32Value());
      pages_ = std::make_unique<KvPages>(shape);
    }
    reportMemory(info.Env());
  }

  void Finalize(Napi::Env env) override {
    pages_.reset();
    reportMemory(env);
  }

  // The cache behind a value, or null if it is none of ours. The tag keeps foreign objects from being taken for one.
  static KvCache* of(Napi::Env env, const Napi::Value& value) {
    if (!value.IsObject()) return nullptr;
    const Napi::Function type = State::of(env).kvCache.Value();
    if (!value.As<Napi::Object>().InstanceOf(type)) return nullptr;
    return Napi::ObjectWrap<KvCache>::Unwrap(value.As<Napi::Object>());
  }

  const KvPages* pages() const { return pages_.get(); }

 private:
  // append(operands [key, value], numbers [type, count, rowsBeforeHeads])
  Napi::Value append(const Napi::CallbackInfo& info);
  Napi::Value truncate(const Napi::CallbackInfo& info) {
    pages_->truncate(maximum(0, info[0].ToNumber().Int64Value()));
    reportMemory(info.Env());
    return info.Env().Undefined();
  }
  Napi::Value fork(const Napi::CallbackInfo& info) { return State::of(info.Env()).kvCache.New({info.This()}); }
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    pages_->truncate(0);
    reportMemory(info.Env());
    return info.Env().Undefined();
  }
  Napi::Value bytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(pages_->bytes()));
  }
  Napi::Value sharedBytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(pages_->sharedBytes()));
  }

  // Tells V8 how much native memory hangs on this object. A shared page counts for every cache that holds it.
  void reportMemory(Napi::Env env) {
    const std::int64_t bytes = pages_ == nullptr ? 0 : static_cast<std::int64_t>(pages_->bytes());
    if (bytes != reported_) Napi::MemoryManagement::AdjustExternalMemory(env, bytes - reported_);
    reported_ = bytes;
  }

  std::unique_ptr<KvPages> pages_;
  std::int64_t reported_ = 0;
};

Napi::Value KvCache::append(const Napi::CallbackInfo& info) {
  Operands operands(info, 2, 3);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
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
  enum : std::size_t { kRowsBeforeHeads = FullNumbers::kCount, kOffset, kFirstSequence };
};

}  // namespace

Napi::Function kvCacheClass(Napi::Env env) {
  const Napi::Function type = KvCache::define(env);
  State::of(env).kvCache = Napi::Persistent(type);
  return type;
}

// Attention of queries over caches, one sequence an entry. After the shared numbers come the query rows of each.
Napi::Value cached(const Napi::CallbackInfo& info) {
  Operands operands(info, CachedOperands::kCount, CachedNumbers::kFirstSequence);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  FullProblem problem = readFullProblem(operands);
  problem.sinks = operands.optional<float>(CachedOperands::kSinks, "sinks", napi_float32_array, problem.heads);
  const bool rowsBeforeHeads = operands.flag(CachedNumbers::kRowsBeforeHeads);
  const double offset = operands.number(CachedNumbers::kOffset);
  const Index count = static_cast<Index>(operands.numberCount() - CachedNumbers::kFirstSequence);
  const auto list = [&](std::size_t index) { return Napi::Value(info.Env(), operands.value(index)); };
  const auto entry = [&](std::size_t index, Index item) {
    const Napi::Value values = list(index);
    return values.IsArray() ? values.As<Napi::Array>().Get(static_cast<std::uint32_t>(item)) : info.Env().Null();
  };

  FullMemory memory;
  memory.sequences.resize(static_cast<std::size_t>(count));
  struct Place {
    std::size_t key;
    std::size_t value;
  };
  std::vector<Place> places;
  for (Index s = 0; s < count && operands.ok(); ++s) {
    const KvCache* cache = KvCache::of(info.Env(), entry(CachedOperands::kCaches, s));
    if (cache == nullptr) {
      operands.fail("cache", "not a cache");
      break;
    }
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
    FullSequence& sequence = memory.sequences[static_cast<std::size_t>(s)];
    sequence.queries = operands.extent(CachedNumbers::kFirstSequence + static_cast<std::size_t>(s), "query");
    sequence.queryRows = sequence.queries;
    sequence.keys = pages.length();
    sequence.offset = offset == offset ? static_cast<Index>(offset) : sequence.keys - sequence.queries;
    const auto rows = [&](std::size_t index, const char* name, DataType type, Index dim) {
      void* data =
          operands.tensor(operands.arrayOf(entry(index, s)), name, type, {problem.heads, sequence.queries, dim});
      return HeadRows{data, rowsBeforeHeads ? dim : sequence.queries * dim,
                      rowsBeforeHeads ? problem.heads * dim : dim};
    };
    sequence.query = rows(CachedOperands::kQueries, "query", problem.queryType, shape.headDim);
    sequence.output = rows(CachedOperands::kOutputs, "out", problem.outputType, shape.valueDim);
    const Array lse = operands.arrayOf(entry(CachedOperands::kLses, s));
    if (lse.present) {
      sequence.lse =
          static_cast<float*>(operands.tensor(lse, "lse", DataType::kFloat32, {problem.heads, sequence.queries}));
    }
    sequence.mask = readMask(operands, operands.arrayOf(entry(CachedOperands::kMasks, s)), problem, 0, sequence);
    places.push_back({memory.pages.size(), 0});
    std::vector<const void*> valuePages;
    pages.snapshot(&memory.pages, &valuePages, &memory.owners);
    places.back().value = memory.pages.size();
    memory.pages.insert(memory.pages.end(), valuePages.begin(), valuePages.end());
    sequence.key = {nullptr, KvPages::kPageRows, pages.keyHeadStride(), shape.headDim};
    sequence.value = {nullptr, KvPages::kPageRows, pages.valueHeadStride(), shape.valueDim};
  }
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  // Addresses are final only now that the list of pages has stopped growing.
  for (std::size_t s = 0; s < places.size(); ++s) {
    memory.sequences[s].key.pages = memory.pages.data() + places[s].key;
    memory.sequences[s].value.pages = memory.pages.data() + places[s].value;
  }
  problem.sequences = memory.sequences.data();
  problem.sequenceCount = count;

  Status status;
  const KernelSet* kernels = kernelsOf(info, &status);
  if (kernels == nullptr) return statusValue(info.Env(), status);
  const double operations = operationsOf(problem);
  return runTask(info, std::make_unique<KernelTask<FullProblem, FullMemory>>(kernels->full, problem, std::move(memory)),
                 operations);
}

}  // namespace lowrank_attention
