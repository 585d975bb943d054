#include "core/lrkv_cache.h"

#include <cstdlib>
#include <new>

namespace lowrank_attention {

namespace {

struct OwnedLayout : LrkvLayout {
  std::vector<Index> starts;  // of keys, then of values
};

}  // namespace

SharedLayout shareLayout(const LrkvLayout& layout, const std::vector<Index>& keyWidths,
                         const std::vector<Index>& valueWidths) {
  auto owned = std::make_shared<OwnedLayout>();
  static_cast<LrkvLayout&>(*owned) = layout;
  owned->starts.reserve(keyWidths.size() + valueWidths.size() + 2);
  for (const std::vector<Index>* widths : {&keyWidths, &valueWidths}) {
    Index start = 0;
    owned->starts.push_back(start);
    for (const Index width : *widths) owned->starts.push_back(start += width);
  }
  owned->keyStarts = owned->starts.data();
  owned->valueStarts = owned->starts.data() + keyWidths.size() + 1;
  return owned;
}

SharedLayout layoutOf(const LrkvModel& model, DataType type) {
  LrkvLayout layout;
  layout.type = type;
  layout.kvHeads = model.kvHeads;
  layout.keyBaseDim = storedKeyBase(model);
  layout.valueBaseDim = model.value.baseDim;
  layout.scaled = storesScales(model);
  std::vector<Index> keyWidths;
  std::vector<Index> valueWidths;
  for (Index head = 0; head < model.kvHeads; ++head) {
    keyWidths.push_back(storedKeyWidth(model, head));
    valueWidths.push_back(storedValueWidth(model, head));
  }
  return shareLayout(layout, keyWidths, valueWidths);
}

bool stores(const LrkvLayout& layout, const LrkvModel& model) {
  if (layout.kvHeads != model.kvHeads || layout.keyBaseDim != storedKeyBase(model) ||
      layout.valueBaseDim != model.value.baseDim || layout.scaled != storesScales(model))
    return false;
  for (Index head = 0; head < model.kvHeads; ++head) {
    if (layout.keyWidth(head) != storedKeyWidth(model, head) ||
        layout.valueWidth(head) != storedValueWidth(model, head))
      return false;
  }
  return true;
}

Code LrkvPages::append(const LrkvModel& model, const LrkvRows& rows, Index count, const KernelSet& kernels) {
  if (count == 0) return Code::kOk;
  LrkvStoreProblem problem;
  problem.model = model;
  problem.layout = *layout_;
  problem.rows = rows;
  problem.first = pages_.length();
  problem.count = count;
  // Whatever memory may be wanting is asked for before the rows are there.
  const std::size_t bytes = kernels.lrkvStore.workspaceBytes(problem, 1);
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  const std::unique_ptr<std::byte, Free> scratch(
      static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
  if (scratch == nullptr && bytes != 0) return Code::kMemory;
  std::vector<std::byte*> addresses;
  addresses.reserve(static_cast<std::size_t>(divideUp(problem.first + count, Pages::kRows)));
  if (!pages_.extend(count)) return Code::kMemory;
  for (Index i = 0; i < pages_.count(); ++i) addresses.push_back(pages_.at(i));
  problem.pages = addresses.data();

  Execution execution;
  execution.workspace = scratch.get();
  std::int32_t failure = 0;
  execution.failure = &failure;
  kernels.lrkvStore.run(problem, execution);
  if (failure != 0) pages_.truncate(problem.first);
  return static_cast<Code>(failure);
}

void LrkvPages::snapshot(std::vector<const void*>* pages, std::vector<std::shared_ptr<const void>>* owners) const {
  for (Index i = 0; i < pages_.count(); ++i) pages->push_back(pages_.at(i));
  pages_.share(owners);
  owners->push_back(layout_);
}

}  // namespace lowrank_attention
