// Words shared by every native folder. No N-API, no CUDA headers, no intrinsics.
#ifndef LOWRANK_ATTENTION_CORE_TYPES_H_
#define LOWRANK_ATTENTION_CORE_TYPES_H_

#include <cstddef>
#include <cstdint>

// Kernel files are compiled once per instruction set; an inline function shared by them must never become a
// linker-merged symbol, or the copy of the widest instruction set could serve every caller.
#define LA_INLINE [[gnu::always_inline]] static inline
#define LA_METHOD [[gnu::always_inline]] inline

namespace lowrank_attention {

using Index = std::int64_t;

enum class DataType : std::uint8_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

LA_INLINE Index elementBytes(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

LA_INLINE const void* elementAt(const void* base, DataType type, Index index) {
  return static_cast<const std::byte*>(base) + index * elementBytes(type);
}
LA_INLINE void* elementAt(void* base, DataType type, Index index) {
  return static_cast<std::byte*>(base) + index * elementBytes(type);
}

LA_INLINE constexpr Index divideUp(Index value, Index step) { return (value + step - 1) / step; }
LA_INLINE constexpr Index roundUp(Index value, Index step) { return divideUp(value, step) * step; }
LA_INLINE constexpr Index minimum(Index a, Index b) { return a < b ? a : b; }
LA_INLINE constexpr Index maximum(Index a, Index b) { return a > b ? a : b; }

// Outcome of a native call; lib/ turns a code into an AttentionError.
enum class Code : std::uint8_t { kOk, kArgument, kUnsupported, kDevice, kMemory, kAborted, kClosed };

struct Status {
  Code code = Code::kOk;
  const char* argument = "";
  const char* detail = "";

  bool ok() const { return code == Code::kOk; }
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_TYPES_H_
