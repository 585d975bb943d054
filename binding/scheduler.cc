#include "binding/scheduler.h"

#include <hwy/cache_control.h>

#include <algorithm>
#include <chrono>
#include <system_error>

namespace lowrank_attention {

namespace {

// How long a thread watches for what it waits for before it sleeps. To be woken takes 5 to 50 us, and between the
// parallel regions of one call, and between the calls of a decode loop, lie 1 to 50 us: a thread that watches as long
// as waking takes never costs more than twice what it would have, had it known how long to wait. docs/performance.md
// has the figures.
constexpr std::chrono::microseconds kSpin{50};

// Whether `done()` has come true within that time.
template <class Done>
bool spinUntil(const Done& done) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      hwy::Pause();
    }
  } while (Clock::now() < end);
  return done();
}

}  // namespace

Scheduler::Scheduler(std::function<void(Job*)> finished)
    : finished_(std::move(finished)),
      maxThreads_(std::max(1u, std::thread::hardware_concurrency())),
      regions_(maxThreads_ + 1) {
  running_.reserve(static_cast<std::size_t>(maxThreads_));
  runners_.reserve(static_cast<std::size_t>(maxThreads_));
}

Scheduler::~Scheduler() {
  stop([](Job*) {});
}

void Scheduler::submit(Job* job) {
  const std::lock_guard<std::mutex> lock(mutex_);
  waiting_.push_back(job);
  callRunners();
  if (runners_.empty()) {
    waiting_.pop_back();
    throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
  }
  if (waitingCount() > freeRunners()) regions_.recall(2);
}

void Scheduler::runInline(Job& job) {
  const bool parallel = job.threads() > 1;
  if (parallel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // A core is wanted here. If all of them have jobs there is one thread more than cores for the time of this call.
    if (freeCores() == 0) regions_.recall(2);
    runningInline_ = true;
  }
  job.run(executionOf(job), inlineWorkspace_);
  inlineWorkspace_.trim();
  if (parallel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    runningInline_ = false;
    callRunners();
  }
}

void Scheduler::stop(const std::function<void(Job*)>& dropped) {
  std::deque<Job*> left;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    left.swap(waiting_);
    for (Job* job : running_) job->abort();
    news_.fetch_add(1, std::memory_order_relaxed);
    wake_.notify_all();
  }
  for (std::thread& runner : runners_) runner.join();
  runners_.clear();
  for (Job* job : left) dropped(job);
}

Execution Scheduler::executionOf(const Job& job) {
  Execution execution;
  if (job.threads() <= 1) return execution;
  execution.threads = std::min(job.threads(), maxThreads_);
  execution.parallel = [](void* pool, Index workers, Execution::Body body, void* context) {
    static_cast<Scheduler*>(pool)->parallel(workers, body, context);
  };
  execution.pool = this;
  return execution;
}

void Scheduler::parallel(Index workers, Execution::Body body, void* context) {
  Region region(workers, body, context);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    regions_.open(region);
    callRunners();
    // Evens out: threads come over from the region that has most, as long as it keeps at least as many as are here.
    Index workersToCome = 1 + std::min({workers - 1, freeRunners(), freeCores()});
    while (workersToCome < workers && regions_.recall(workersToCome + 2)) ++workersToCome;
  }
  body(context, 0, nullptr);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    regions_.close(region);
  }
  // Who has joined is in the middle of a unit.
  const auto alone = [&] { return region.present.load(std::memory_order_acquire) == 0; };
  if (alone() || spinUntil(alone)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  ++waitingCalls_;
  left_.wait(lock, alone);
  --waitingCalls_;
}

void Scheduler::runnerLoop() {
  Workspace workspace;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    if (!runJob(lock, workspace) && !help(lock) && !spin(lock)) sleep(lock);
  }
}

bool Scheduler::runJob(std::unique_lock<std::mutex>& lock, Workspace& workspace) {
  if (waiting_.empty()) return false;
  Job* job = waiting_.front();
  waiting_.pop_front();
  running_.push_back(job);
  ++busyRunners_;
  lock.unlock();
  job->run(executionOf(*job), workspace);
  workspace.trim();
  lock.lock();
  --busyRunners_;
  running_.erase(std::find(running_.begin(), running_.end(), job));
  lock.unlock();
  finished_(job);
  lock.lock();
  return true;
}

bool Scheduler::help(std::unique_lock<std::mutex>& lock) {
  Helper helper;
  if (freeCores() == 0 || !regions_.join(helper)) return false;
  ++busyRunners_;
  lock.unlock();
  helper.region->body(helper.region->context, helper.worker, &helper.leave);
  lock.lock();
  --busyRunners_;
  if (regions_.leave(helper) && waitingCalls_ > 0) left_.notify_all();
  return true;
}

bool Scheduler::spin(std::unique_lock<std::mutex>& lock) {
  // One core is left for the event loop, which is where new calls come from.
  if (spinningRunners_ >= freeCores() - (busyRunners_ == 0 && !runningInline_ ? 1 : 0)) return false;
  const std::uint32_t seen = news_.load(std::memory_order_relaxed);
  ++spinningRunners_;
  lock.unlock();
  const bool found = spinUntil([&] { return news_.load(std::memory_order_relaxed) != seen; });
  lock.lock();
  --spinningRunners_;
  return found;
}

void Scheduler::sleep(std::unique_lock<std::mutex>& lock) {
  // What came while the last spin ended has been overlooked.
  if (stopping_ || !waiting_.empty() || (freeCores() > 0 && regions_.places() > 0)) return;
  ++sleepingRunners_;
  wake_.wait(lock);
  --sleepingRunners_;
}

void Scheduler::callRunners() {
  if (stopping_) return;
  const Index wanted = waitingCount() + std::min(regions_.places(), freeCores());
  while (freeRunners() < wanted && runnerCount() < maxThreads_ && startRunner()) {
  }
  news_.fetch_add(1, std::memory_order_relaxed);
  const Index awake = freeRunners() - sleepingRunners_;
  const Index woken = std::min(sleepingRunners_, wanted - awake);
  for (Index i = 0; i < woken; ++i) wake_.notify_one();
}

bool Scheduler::startRunner() {
  try {
    runners_.emplace_back([this] { runnerLoop(); });
    return true;
  } catch (const std::exception&) {
    // No thread, or no memory for one: the work is done all the same by those there are.
    return false;
  }
}

}  // namespace lowrank_attention
