#ifndef LOWRANK_ATTENTION_BINDING_WORKSPACE_H_
#define LOWRANK_ATTENTION_BINDING_WORKSPACE_H_

#include <cstdlib>

#include "core/mapping.h"

namespace lowrank_attention {

// Scratch memory that is kept between calls, so that a short call does not pay for page faults.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { release(); }

  // Null if there is no memory.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > bytes_) {
      release();
      const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
      // What is not kept must come and go quickly.
      memory_ = rounded > kKeptBytes ? mapMemory(rounded) : static_cast<std::byte*>(std::aligned_alloc(kPage, rounded));
      if (memory_ == nullptr) return nullptr;
      bytes_ = rounded;
    }
    return memory_;
  }

  // Gives back what is larger than a workspace worth keeping.
  void trim() {
    if (bytes_ > kKeptBytes) release();
  }

 private:
  static constexpr std::size_t kKeptBytes = std::size_t{8} << 20;
  // A multiple of the system's page, whichever of the usual ones that is.
  static constexpr std::size_t kPage = std::size_t{1} << 16;

  void release() {
    if (bytes_ > kKeptBytes) {
      unmapMemory(memory_, bytes_);
    } else {
      std::free(memory_);
    }
    memory_ = nullptr;
    bytes_ = 0;
  }

  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_WORKSPACE_H_
