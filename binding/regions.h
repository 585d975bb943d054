// The parallel regions that calls of one environment have open, and who works in them.
//
// A region is one `parallel(workers, body)` of a kernel. The thread that opens it is worker 0 and does all of the work
// that nobody else takes; other threads help if they have nothing better to do. Nobody ever waits for a helper to come:
// on a busy server the operating system may let a thread wait for milliseconds, longer than a short call takes.
//
// Everything here is called under the scheduler's mutex. Invariants:
//   - Only worker 0 opens and closes a region, and helpers join only open ones: once it is closed, helpers only leave.
//   - No two threads in a region have the same worker index: kernels index their scratch by it.
//   - A helper's last touch of a region is to lower `present`. So when worker 0 finds the closed region empty it may
//     return, and the region, which lies on its stack, may go.
#ifndef LOWRANK_ATTENTION_BINDING_REGIONS_H_
#define LOWRANK_ATTENTION_BINDING_REGIONS_H_

#include <atomic>
#include <vector>

#include "core/execution.h"

namespace lowrank_attention {

struct Region;

// A thread's place in the region it helps in.
struct Helper {
  Region* region = nullptr;
  Index worker = 0;
  // Set when the thread is wanted elsewhere: it leaves before it would take its next unit.
  std::int32_t leave = 0;
  Helper* next = nullptr;
};

struct Region {
  Region(Index regionWorkers, Execution::Body regionBody, void* regionContext)
      : workers(regionWorkers), body(regionBody), context(regionContext) {}

  const Index workers;
  const Execution::Body body;
  void* const context;
  // Helpers by ascending worker index, and their number, which worker 0 also reads without the mutex.
  Helper* helpers = nullptr;
  std::atomic<Index> present{0};
  // Workers that have not been asked to leave, worker 0 included.
  Index staying = 1;
  // A helper has found nothing left to take.
  bool exhausted = false;
};

class Regions {
 public:
  // At most `most` regions are open at a time.
  explicit Regions(Index most) { open_.reserve(static_cast<std::size_t>(most)); }

  void open(Region& region) { open_.push_back(&region); }
  void close(Region& region);

  // How many more helpers the open regions can take.
  Index places() const;
  // Takes a free place of the open region with the fewest workers. False if no region has one.
  bool join(Helper& helper);
  // Gives the place back. Whether the region has no helper now; it must not be touched any more.
  bool leave(Helper& helper);
  // Asks one helper of the region with the most workers to leave, if that region has at least so many.
  bool recall(Index fromAtLeast);

 private:
  static Index placesOf(const Region& region) {
    return region.exhausted ? 0 : region.workers - 1 - region.present.load(std::memory_order_relaxed);
  }

  std::vector<Region*> open_;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_REGIONS_H_
