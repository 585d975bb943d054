#include "binding/task.h"

#include <algorithm>
#include <new>
#include <string>

namespace lowrank_attention {

namespace {

// Below this many operations waking another thread costs more than it brings.
constexpr double kOperationsWorthThreads = 2e6;

const char* codeName(Code code) {
  switch (code) {
    case Code::kOk:
      return "";
    case Code::kArgument:
      return "ERR_ARGUMENT";
    case Code::kUnsupported:
      return "ERR_UNSUPPORTED";
    case Code::kDevice:
      return "ERR_DEVICE";
    case Code::kMemory:
      return "ERR_MEMORY";
    case Code::kAborted:
      return "ERR_ABORTED";
    case Code::kClosed:
      return "ERR_CLOSED";
  }
  return "ERR_ARGUMENT";
}

}  // namespace

Napi::Value statusValue(Napi::Env env, const Status& status) {
  if (status.ok()) return env.Undefined();
  return Napi::String::New(env, std::string(codeName(status.code)) + ':' + status.argument + ':' + status.detail);
}

void Task::run(Execution execution, Workspace& workspace) {
  execution.abortFlag = abortFlag_;
  const std::size_t bytes = workspaceBytes(execution.threads);
  execution.workspace = bytes == 0 ? nullptr : workspace.reserve(bytes);
  if (bytes != 0 && execution.workspace == nullptr) {
    status_ = {Code::kMemory, "", "a call whose workspace does not fit"};
    return;
  }
  std::int32_t failure = 0;
  execution.failure = &failure;
  if (!execution.aborted()) compute(execution);
  if (failure != 0) status_ = {static_cast<Code>(failure), "", "a call whose workspace does not fit"};
  if (execution.aborted()) status_ = {Code::kAborted, "signal", "the call was aborted"};
}

void Task::abort() { __atomic_store_n(abortFlag_, 1, __ATOMIC_RELAXED); }

State::State(Napi::Env env) : scheduler_([this](Job* job) { settle_.NonBlockingCall(job); }) {
  settle_ = Settle::New(env, "lowrank-attention", 0, 1);
  settle_.Unref(env);
  env.AddCleanupHook([this] { close(); });
}

State::~State() { close(); }

void State::close() {
  if (closed_) return;
  closed_ = true;
  // Threads must be gone before the memory they work on is. Promises of an environment that ends are not settled.
  scheduler_.stop([](Job* job) { delete job; });
  settle_.Release();
}

Napi::Value State::submit(Napi::Env env, std::unique_ptr<Task> task) {
  task->deferred_ = std::make_unique<Napi::Promise::Deferred>(env);
  const Napi::Value promise = task->deferred_->Promise();
  // The process stays alive while calls are in flight, and only then.
  scheduler_.submit(task.get());
  task.release();
  if (inFlight_++ == 0) settle_.Ref(env);
  return promise;
}

void State::settle(Napi::Env env, Napi::Function, std::nullptr_t*, Job* job) {
  const std::unique_ptr<Task> task(static_cast<Task*>(job));
  if (env == nullptr) return;
  State& state = State::of(env);
  if (--state.inFlight_ == 0) state.settle_.Unref(env);
  task->deferred_->Resolve(statusValue(env, task->status_));
}

const KernelSet* kernelsOf(const Napi::CallbackInfo& info, Status* status) {
  const std::string isa = info[CallArguments::kIsa].ToString();
  const KernelSet* kernels = selectKernels(isa.c_str());
  if (kernels == nullptr) *status = {Code::kDevice, "isa", "an instruction set this machine has not"};
  return kernels;
}

Napi::Value runTask(const Napi::CallbackInfo& info, std::unique_ptr<Task> task, double operations) {
  const Napi::Env env = info.Env();
  State& state = State::of(env);
  const Index wanted = info[CallArguments::kThreads].ToNumber().Int64Value();
  const Index most = state.scheduler().maxThreads();
  const Index worth = operations < kOperationsWorthThreads ? 1 : most;
  task->threads_ = std::max<Index>(1, std::min({wanted, most, worth}));
  const Napi::Value abort = info[CallArguments::kAbort];
  if (abort.IsTypedArray()) {
    Napi::Int32Array flag = abort.As<Napi::Int32Array>();
    if (flag.TypedArrayType() == napi_int32_array && flag.ElementLength() > 0) task->abortFlag_ = flag.Data();
  }
  if (!info[CallArguments::kAsync].ToBoolean()) {
    state.scheduler().runInline(*task);
    return statusValue(env, task->status_);
  }
  // Keeps the caller's arrays, and the abort flag, from being collected under the runner.
  Napi::Object keep = Napi::Object::New(env);
  keep.Set("operands", info[CallArguments::kOperands]);
  keep.Set("abort", abort);
  task->arguments_ = Napi::Persistent(keep);
  return state.submit(env, std::move(task));
}

}  // namespace lowrank_attention
