#include "core/cache.h"

#include <cstring>

#include "core/convert.h"

namespace lowrank_attention {

bool KvPages::append(const Source& key, const Source& value, Index count, const KernelSet& kernels) {
  const Index begin = pages_.length();
  if (!pages_.extend(count)) return false;
  const auto copyRows = [&](const Source& source, bool isValue, Index dim, Index head, Index first, Index rows,
                            Index target) {
    std::byte* page = pages_.at(target / Pages::kRows);
    std::byte* base = isValue ? valuesOf(page) : page;
    ConvertProblem convert;
    convert.sourceType = source.type;
    convert.targetType = shape_.type;
    const bool dense = source.rows.rowStride == dim;
    for (Index row = 0; row < rows; row += dense ? rows : 1) {
      convert.source = elementAt(source.rows.data, source.type,
                                 head * source.rows.headStride + (first + row) * source.rows.rowStride);
      convert.target = elementAt(base, shape_.type, (head * Pages::kRows + target % Pages::kRows + row) * dim);
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
    const Index target = begin + done;
    const Index rows = minimum(count - done, Pages::kRows - target % Pages::kRows);
    for (Index head = 0; head < shape_.heads; ++head) {
      copyRows(key, false, shape_.headDim, head, done, rows, target);
      copyRows(value, true, shape_.valueDim, head, done, rows, target);
    }
    done += rows;
  }
  return true;
}

void KvPages::snapshot(std::vector<const void*>* pages, std::vector<std::shared_ptr<const void>>* owners) const {
  for (Index i = 0; i < pages_.count(); ++i) pages->push_back(pages_.at(i));
  for (Index i = 0; i < pages_.count(); ++i) pages->push_back(valuesOf(pages_.at(i)));
  pages_.share(owners);
}

void KvPages::place(const void* const* pages, FullSequence* sequence) const {
  sequence->key = {pages, Pages::kRows, Pages::kRows * shape_.headDim, shape_.headDim};
  sequence->value = {pages + pages_.count(), Pages::kRows, Pages::kRows * shape_.valueDim, shape_.valueDim};
}

}  // namespace lowrank_attention
