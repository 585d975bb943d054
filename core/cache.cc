#include "core/cache.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace lowrank_attention {

namespace {

// Pages of at least this size are mapped one by one, so that they go back to the system when they are let go. malloc
// would keep many of them: it raises its own threshold to the largest block it has seen freed. Smaller pages would
// cost a system call each for little, and a process may only have so many mappings.
constexpr std::size_t kMappedPage = std::size_t{1} << 16;

// A page that is at least one huge page of the system (2 MiB on x86-64) asks for such: reading it takes hundreds of
// address translations less.
constexpr std::size_t kHugePage = std::size_t{1} << 21;

void unmap(std::byte* memory, std::size_t bytes) {
  if (bytes == 0 || ::munmap(memory, bytes) == 0) return;
  // A hole in a mapping makes two of it, which the system may refuse. The memory itself it always takes.
  ::madvise(memory, bytes, MADV_DONTNEED);
}

// `bytes` is a multiple of the system's page.
std::byte* map(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

// Memory that begins where a huge page may: too much is mapped, and what lies before and after is given back.
std::byte* mapHuge(std::size_t bytes) {
  std::byte* memory = map(bytes + kHugePage);
  if (memory == nullptr) return nullptr;
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(memory) % kHugePage;
  unmap(memory, before);
  unmap(memory + before + bytes, kHugePage - before);
#ifdef MADV_HUGEPAGE
  ::madvise(memory + before, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return memory + before;
}

}  // namespace

std::size_t KvPages::pageBytes() const {
  const Index bytes = shape_.heads * kPageRows * (shape_.headDim + shape_.valueDim) * elementBytes(shape_.type);
  if (static_cast<std::size_t>(bytes) < kMappedPage) return static_cast<std::size_t>(bytes);
  static const Index systemPage = ::sysconf(_SC_PAGESIZE);
  return static_cast<std::size_t>(roundUp(bytes, systemPage));
}

KvPages::Page KvPages::newPage() const {
  const std::size_t bytes = pageBytes();
  if (bytes < kMappedPage) {
    // A multiple of the alignment, as aligned_alloc wants it: so are the rows of a page.
    return Page(static_cast<std::byte*>(std::aligned_alloc(64, bytes)), [](std::byte* page) { std::free(page); });
  }
  return Page(bytes < kHugePage ? map(bytes) : mapHuge(bytes), [bytes](std::byte* page) {
    if (page != nullptr) unmap(page, bytes);
  });
}

std::size_t KvPages::sharedBytes() const {
  std::size_t shared = 0;
  for (const Page& page : pages_) shared += page.use_count() > 1 ? pageBytes() : 0;
  return shared;
}

bool KvPages::append(const Source& key, const Source& value, Index count, const KernelSet& kernels) {
  if (count == 0) return true;
  const std::size_t used = pages_.size();
  const auto fail = [&] {
    pages_.resize(used);
    return false;
  };
  try {
    while (static_cast<Index>(pages_.size()) * kPageRows < length_ + count) {
      pages_.push_back(newPage());
      if (pages_.back() == nullptr) return fail();
    }
    // Only a page that is written to, and that somebody else reads, must be copied: at most the one the rows start on.
    if (length_ % kPageRows != 0 && pages_[used - 1].use_count() > 1) {
      Page copy = newPage();
      if (copy == nullptr) return fail();
      std::memcpy(copy.get(), pages_[used - 1].get(), pageBytes());
      pages_[used - 1] = std::move(copy);
    }
  } catch (const std::bad_alloc&) {  // the list itself, or the count of a page's owners
    return fail();
  }

  const auto copyRows = [&](const Source& source, bool isValue, Index dim, Index head, Index first, Index rows,
                            Index target) {
    const Page& page = pages_[static_cast<std::size_t>(target / kPageRows)];
    std::byte* base = isValue ? valuesOf(page) : page.get();
    ConvertProblem convert;
    convert.sourceType = source.type;
    convert.targetType = shape_.type;
    const bool dense = source.rows.rowStride == dim;
    for (Index row = 0; row < rows; row += dense ? rows : 1) {
      convert.source = elementAt(source.rows.data, source.type,
                                 head * source.rows.headStride + (first + row) * source.rows.rowStride);
      convert.target = elementAt(base, shape_.type, (head * kPageRows + target % kPageRows + row) * dim);
      convert.count = dense ? rows * dim : dim;
      if (convert.sourceType == convert.targetType) {
        std::memcpy(convert.target, convert.source,
                    static_cast<std::size_t>(convert.count * elementBytes(shape_.type)));
      } else {
        kernels.convert.run(convert, Execution());
      }
    }
  };
  for (Index done = 0; done < count;) {
    const Index target = length_ + done;
    const Index rows = minimum(count - done, kPageRows - target % kPageRows);
    for (Index head = 0; head < shape_.heads; ++head) {
      copyRows(key, false, shape_.headDim, head, done, rows, target);
      copyRows(value, true, shape_.valueDim, head, done, rows, target);
    }
    done += rows;
  }
  length_ += count;
  return true;
}

void KvPages::truncate(Index length) {
  length_ = minimum(length, length_);
  pages_.resize(static_cast<std::size_t>(divideUp(length_, kPageRows)));
}

void KvPages::snapshot(std::vector<const void*>* keyPages, std::vector<const void*>* valuePages,
                       std::vector<std::shared_ptr<const void>>* owners) const {
  for (const Page& page : pages_) {
    keyPages->push_back(page.get());
    valuePages->push_back(valuesOf(page));
    owners->push_back(page);
  }
}

}  // namespace lowrank_attention
