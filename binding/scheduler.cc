#include "binding/scheduler.h"

#include <algorithm>
#include <system_error>

namespace lowrank_attention {

std::byte* Workspace::reserve(std::size_t bytes) {
  if (bytes > bytes_) {
    memory_.reset();
    bytes_ = 0;
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, rounded)));
    if (memory_ == nullptr) return nullptr;
    bytes_ = rounded;
  }
  return memory_.get();
}

void Workspace::trim() {
  if (bytes_ <= kKeptBytes) return;
  memory_.reset();
  bytes_ = 0;
}

namespace {

void parallelOnPool(void* pool, Index workers, Execution::Body body, void* context) {
  struct Call {
    Execution::Body body;
    void* context;
  } call{body, context};
  pthreadpool_parallelize_1d(
      static_cast<pthreadpool_t>(pool),
      [](void* argument, std::size_t worker) {
        const Call& c = *static_cast<Call*>(argument);
        c.body(c.context, static_cast<Index>(worker));
      },
      &call, static_cast<std::size_t>(workers), 0);
}

}  // namespace

Scheduler::Scheduler(std::function<void(Job*)> finished)
    : finished_(std::move(finished)), maxThreads_(std::max(1u, std::thread::hardware_concurrency())) {}

Scheduler::~Scheduler() {
  stop([](Job*) {});
}

Execution Scheduler::withPool(Index threads) {
  Execution execution;
  if (threads <= 1) return execution;
  if (pool_ == nullptr) pool_.reset(pthreadpool_create(static_cast<std::size_t>(maxThreads_)));
  if (pool_ == nullptr) return execution;
  execution.threads = std::min(threads, static_cast<Index>(pthreadpool_get_threads_count(pool_.get())));
  execution.parallel = parallelOnPool;
  execution.pool = pool_.get();
  return execution;
}

void Scheduler::submit(Job* job) {
  const std::lock_guard<std::mutex> lock(mutex_);
  waiting_.push_back(job);
  if (static_cast<Index>(waiting_.size()) > idle_ && static_cast<Index>(runners_.size()) < maxThreads_) {
    try {
      runners_.emplace_back([this] { runnerLoop(); });
    } catch (const std::system_error&) {
      // With another runner there the job only waits longer.
      if (runners_.empty()) {
        waiting_.pop_back();
        throw;
      }
    }
  }
  wake_.notify_one();
}

void Scheduler::runnerLoop() {
  Workspace workspace;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const auto next = std::find_if(waiting_.begin(), waiting_.end(),
                                   [&](const Job* job) { return job->threads() <= 1 || !poolTaken_; });
    if (stopping_) return;
    if (next == waiting_.end()) {
      ++idle_;
      wake_.wait(lock);
      --idle_;
      continue;
    }
    Job* job = *next;
    waiting_.erase(next);
    running_.push_back(job);
    const bool takesPool = job->threads() > 1;
    Execution execution;
    if (takesPool) {
      poolTaken_ = true;
      execution = withPool(job->threads());
    }
    lock.unlock();
    job->run(execution, workspace);
    workspace.trim();
    lock.lock();
    running_.erase(std::find(running_.begin(), running_.end(), job));
    if (takesPool) {
      poolTaken_ = false;
      // Any runner may be asleep on a job that waited for the pool.
      wake_.notify_all();
    }
    lock.unlock();
    finished_(job);
    lock.lock();
  }
}

void Scheduler::runInline(Job& job) {
  Execution execution;
  bool takesPool = false;
  if (job.threads() > 1) {
    const std::lock_guard<std::mutex> lock(mutex_);
    takesPool = !poolTaken_;
    if (takesPool) {
      poolTaken_ = true;
      execution = withPool(job.threads());
    }
  }
  job.run(execution, inlineWorkspace_);
  inlineWorkspace_.trim();
  if (takesPool) {
    const std::lock_guard<std::mutex> lock(mutex_);
    poolTaken_ = false;
    wake_.notify_all();
  }
}

void Scheduler::stop(const std::function<void(Job*)>& dropped) {
  std::deque<Job*> left;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    left.swap(waiting_);
    for (Job* job : running_) job->abort();
    wake_.notify_all();
  }
  for (std::thread& runner : runners_) runner.join();
  runners_.clear();
  for (Job* job : left) dropped(job);
}

}  // namespace lowrank_attention
