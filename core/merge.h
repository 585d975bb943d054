// Exact merge of attention over disjoint key ranges: with lse = ln Σᵢ e^lseᵢ, output = Σᵢ e^(lseᵢ − lse)·outputᵢ
// (cascade attention: Ye et al. 2025, arXiv 2501.01005, section 2.2).
#ifndef LOWRANK_ATTENTION_CORE_MERGE_H_
#define LOWRANK_ATTENTION_CORE_MERGE_H_

#include "core/types.h"

namespace lowrank_attention {

struct MergePart {
  const void* output = nullptr;
  const float* lse = nullptr;
};

struct MergeProblem {
  DataType type = DataType::kFloat32;
  const MergePart* parts = nullptr;
  Index partCount = 0;
  void* output = nullptr;
  float* lse = nullptr;
  // lse is [batch, heads, length]; outputs are [batch, heads, length, dim] or, with rowsBeforeHeads, [batch, length,
  // heads, dim].
  Index batch = 0;
  Index heads = 0;
  Index length = 0;
  Index dim = 0;
  bool rowsBeforeHeads = false;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_MERGE_H_
