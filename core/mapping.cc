#include "core/mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace lowrank_attention {

namespace {

std::size_t systemPage() {
  static const auto bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

std::byte* map(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

// Too much is mapped, and what lies before and after is given back.
std::byte* mapHuge(std::size_t bytes) {
  std::byte* memory = map(bytes + kHugePage);
  if (memory == nullptr) return nullptr;
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(memory) % kHugePage;
  unmapMemory(memory, before);
  unmapMemory(memory + before + bytes, kHugePage - before);
#ifdef MADV_HUGEPAGE
  ::madvise(memory + before, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return memory + before;
}

}  // namespace

std::size_t wholeSystemPages(std::size_t bytes) { return (bytes + systemPage() - 1) / systemPage() * systemPage(); }

std::byte* mapMemory(std::size_t bytes) { return bytes < kHugePage ? map(bytes) : mapHuge(bytes); }

void unmapMemory(std::byte* memory, std::size_t bytes) {
  if (memory == nullptr || bytes == 0 || ::munmap(memory, bytes) == 0) return;
  // A hole in a mapping makes two of it, which the system may refuse. The memory itself it always takes.
  ::madvise(memory, bytes, MADV_DONTNEED);
}

void discardMemory(std::byte* part, std::size_t bytes) {
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(part) % systemPage();
  const std::size_t whole = bytes < before ? 0 : (bytes - before) / systemPage() * systemPage();
  if (whole == 0) return;
  ::madvise(part + before, whole, MADV_DONTNEED);
#ifdef MADV_NOHUGEPAGE
  // Or the system would fill the hole for the sake of a huge page.
  ::madvise(part + before, whole, MADV_NOHUGEPAGE);
#endif
}

}  // namespace lowrank_attention
