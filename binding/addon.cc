// The addon's table of contents.
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

// An exception must not cross into Node: what the standard library throws becomes a Status. Napi::Error is JavaScript's
// own pending exception and goes on its way.
template <Napi::Value (*op)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  return withoutThrowing(info.Env(), [&] { return op(info); });
}

template <Napi::Value (*op)(const Napi::CallbackInfo&)>
void define(Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New(exports.Env(), guarded<op>, name));
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new State(env));
  define<information>(exports, "info");
  define<convert>(exports, "convert");
  define<read>(exports, "read");
  define<linalg>(exports, "linalg");
  define<linear>(exports, "linear");
  define<lowrank>(exports, "lowrank");
  define<lrkv>(exports, "lrkv");
  define<lrkvCached>(exports, "lrkvCached");
  define<matmul>(exports, "matmul");
  define<merge>(exports, "merge");
  define<nystrom>(exports, "nystrom");
  define<rotary>(exports, "rotary");
  define<full>(exports, "full");
  define<cached>(exports, "cached");
  define<linformer>(exports, "linformer");
  exports.Set("KvCache", kvCacheClass(env));
  exports.Set("LrkvCache", lrkvCacheClass(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(lowrank_attention, initialise)

}  // namespace lowrank_attention
