// Memory of a workspace, handed out piece by piece. Without memory it only counts, so that the code that places the pieces
// is also the formula of their size.
#ifndef LOWRANK_ATTENTION_CPU_ARENA_H_
#define LOWRANK_ATTENTION_CPU_ARENA_H_

#include "cpu/simd.h"

namespace lowrank_attention::HWY_NAMESPACE {

class Arena {
 public:
  LA_METHOD explicit Arena(std::byte* memory) : memory_(memory) {}

  // Room for `count` elements, on a cache line of its own; null where there is no memory.
  template <class T>
  LA_METHOD T* take(Index count) {
    std::byte* place = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += roundUp(count * static_cast<Index>(sizeof(T)), 64);
    return reinterpret_cast<T*>(place);
  }

  LA_METHOD Index bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  Index bytes_ = 0;
};

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_ARENA_H_
