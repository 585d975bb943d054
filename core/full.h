// Exact attention: O = softmax(scale·Q·Kᵀ + mask)·V, row by row (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1).
//
// One problem is a list of sequences that share everything but their lengths and memory. A batch of tensors is one
// such list, sequences served from key/value caches are another.
#ifndef LOWRANK_ATTENTION_CORE_FULL_H_
#define LOWRANK_ATTENTION_CORE_FULL_H_

#include "core/types.h"

namespace lowrank_attention {

// Rows of all heads of one sequence: element c of row r of head h lies at data[h·headStride + r·rowStride + c].
// Strides count elements.
struct HeadRows {
  void* data = nullptr;
  Index headStride = 0;
  Index rowStride = 0;
};

LA_INLINE void* rowOf(const HeadRows& rows, DataType type, Index head, Index row) {
  return elementAt(rows.data, type, head * rows.headStride + row * rows.rowStride);
}

// The same for rows that are only read and may be spread over pages: row r lies on page r / pageRows, at row
// r % pageRows of it. A plain tensor is one page. pageRows is a multiple of kKeyTile unless there is one page only.
struct PagedRows {
  const void* const* pages = nullptr;
  Index pageRows = 0;
  Index headStride = 0;
  Index rowStride = 0;
};

enum class MaskKind : std::uint8_t { kNone, kBool, kAdditive };

// Keys are visited in tiles of this many, counted from key 0. It is part of the result: rescaling happens between
// tiles, so every kernel row uses the same one.
constexpr Index kKeyTile = 128;
// A long key range read by few queries is split into ranges of this many keys, merged in ascending order. Where more
// than kSplitRows rows share a key/value head, ranges are longer in proportion, so that their states take no more
// memory.
constexpr Index kSplitKeys = 1024;
// "Few" by default: at most this many rows share one key/value head.
constexpr Index kSplitRows = 64;

struct FullSequence {
  Index queries = 0;    // query rows to compute
  Index queryRows = 0;  // rows of the output; those from `queries` on are zero, with lse = −∞
  Index keys = 0;       // key rows that exist
  Index offset = 0;     // query i stands at key position i + offset
  HeadRows query;
  HeadRows output;
  PagedRows key;
  PagedRows value;
  float* lse = nullptr;        // [heads, queryRows], natural logarithm; may be null
  const void* mask = nullptr;  // element (head, query, key) at head·maskHeadStride + query·maskQueryStride + key
};

struct FullProblem {
  DataType queryType = DataType::kFloat32;
  DataType keyType = DataType::kFloat32;  // of keys and values
  DataType outputType = DataType::kFloat32;
  Index heads = 0;
  Index kvHeads = 0;  // divides heads; query head h reads key/value head h / (heads / kvHeads)
  Index headDim = 0;
  Index valueDim = 0;
  float scale = 1;  // multiplies q·k before everything else
  // Whether scores, and with them `scale`, additive masks and lse, are in units of log2 rather than of the natural
  // logarithm: softmax is then 2^s over its sum, and nothing is rounded on the way from one unit to the other.
  bool base2 = false;
  float softcap = 0;  // s ← softcap·tanh(s / softcap); 0 = off
  // A query at position p sees keys p − left … p + right. Causal attention is right = 0.
  Index left = kOpen;
  Index right = kOpen;
  MaskKind maskKind = MaskKind::kNone;
  Index maskHeadStride = 0;
  Index maskQueryStride = 0;
  const float* sinks = nullptr;  // [heads] logits that take part in the denominator only; may be null
  // Key ranges of sequences with at most so many rows a key/value head are split.
  Index splitRows = kSplitRows;
  const FullSequence* sequences = nullptr;
  Index sequenceCount = 0;

  // Far beyond any length, yet safe to add to one.
  static constexpr Index kOpen = Index{1} << 48;
};

// Half-open range of keys.
struct KeyRange {
  Index begin = 0;
  Index end = 0;
};

// Keys that query `i` of the sequence may see before masks are looked at. No key at all is {kOpen, 0}, which adds
// nothing to a union of ranges and lies in no tile.
LA_INLINE KeyRange visibleKeys(const FullProblem& problem, const FullSequence& sequence, Index i) {
  const Index position = i + sequence.offset;
  const Index begin = maximum(0, position - problem.left);
  const Index end = minimum(sequence.keys, position + problem.right + 1);
  if (begin >= end) return {FullProblem::kOpen, 0};
  return {begin, end};
}

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_FULL_H_
