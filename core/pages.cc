#include "core/pages.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "core/mapping.h"

namespace lowrank_attention {

namespace {

// Pages of at least this size are mapped, so that they go back to the system when they are let go. malloc would keep
// many of them: it raises its own threshold to the largest block it has seen freed. Smaller pages would cost a system
// call each for little, and a process may only have so many mappings.
constexpr std::size_t kMappedPage = std::size_t{1} << 16;

// A group of pages ends with a page of the system, which may be left empty but for this part of all: where it would be
// more, the group gets one page more.
constexpr std::size_t kSlack = 50;

}  // namespace

Pages::Pages(Index rowBytes) : rowBytes_(static_cast<std::size_t>(rowBytes)) {
  if (rowBytes_ < kMappedPage) return;
  do {
    ++perGroup_;
  } while ((groupBytes() - perGroup_ * rowBytes_) * kSlack > perGroup_ * rowBytes_);
}

std::size_t Pages::groupBytes() const { return wholeSystemPages(perGroup_ * rowBytes_); }

std::size_t Pages::pageBytes() const { return perGroup_ == 0 ? rowBytes_ : (groupBytes() + perGroup_ - 1) / perGroup_; }

// Pages that are wanted together are mapped together: a large mapping is made of the system's huge pages, in which rows
// that are far apart are found faster.
Pages::Page Pages::newPage(std::size_t wanted) {
  const std::size_t bytes = rowBytes_;
  if (perGroup_ == 0) {
    // A multiple of the alignment, as aligned_alloc wants it: so are the rows of a page.
    return Page(static_cast<std::byte*>(std::aligned_alloc(64, bytes)), [](std::byte* page) { std::free(page); });
  }
  if (left_ == 0) {
    // What nobody wants yet is mapped only where a group is not full.
    const std::size_t groups = wanted < perGroup_ ? 1 : wanted / perGroup_;
    const std::size_t all = groups * groupBytes();
    std::byte* memory = mapMemory(all);
    if (memory == nullptr) return nullptr;
    mapping_ = std::shared_ptr<std::byte>(memory, [all](std::byte* whole) { unmapMemory(whole, all); });
    taken_ = 0;
    left_ = groups * perGroup_;
  }
  std::byte* place = mapping_.get() + taken_ / perGroup_ * groupBytes() + taken_ % perGroup_ * bytes;
  // The mapping goes with the last of its pages; until then the memory of the others goes, and their places stay empty.
  Page page(place, [mapping = mapping_, bytes](std::byte* rows) {
    if (mapping.use_count() > 1) discardMemory(rows, bytes);
  });
  ++taken_;
  if (--left_ == 0) mapping_.reset();
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
      const Index missing = divideUp(length_ + count, kRows) - this->count();
      pages_.push_back(newPage(static_cast<std::size_t>(missing)));
      if (pages_.back() == nullptr) return fail();
    }
    // Only a page that is written to, and that somebody else reads, must be copied: at most the one the rows start on.
    if (length_ % kRows != 0 && pages_[used - 1].use_count() > 1) {
      Page copy = newPage(1);
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
