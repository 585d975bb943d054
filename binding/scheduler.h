// Runs tasks of one environment off its event loop.
//
// Why not libuv's pool: it has four threads that file and DNS calls share, and a queue of long attention calls would
// stop those for seconds. The runners here are started when first needed, at most one a core, and a task that wants
// several threads gets the environment's pthreadpool, one such task at a time, in order of arrival. Tasks of one
// thread run beside it.
#ifndef LOWRANK_ATTENTION_BINDING_SCHEDULER_H_
#define LOWRANK_ATTENTION_BINDING_SCHEDULER_H_

#include <pthreadpool.h>

#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/execution.h"

namespace lowrank_attention {

// Scratch memory that is kept between calls, so that a short call does not pay for page faults.
class Workspace {
 public:
  // Null if there is no memory.
  std::byte* reserve(std::size_t bytes);
  // Gives back what is larger than a workspace worth keeping.
  void trim();

 private:
  static constexpr std::size_t kKeptBytes = std::size_t{4} << 20;
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t bytes_ = 0;
};

// A piece of work for the scheduler. Lives until `finished` has been called with it.
class Job {
 public:
  virtual ~Job() = default;
  // Threads this job can make use of.
  virtual Index threads() const = 0;
  // Called once, on a runner. `execution` has threads and pool set.
  virtual void run(Execution execution, Workspace& workspace) = 0;
  // Asks a running job to return soon. Called from another thread.
  virtual void abort() = 0;
};

class Scheduler {
 public:
  // `finished` is called on a runner after each job has run.
  explicit Scheduler(std::function<void(Job*)> finished);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Threads that a call may use at most: the cores this process may run on.
  Index maxThreads() const { return maxThreads_; }

  void submit(Job* job);
  // Runs the job now on the calling thread. While another job holds the pool it runs on one thread: kernels give the
  // same bits on any number.
  void runInline(Job& job);
  // Aborts running jobs, waits for them, and drops the waiting ones into `dropped`.
  void stop(const std::function<void(Job*)>& dropped);

 private:
  void runnerLoop();
  Execution withPool(Index threads);

  const std::function<void(Job*)> finished_;
  const Index maxThreads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job*> waiting_;
  std::vector<Job*> running_;
  std::vector<std::thread> runners_;
  Index idle_ = 0;
  bool poolTaken_ = false;
  bool stopping_ = false;
  std::unique_ptr<struct pthreadpool, decltype(&pthreadpool_destroy)> pool_{nullptr, &pthreadpool_destroy};
  Workspace inlineWorkspace_;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_SCHEDULER_H_
