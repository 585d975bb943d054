// The addon's table of contents.
#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new State(env));
  exports.Set("info", Napi::Function::New(env, information, "info"));
  exports.Set("convert", Napi::Function::New(env, convert, "convert"));
  exports.Set("read", Napi::Function::New(env, read, "read"));
  exports.Set("matmul", Napi::Function::New(env, matmul, "matmul"));
  exports.Set("merge", Napi::Function::New(env, merge, "merge"));
  exports.Set("full", Napi::Function::New(env, full, "full"));
  exports.Set("cached", Napi::Function::New(env, cached, "cached"));
  exports.Set("KvCache", kvCacheClass(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(lowrank_attention, initialise)

}  // namespace lowrank_attention
