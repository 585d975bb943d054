#include "core/cache.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace lowrank_attention {

KvPages::Page KvPages::newPage() const {
  // A page of the cache that is at least one huge page of the system (2 MiB on x86-64) asks for such: reading it takes
  // hundreds of address translations less.
  constexpr std::size_t kHugePage = std::size_t{1} << 21;
  const bool huge = pageBytes() >= kHugePage;
  void* memory = nullptr;
  if (::posix_memalign(&memory, huge ? kHugePage : 64, pageBytes()) != 0) return nullptr;
#ifdef MADV_HUGEPAGE
  if (huge) ::madvise(memory, pageBytes() / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return Page(static_cast<std::byte*>(memory), [](std::byte* page) { std::free(page); });
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
  } catch (const std::bad_alloc&) {  // the list itself
    return fail();
  }
  // Only a page that is written to, and that somebody else reads, must be copied: at most the one the rows start on.
  if (length_ % kPageRows != 0 && pages_[used - 1].use_count() > 1) {
    Page copy = newPage();
    if (copy == nullptr) return fail();
    std::memcpy(copy.get(), pages_[used - 1].get(), pageBytes());
    pages_[used - 1] = std::move(copy);
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
