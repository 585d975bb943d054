// The addon's functions, one an op.
#ifndef LOWRANK_ATTENTION_BINDING_OPS_H_
#define LOWRANK_ATTENTION_BINDING_OPS_H_

#include <napi.h>

namespace lowrank_attention {

Napi::Value convert(const Napi::CallbackInfo& info);
Napi::Value full(const Napi::CallbackInfo& info);
Napi::Value cached(const Napi::CallbackInfo& info);
Napi::Value linformer(const Napi::CallbackInfo& info);
Napi::Value information(const Napi::CallbackInfo& info);
Napi::Value linalg(const Napi::CallbackInfo& info);
Napi::Value linear(const Napi::CallbackInfo& info);
Napi::Value lowrank(const Napi::CallbackInfo& info);
Napi::Value lrkv(const Napi::CallbackInfo& info);
Napi::Value lrkvCached(const Napi::CallbackInfo& info);
Napi::Value matmul(const Napi::CallbackInfo& info);
Napi::Value merge(const Napi::CallbackInfo& info);
Napi::Value nystrom(const Napi::CallbackInfo& info);
Napi::Value read(const Napi::CallbackInfo& info);
Napi::Value rotary(const Napi::CallbackInfo& info);

// The classes of cache handles.
Napi::Function kvCacheClass(Napi::Env env);
Napi::Function lrkvCacheClass(Napi::Env env);

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_OPS_H_
