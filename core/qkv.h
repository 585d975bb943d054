// Queries, keys, values and output of one call on tensors, whatever the method.
#ifndef LOWRANK_ATTENTION_CORE_QKV_H_
#define LOWRANK_ATTENTION_CORE_QKV_H_

#include "core/full.h"

namespace lowrank_attention {

// Rows of all heads of all batch items: element c of row r of head h of item b lies at
// data[b·batchStride + h·headStride + r·rowStride + c]. Strides count elements.
struct BatchRows {
  void* data = nullptr;
  Index batchStride = 0;
  Index headStride = 0;
  Index rowStride = 0;
};

// The rows of a dense tensor [batch, heads, length, dim], or [batch, length, heads, dim] with `rowsBeforeHeads`.
LA_INLINE BatchRows denseRows(void* data, Index heads, Index length, Index dim, bool rowsBeforeHeads) {
  return {data, heads * length * dim, rowsBeforeHeads ? dim : length * dim, rowsBeforeHeads ? heads * dim : dim};
}

// Row `row` of a head.
LA_INLINE void* rowOf(const BatchRows& rows, DataType type, Index item, Index head, Index row) {
  return elementAt(rows.data, type, item * rows.batchStride + head * rows.headStride + row * rows.rowStride);
}

struct Qkv {
  DataType queryType = DataType::kFloat32;
  DataType keyType = DataType::kFloat32;  // of keys and values
  DataType outputType = DataType::kFloat32;
  Index batch = 0;
  Index heads = 0;
  Index kvHeads = 0;  // divides heads; query head h reads key/value head h / (heads / kvHeads)
  Index queries = 0;
  Index keys = 0;
  Index headDim = 0;
  Index valueDim = 0;
  BatchRows query;   // heads × queries × headDim
  BatchRows key;     // kvHeads × keys × headDim
  BatchRows value;   // kvHeads × keys × valueDim
  BatchRows output;  // heads × queries × valueDim
};

LA_INLINE HeadRows headRows(const BatchRows& rows, DataType type, Index item) {
  return {elementAt(rows.data, type, item * rows.batchStride), rows.headStride, rows.rowStride};
}

// `page` is where the address of the one page will lie.
LA_INLINE PagedRows pagedRows(const BatchRows& rows, DataType type, Index item, Index length, const void** page) {
  *page = elementAt(rows.data, type, item * rows.batchStride);
  return {page, maximum(length, 1), rows.headStride, rows.rowStride};
}

// Batch item `item` as a sequence of exact attention: all its queries over all its keys, the last query at the last
// key. `pages` has room for two addresses and lives as long as the sequence.
LA_INLINE FullSequence sequenceOf(const Qkv& tensors, Index item, const void** pages) {
  FullSequence sequence;
  sequence.queries = tensors.queries;
  sequence.queryRows = tensors.queries;
  sequence.keys = tensors.keys;
  sequence.offset = tensors.keys - tensors.queries;
  sequence.query = headRows(tensors.query, tensors.queryType, item);
  sequence.output = headRows(tensors.output, tensors.outputType, item);
  sequence.key = pagedRows(tensors.key, tensors.keyType, item, tensors.keys, pages);
  sequence.value = pagedRows(tensors.value, tensors.keyType, item, tensors.keys, pages + 1);
  return sequence;
}

// Exact attention over the batch, one sequence an item; the caller sets `sequences` and all that is not a shape.
LA_INLINE FullProblem fullProblemOf(const Qkv& tensors) {
  FullProblem problem;
  problem.queryType = tensors.queryType;
  problem.keyType = tensors.keyType;
  problem.outputType = tensors.outputType;
  problem.heads = tensors.heads;
  problem.kvHeads = tensors.kvHeads;
  problem.headDim = tensors.headDim;
  problem.valueDim = tensors.valueDim;
  problem.sequenceCount = tensors.batch;
  return problem;
}

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_QKV_H_
