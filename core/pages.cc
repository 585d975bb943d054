#include "core/pages.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "core/mapping.h"

namespace lowrank_attention {

namespace {

// Pages of at least this size are mapped one by one, so that they go back to the system when they are let go. malloc
// would keep many of them: it raises its own threshold to the largest block it has seen freed. Smaller pages would
// cost a system call each for little, and a process may only have so many mappings.
constexpr std::size_t kMappedPage = std::size_t{1} << 16;

}  // namespace

Pages::Pages(Index rowBytes) : pageBytes_(static_cast<std::size_t>(rowBytes)) {
  static const Index systemPage = ::sysconf(_SC_PAGESIZE);
  if (pageBytes_ >= kMappedPage) pageBytes_ = static_cast<std::size_t>(roundUp(rowBytes, systemPage));
}

Pages::Page Pages::newPage() const {
  const std::size_t bytes = pageBytes_;
  if (bytes < kMappedPage) {
    // A multiple of the alignment, as aligned_alloc wants it: so are the rows of a page.
    return Page(static_cast<std::byte*>(std::aligned_alloc(64, bytes)), [](std::byte* page) { std::free(page); });
  }
  return Page(mapMemory(bytes), [bytes](std::byte* page) { unmapMemory(page, bytes); });
}

std::size_t Pages::sharedBytes() const {
  std::size_t shared = 0;
  for (const Page& page : pages_) shared += page.use_count() > 1 ? pageBytes_ : 0;
  return shared;
}

bool Pages::extend(Index count) {
  if (count == 0) return true;
  const std::size_t used = pages_.size();
  const auto fail = [&] {
    pages_.resize(used);
    return false;
  };
  try {
    while (this->count() * kRows < length_ + count) {
      pages_.push_back(newPage());
      if (pages_.back() == nullptr) return fail();
    }
    // Only a page that is written to, and that somebody else reads, must be copied: at most the one the rows start on.
    if (length_ % kRows != 0 && pages_[used - 1].use_count() > 1) {
      Page copy = newPage();
      if (copy == nullptr) return fail();
      std::memcpy(copy.get(), pages_[used - 1].get(), pageBytes_);
      pages_[used - 1] = std::move(copy);
    }
  } catch (const std::bad_alloc&) {  // the list itself, or the count of a page's owners
    return fail();
  }
  length_ += count;
  return true;
}

void Pages::truncate(Index length) {
  length_ = minimum(length, length_);
  pages_.resize(static_cast<std::size_t>(divideUp(length_, kRows)));
}

void Pages::share(std::vector<std::shared_ptr<const void>>* owners) const {
  owners->insert(owners->end(), pages_.begin(), pages_.end());
}

}  // namespace lowrank_attention
