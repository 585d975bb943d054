// One native call: a Problem, the kernel that solves it, and what must stay alive meanwhile. Sync calls run it on the
// spot, async calls on a runner; either way the outcome is a Status.
#ifndef LOWRANK_ATTENTION_BINDING_TASK_H_
#define LOWRANK_ATTENTION_BINDING_TASK_H_

#include <napi.h>

#include <memory>
#include <system_error>

#include "binding/scheduler.h"
#include "core/kernel.h"

namespace lowrank_attention {

class Task : public Job {
 public:
  Index threads() const final { return threads_; }
  void run(Execution execution, Workspace& workspace) final;
  void abort() final;

 protected:
  virtual std::size_t workspaceBytes(Index threads) const = 0;
  virtual void compute(const Execution& execution) = 0;

 private:
  friend class State;
  friend Napi::Value runTask(const Napi::CallbackInfo& info, std::unique_ptr<Task> task, double operations);

  Index threads_ = 1;
  std::int32_t ownAbortFlag_ = 0;
  std::int32_t* abortFlag_ = &ownAbortFlag_;
  Status status_;
  Napi::ObjectReference arguments_;
  std::unique_ptr<Napi::Promise::Deferred> deferred_;
};

// Of a problem that points to the caller's arrays only.
struct NoMemory {};

// A task that runs one kernel on one problem. `Memory` owns what the problem points to beside the caller's arrays.
template <class Problem, class Memory>
class KernelTask final : public Task {
 public:
  KernelTask(const Kernel<Problem>& kernel, Problem problem, Memory memory)
      : kernel_(kernel), problem_(problem), memory_(std::move(memory)) {}

 protected:
  std::size_t workspaceBytes(Index threads) const override { return kernel_.workspaceBytes(problem_, threads); }
  void compute(const Execution& execution) override { kernel_.run(problem_, execution); }

 private:
  Kernel<Problem> kernel_;
  Problem problem_;
  Memory memory_;
};

// What one environment keeps: its scheduler and the way back to its event loop.
class State {
 public:
  explicit State(Napi::Env env);
  ~State();

  static State& of(Napi::Env env) { return *env.GetInstanceData<State>(); }

  Scheduler& scheduler() { return scheduler_; }
  // Promise of the task's outcome.
  Napi::Value submit(Napi::Env env, std::unique_ptr<Task> task);

  Napi::FunctionReference kvCache;
  Napi::FunctionReference lrkvCache;

 private:
  static void settle(Napi::Env env, Napi::Function, std::nullptr_t*, Job* job);
  using Settle = Napi::TypedThreadSafeFunction<std::nullptr_t, Job, State::settle>;
  void close();

  Settle settle_;
  Index inFlight_ = 0;
  bool closed_ = false;
  Scheduler scheduler_;
};

// Arguments that every op takes, in this order: operands, numbers, then these.
struct CallArguments {
  enum : std::size_t { kOperands, kNumbers, kThreads, kIsa, kAsync, kAbort };
};

// Runs or submits a task with the call's threads, abort flag and mode. `operations` is the work of the call in
// floating-point operations: a short one stays on one thread. Returns undefined, the text of a Status, or a promise
// of either.
Napi::Value runTask(const Napi::CallbackInfo& info, std::unique_ptr<Task> task, double operations);

// The kernels the call asks for, or null with the Status of that.
const KernelSet* kernelsOf(const Napi::CallbackInfo& info, Status* status);

// Calls body(), and turns what the standard library throws into the text of a Status.
template <class Body>
Napi::Value withoutThrowing(Napi::Env env, const Body& body);

// `code:argument:detail`, or undefined when all is well. Errors are built by lib/, in the caller's realm.
Napi::Value statusValue(Napi::Env env, const Status& status);

// How a call ends once its operands are read: `problem` runs on the kernel that the call asks for, unless its `status`
// is a failure. `memory` owns what the problem points to beside the caller's arrays. Work is as in runTask.
template <class Problem, class Memory = NoMemory>
Napi::Value runKernel(const Napi::CallbackInfo& info, Status status, Kernel<Problem> KernelSet::*kernel,
                      const Problem& problem, double operations, Memory memory = {}) {
  const KernelSet* kernels = status.ok() ? kernelsOf(info, &status) : nullptr;
  if (kernels == nullptr) return statusValue(info.Env(), status);
  return runTask(info, std::make_unique<KernelTask<Problem, Memory>>(kernels->*kernel, problem, std::move(memory)),
                 operations);
}

template <class Body>
Napi::Value withoutThrowing(Napi::Env env, const Body& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::system_error&) {
    return statusValue(env, {Code::kMemory, "threads", "a thread that could not be started"});
  } catch (const std::exception&) {
    return statusValue(env, {Code::kMemory, "", "a call whose lists do not fit"});
  }
}

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_TASK_H_
