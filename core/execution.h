// What a kernel may use while it runs: threads, scratch memory, and the wish of the caller to stop.
#ifndef LOWRANK_ATTENTION_CORE_EXECUTION_H_
#define LOWRANK_ATTENTION_CORE_EXECUTION_H_

#include "core/types.h"

namespace lowrank_attention {

struct Execution {
  // `leave` is null for worker 0. For another it becomes non-zero when its thread is wanted elsewhere: the worker
  // should then return although work is left, before it takes more.
  using Body = void (*)(void* context, Index worker, const std::int32_t* leave);

  // Workers of this call, at least 1. A kernel indexes its scratch by worker.
  Index threads = 1;
  // Runs body(context, worker, leave) as worker 0 on the calling thread and, where threads have time for it, as some of
  // the other workers below `workers`, which is at most `threads`; returns when all that began are done. A worker may
  // come late, or several times in turn, or never: the body of worker 0 must not return before all work is taken.
  void (*parallel)(void* pool, Index workers, Body body, void* context) = nullptr;
  void* pool = nullptr;
  // Scratch of at least the bytes the kernel's workspace formula asked for, 64-byte aligned.
  std::byte* workspace = nullptr;
  // Non-zero when the caller has given up; null when the call cannot be aborted.
  const std::int32_t* abortFlag = nullptr;
  // Where a kernel leaves the code of what kept it from its result, kOk (0) until then.
  std::int32_t* failure = nullptr;

  // For what shows only while the kernel runs. The first failure counts; the result is then worth nothing.
  LA_METHOD void fail(Code code) const {
    std::int32_t none = 0;
    __atomic_compare_exchange_n(failure, &none, static_cast<std::int32_t>(code), false, __ATOMIC_RELAXED,
                                __ATOMIC_RELAXED);
  }
  LA_METHOD bool aborted() const { return abortFlag != nullptr && __atomic_load_n(abortFlag, __ATOMIC_RELAXED) != 0; }
};

// Units that one worker takes in a row.
struct Run {
  Index begin;
  Index end;
  const Index* handedOut;

  // What would be handed out now: a guess at what this worker takes when it is done with these.
  LA_METHOD Index upcoming() const { return __atomic_load_n(handedOut, __ATOMIC_RELAXED); }
};

// Runs task(worker, run) until every unit in [0, units) was in a run. Workers take runs in ascending order, of `most`
// units at most, and shorter ones towards the end, so that the threads finish together. Stops handing out units once
// the call is aborted.
template <class Task>
LA_INLINE void forEachRun(const Execution& execution, Index units, Index most, const Task& task) {
  struct Shared {
    const Execution& execution;
    const Task& task;
    Index units;
    Index most;
    Index next;
  } shared{execution, task, units, most, 0};
  const auto body = [](void* context, Index worker, const std::int32_t* leave) {
    Shared& s = *static_cast<Shared*>(context);
    while (leave == nullptr || __atomic_load_n(leave, __ATOMIC_RELAXED) == 0) {
      Index begin = __atomic_load_n(&s.next, __ATOMIC_RELAXED), end;
      do {
        if (begin >= s.units || s.execution.aborted()) return;
        end = begin + maximum(1, minimum(s.most, (s.units - begin) / (2 * s.execution.threads)));
      } while (!__atomic_compare_exchange_n(&s.next, &begin, end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
      s.task(worker, Run{begin, end, &s.next});
    }
  };
  const Index workers = minimum(execution.threads, units);
  if (workers <= 1) {
    body(&shared, 0, nullptr);
  } else {
    execution.parallel(execution.pool, workers, body, &shared);
  }
}

// Runs task(worker, unit) for every unit in [0, units), one at a time in ascending order: putting the longest units
// first keeps the threads finishing together.
template <class Task>
LA_INLINE void forEachUnit(const Execution& execution, Index units, const Task& task) {
  forEachRun(execution, units, 1, [&](Index worker, const Run& run) { task(worker, run.begin); });
}

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_EXECUTION_H_
