// Memory straight from the system, which gets it back as soon as it is let go.
#ifndef LOWRANK_ATTENTION_CORE_MAPPING_H_
#define LOWRANK_ATTENTION_CORE_MAPPING_H_

#include <cstddef>

namespace lowrank_attention {

// Memory of at least one huge page of the system (2 MiB on x86-64) begins where one may and asks for such: the first
// touch takes hundreds of page faults less, and reading it as many address translations.
constexpr std::size_t kHugePage = std::size_t{1} << 21;

// Bytes rounded up to whole pages of the system.
std::size_t wholeSystemPages(std::size_t bytes);

// Zeroed memory of a multiple of the system's page; null if there is none.
std::byte* mapMemory(std::size_t bytes);
// Gives back what mapMemory gave for as many bytes, which may be null.
void unmapMemory(std::byte* memory, std::size_t bytes);
// Gives back the memory of a part of what was mapped, as far as it fills whole pages of the system, and keeps its
// place.
void discardMemory(std::byte* part, std::size_t bytes);

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_MAPPING_H_
