// A paged cache of LRKV rows of one sequence, and the form in which rows of a model are stored; core/lrkv.h has both.
#ifndef LOWRANK_ATTENTION_CORE_LRKV_CACHE_H_
#define LOWRANK_ATTENTION_CORE_LRKV_CACHE_H_

#include <memory>
#include <vector>

#include "core/kernel.h"
#include "core/lrkv.h"
#include "core/pages.h"

namespace lowrank_attention {

static_assert(LrkvLayout::kPageRows == Pages::kRows);

// A layout with the widths it points to. It never changes: forks of a cache and calls in flight share it.
using SharedLayout = std::shared_ptr<const LrkvLayout>;

// `layout` says all but the starts; the widths are multiples of kRankStep, one a head.
SharedLayout shareLayout(const LrkvLayout& layout, const std::vector<Index>& keyWidths,
                         const std::vector<Index>& valueWidths);
// The layout in which rows of the model are stored in a type.
SharedLayout layoutOf(const LrkvModel& model, DataType type);
// Whether rows of the model are stored in this layout.
bool stores(const LrkvLayout& layout, const LrkvModel& model);

class LrkvPages {
 public:
  // A page of the layout has bytes.
  explicit LrkvPages(SharedLayout layout) : layout_(std::move(layout)), pages_(layout_->pageBytes()) {}

  const LrkvLayout& layout() const { return *layout_; }
  const Pages& pages() const { return pages_; }

  // Appends `count` rows of a model that is stored in this layout, on the calling thread. What is not kOk leaves the
  // cache as it was.
  Code append(const LrkvModel& model, const LrkvRows& rows, Index count, const KernelSet& kernels);
  void truncate(Index length) { pages_.truncate(length); }

  // The rows as a kernel reads them: where every page begins. `owners` receives a share in each page and in the layout,
  // which keeps them as they are until the call has ended.
  void snapshot(std::vector<const void*>* pages, std::vector<std::shared_ptr<const void>>* owners) const;
  // The rows of a sequence whose part of such a list is `pages`.
  void place(const void* const* pages, FullSequence* sequence) const { sequence->key.pages = pages; }

 private:
  SharedLayout layout_;
  Pages pages_;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_LRKV_CACHE_H_
