#include <sstream>

#include "binding/ops.h"
#include "binding/task.h"

namespace lowrank_attention {

// A JSON text: lib/ parses it, so that the objects belong to the caller's realm.
Napi::Value information(const Napi::CallbackInfo& info) {
  std::ostringstream json;
  json << "{\"version\":\"" LA_VERSION "\",\"compiler\":\"" LA_COMPILER "\",\"type\":\"" LA_BUILD_TYPE
          "\",\"sanitizers\":\"" LA_SANITIZERS "\",\"napi\":"
       << NAPI_VERSION << ",\"threads\":" << State::of(info.Env()).scheduler().maxThreads() << ",\"kernels\":[";
  bool first = true;
  for (Index i = 0; i < kKernelSetCount; ++i) {
    const KernelSet& set = *kKernelSets[i];
    for (const char* op :
         {"convert", "full", "linear", "linformer", "lowrank", "lrkv", "matmul", "merge", "nystrom", "rotary"}) {
      json << (first ? "" : ",") << "{\"op\":\"" << op << "\",\"device\":\"" << set.device << "\",\"isa\":\"" << set.isa
           << "\",\"supported\":" << (set.available() ? "true" : "false") << '}';
      first = false;
    }
  }
  json << "]}";
  return Napi::String::New(info.Env(), json.str());
}

}  // namespace lowrank_attention
