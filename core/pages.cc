#include "core/pages.h"

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

// A mapping ends with a page of the system, which may be left empty but for this part of all: where it would be more,
// several pages are mapped together.
constexpr std::size_t kSlack = 50;

}  // namespace

Pages::Pages(Index rowBytes) : rowBytes_(static_cast<std::size_t>(rowBytes)) {
  if (rowBytes_ < kMappedPage) return;
  do {
    ++perMapping_;
  } while ((mappingBytes() - perMapping_ * rowBytes_) * kSlack > perMapping_ * rowBytes_);
}

std::size_t Pages::mappingBytes() const { return wholeSystemPages(perMapping_ * rowBytes_); }

std::size_t Pages::pageBytes() const {
  return perMapping_ == 0 ? rowBytes_ : (mappingBytes() + perMapping_ - 1) / perMapping_;
}

Pages::Page Pages::newPage() {
  const std::size_t bytes = rowBytes_;
  if (perMapping_ == 0) {
    // A multiple of the alignment, as aligned_alloc wants it: so are the rows of a page.
    return Page(static_cast<std::byte*>(std::aligned_alloc(64, bytes)), [](std::byte* page) { std::free(page); });
  }
  if (mapping_ == nullptr) {
    const std::size_t all = mappingBytes();
    std::byte* memory = mapMemory(all);
    if (memory == nullptr) return nullptr;
    mapping_ = std::shared_ptr<std::byte>(memory, [all](std::byte* whole) { unmapMemory(whole, all); });
    taken_ = 0;
  }
  std::byte* place = mapping_.get() + taken_ * bytes;
  // The mapping goes with the last of its pages; until then the memory of the others goes, and their places stay empty.
  Page page(place, [mapping = mapping_, bytes](std::byte* rows) {
    if (mapping.use_count() > 1) discardMemory(rows, bytes);
  });
  if (++taken_ == perMapping_) mapping_.reset();
  return page;
}

std::size_t Pages::sharedBytes() const {
  std::size_t shared = 0;
  for (const Page& page : pages_) shared += page.use_count() > 1 ? pageBytes() : 0;
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
      std::memcpy(copy.get(), pages_[used - 1].get(), rowBytes_);
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
