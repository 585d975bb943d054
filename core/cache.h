// A paged key/value cache of one sequence: rows are appended to pages that are never moved, so growing copies nothing
// and a fork shares all pages of its prefix (Kwon et al. 2023, arXiv 2309.06180, section 4).
//
// Page layout: keys [heads][kPageRows][headDim], then values [heads][kPageRows][valueDim].
#ifndef LOWRANK_ATTENTION_CORE_CACHE_H_
#define LOWRANK_ATTENTION_CORE_CACHE_H_

#include <memory>
#include <vector>

#include "core/convert.h"
#include "core/full.h"
#include "core/kernel.h"

namespace lowrank_attention {

class KvPages {
 public:
  // Rows of a page: a multiple of kKeyTile, so that no tile crosses pages.
  static constexpr Index kPageRows = kKeyTile;

  struct Shape {
    Index heads = 0;
    Index headDim = 0;
    Index valueDim = 0;
    DataType type = DataType::kFloat32;
  };

  // Rows of all heads to append; `rows.data` is only read.
  struct Source {
    DataType type;
    HeadRows rows;
  };

  explicit KvPages(const Shape& shape) : shape_(shape) {}

  const Shape& shape() const { return shape_; }
  Index length() const { return length_; }
  // Bytes of all pages held, and of those that another fork or a running call holds too.
  std::size_t bytes() const { return pages_.size() * pageBytes(); }
  std::size_t sharedBytes() const;

  // Appends `count` rows. A last page that is shared is copied first. False, with nothing changed, if memory ran out.
  bool append(const Source& key, const Source& value, Index count, const KernelSet& kernels);
  // Keeps the first `length` rows and gives back the pages beyond.
  void truncate(Index length);

  // The rows as a kernel reads them. `pages` receives the page addresses and `owners` a share in each page, which
  // keeps them as they are until the call has ended: a later append that would write into one copies it.
  void snapshot(std::vector<const void*>* keyPages, std::vector<const void*>* valuePages,
                std::vector<std::shared_ptr<const void>>* owners) const;
  Index keyHeadStride() const { return kPageRows * shape_.headDim; }
  Index valueHeadStride() const { return kPageRows * shape_.valueDim; }

 private:
  using Page = std::shared_ptr<std::byte>;

  // Bytes of memory of a page: those of its rows, and where it is mapped what fills up the system's last page.
  std::size_t pageBytes() const;
  std::byte* valuesOf(const Page& page) const {
    return page.get() + shape_.heads * kPageRows * shape_.headDim * elementBytes(shape_.type);
  }
  Page newPage() const;

  Shape shape_;
  Index length_ = 0;
  std::vector<Page> pages_;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_CACHE_H_
