#ifndef LOWRANK_ATTENTION_BINDING_WORKSPACE_H_
#define LOWRANK_ATTENTION_BINDING_WORKSPACE_H_

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace lowrank_attention {

// Scratch memory that is kept between calls, so that a short call does not pay for page faults.
class Workspace {
 public:
  // Null if there is no memory.
  std::byte* reserve(std::size_t bytes) {
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

  // Gives back what is larger than a workspace worth keeping.
  void trim() {
    if (bytes_ <= kKeptBytes) return;
    memory_.reset();
    bytes_ = 0;
  }

 private:
  static constexpr std::size_t kKeptBytes = std::size_t{4} << 20;
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_WORKSPACE_H_
