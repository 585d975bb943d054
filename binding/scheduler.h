// Runs the calls of one environment: asynchronous ones off its event loop, and large ones of either kind on several
// threads.
//
// Why not libuv's pool: it has four threads that file and DNS calls share, and a queue of long attention calls would
// stop those for seconds. The runners here are started when first needed, at most one a core. A runner without a job
// helps in the parallel regions of running calls (binding/regions.h).
//
// Who gets a runner: a waiting job before a region, so a queue of short calls drains at one call a core, without the
// cost of sharing, and a long call cannot keep the others waiting: it is asked to give up a helper, between two units
// of its work. What is left is shared evenly among the regions.
#ifndef LOWRANK_ATTENTION_BINDING_SCHEDULER_H_
#define LOWRANK_ATTENTION_BINDING_SCHEDULER_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "binding/regions.h"
#include "binding/workspace.h"
#include "core/execution.h"

namespace lowrank_attention {

// A piece of work for the scheduler. Lives until `finished` has been called with it.
class Job {
 public:
  virtual ~Job() = default;
  // Threads this job can make use of.
  virtual Index threads() const = 0;
  // Called once. `execution` has its threads set.
  virtual void run(Execution execution, Workspace& workspace) = 0;
  // Asks a running job to return soon. Called from another thread.
  virtual void abort() = 0;
};

class Scheduler {
 public:
  // `finished` is called on a runner after each submitted job has run.
  explicit Scheduler(std::function<void(Job*)> finished);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Threads that a call may use at most: the cores this process may run on.
  Index maxThreads() const { return maxThreads_; }

  // Throws std::system_error if there is no runner and none can be started.
  void submit(Job* job);
  // Runs the job now on the calling thread, which is the environment's own, with what help there is.
  void runInline(Job& job);
  // Aborts running jobs, waits for them, and drops the waiting ones into `dropped`.
  void stop(const std::function<void(Job*)>& dropped);

 private:
  Execution executionOf(const Job& job);
  void parallel(Index workers, Execution::Body body, void* context);

  void runnerLoop();
  // What a runner finds to do; false if there is nothing of the kind.
  bool runJob(std::unique_lock<std::mutex>& lock, Workspace& workspace);
  bool help(std::unique_lock<std::mutex>& lock);
  // Waits for work, for a short time or for any. False if this was not allowed or in vain.
  bool spin(std::unique_lock<std::mutex>& lock);
  void sleep(std::unique_lock<std::mutex>& lock);

  // The rest is called with the mutex held.
  // Starts and wakes runners for the work there is. To be called when there may be more of it than before.
  void callRunners();
  bool startRunner();
  Index runnerCount() const { return static_cast<Index>(runners_.size()); }
  Index waitingCount() const { return static_cast<Index>(waiting_.size()); }
  Index freeRunners() const { return runnerCount() - busyRunners_; }
  // Threads that may begin to help now, so that no more threads run than there are cores.
  Index freeCores() const { return std::max<Index>(0, maxThreads_ - busyRunners_ - (runningInline_ ? 1 : 0)); }

  const std::function<void(Job*)> finished_;
  const Index maxThreads_;

  std::mutex mutex_;
  std::deque<Job*> waiting_;
  std::vector<Job*> running_;
  Regions regions_;
  std::vector<std::thread> runners_;
  // Of the runners, those in a job or helping, those spinning and those asleep.
  Index busyRunners_ = 0;
  Index spinningRunners_ = 0;
  Index sleepingRunners_ = 0;
  std::condition_variable wake_;
  // Changes when there may be new work: what spinning runners look at.
  std::atomic<std::uint32_t> news_{0};
  // Calls asleep until the last of their helpers has left.
  Index waitingCalls_ = 0;
  std::condition_variable left_;
  bool runningInline_ = false;
  bool stopping_ = false;

  Workspace inlineWorkspace_;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_SCHEDULER_H_
