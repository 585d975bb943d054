// A paged key/value cache of one sequence.
//
// Page layout: keys [heads][Pages::kRows][headDim], then values [heads][Pages::kRows][valueDim].
#ifndef LOWRANK_ATTENTION_CORE_CACHE_H_
#define LOWRANK_ATTENTION_CORE_CACHE_H_

#include <memory>
#include <vector>

#include "core/full.h"
#include "core/kernel.h"
#include "core/pages.h"

namespace lowrank_attention {

class KvPages {
 public:
  struct Shape {
    Index heads = 0;
    Index headDim = 0;
    Index valueDim = 0;
    DataType type = DataType::kFloat32;

    Index keyBytes() const { return heads * Pages::kRows * headDim * elementBytes(type); }
    Index valueBytes() const { return heads * Pages::kRows * valueDim * elementBytes(type); }
  };

  // Rows of all heads to append; `rows.data` is only read.
  struct Source {
    DataType type;
    HeadRows rows;
  };

  explicit KvPages(const Shape& shape) : shape_(shape), pages_(shape.keyBytes() + shape.valueBytes()) {}

  const Shape& shape() const { return shape_; }
  const Pages& pages() const { return pages_; }

  // Appends `count` rows. False, with nothing changed, if memory ran out.
  bool append(const Source& key, const Source& value, Index count, const KernelSet& kernels);
  void truncate(Index length) { pages_.truncate(length); }

  // The rows as a kernel reads them: where the keys of every page begin, then where the values do. `owners` receives a
  // share in each page, which keeps them as they are until the call has ended.
  void snapshot(std::vector<const void*>* pages, std::vector<std::shared_ptr<const void>>* owners) const;
  // Keys and values of a sequence whose part of such a list is `pages`.
  void place(const void* const* pages, FullSequence* sequence) const;

 private:
  std::byte* valuesOf(std::byte* page) const { return page + shape_.keyBytes(); }

  Shape shape_;
  Pages pages_;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_CACHE_H_
