// The handle of a cache, whatever its pages hold. Its methods run on the environment's own thread; calls in flight hold
// their pages themselves.
#ifndef LOWRANK_ATTENTION_BINDING_CACHE_HANDLE_H_
#define LOWRANK_ATTENTION_BINDING_CACHE_HANDLE_H_

#include <napi.h>

#include <memory>

#include "binding/operands.h"
#include "binding/task.h"

namespace lowrank_attention {

constexpr Status kDisposedCache{Code::kClosed, "cache", "a disposed one"};

// Of a kind of cache:
//   Memory                    what the handle owns: core/cache.h, core/lrkv_cache.h
//   kName, kTag               of the class
//   kClass                    where State keeps it
//   create(info)              the memory that the constructor's arguments say, or null where they say none
//   append(operands, memory)  appends rows, and says how that went
//   kOperands, kNumbers       how many of both `append` takes
template <class Kind>
class CacheHandle final : public Napi::ObjectWrap<CacheHandle<Kind>> {
 public:
  using Memory = typename Kind::Memory;

  static Napi::Function define(Napi::Env env) {
    using Base = Napi::ObjectWrap<CacheHandle>;
    const Napi::Function type =
        Base::DefineClass(env, Kind::kName,
                          {Base::template InstanceMethod<&CacheHandle::append>("append"),
                           Base::template InstanceMethod<&CacheHandle::truncate>("truncate"),
                           Base::template InstanceMethod<&CacheHandle::fork>("fork"),
                           Base::template InstanceMethod<&CacheHandle::dispose>("dispose"),
                           Base::template InstanceMethod<&CacheHandle::bytes>("bytes"),
                           Base::template InstanceMethod<&CacheHandle::sharedBytes>("sharedBytes")});
    State::of(env).*Kind::kClass = Napi::Persistent(type);
    return type;
  }

  // new Cache(…shape) or, as a fork, new Cache(other). What is neither, or a fork of a disposed cache, makes a disposed
  // one.
  // No call here may throw: in an environment that is ending the object could not be parted any more from a handle
  // that was not made, and its finalizer would free that handle again.
  explicit CacheHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CacheHandle>(info) {
    napi_type_tag_object(info.Env(), info.This(), &Kind::kTag);
    try {
      if (const CacheHandle* other = of(info.Env(), info[0])) {
        if (other->memory_ != nullptr) memory_ = std::make_unique<Memory>(*other->memory_);
      } else {
        memory_ = Kind::create(info);
      }
    } catch (const std::bad_alloc&) {
      memory_.reset();
    }
    reportMemory(info.Env());
  }

  void Finalize(Napi::Env env) override {
    memory_.reset();
    reportMemory(env);
  }

  // The cache behind a value, or null if it is none of this kind. The tag keeps foreign objects from being taken for
  // one.
  static CacheHandle* of(napi_env env, napi_value value) {
    napi_valuetype type = napi_undefined;
    bool tagged = false;
    void* cache = nullptr;
    if (value == nullptr || napi_typeof(env, value, &type) != napi_ok || type != napi_object ||
        napi_check_object_type_tag(env, value, &Kind::kTag, &tagged) != napi_ok || !tagged ||
        napi_unwrap(env, value, &cache) != napi_ok)
      return nullptr;
    return static_cast<CacheHandle*>(cache);
  }

  // Null once disposed.
  const Memory* memory() const { return memory_.get(); }

 private:
  // append(operands, numbers)
  Napi::Value append(const Napi::CallbackInfo& info) {
    return withoutThrowing(info.Env(), [&]() -> Napi::Value {
      Operands operands(info, Kind::kOperands, Kind::kNumbers);
      if (!operands.ok()) return statusValue(info.Env(), operands.status());
      if (memory_ == nullptr) return statusValue(info.Env(), kDisposedCache);
      const Status status = Kind::append(operands, memory_.get());
      reportMemory(info.Env());
      return statusValue(info.Env(), status);
    });
  }
  Napi::Value truncate(const Napi::CallbackInfo& info) {
    const Index length = info[0].IsNumber() ? info[0].template As<Napi::Number>().Int64Value() : 0;
    if (memory_ != nullptr) memory_->truncate(maximum(0, length));
    reportMemory(info.Env());
    return info.Env().Undefined();
  }
  Napi::Value fork(const Napi::CallbackInfo& info) { return (State::of(info.Env()).*Kind::kClass).New({info.This()}); }
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    memory_.reset();
    reportMemory(info.Env());
    return info.Env().Undefined();
  }
  Napi::Value bytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), memory_ == nullptr ? 0 : static_cast<double>(memory_->pages().bytes()));
  }
  Napi::Value sharedBytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), memory_ == nullptr ? 0 : static_cast<double>(memory_->pages().sharedBytes()));
  }

  // Tells V8 how much native memory hangs on this object. A shared page counts for every cache that holds it.
  void reportMemory(Napi::Env env) {
    const std::int64_t bytes = memory_ == nullptr ? 0 : static_cast<std::int64_t>(memory_->pages().bytes());
    if (bytes != reported_) Napi::MemoryManagement::AdjustExternalMemory(env, bytes - reported_);
    reported_ = bytes;
  }

  std::unique_ptr<Memory> memory_;
  std::int64_t reported_ = 0;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_CACHE_HANDLE_H_
