// The tensors of a call on queries, keys and values: what every method of attention reads first.
#ifndef LOWRANK_ATTENTION_BINDING_QKV_H_
#define LOWRANK_ATTENTION_BINDING_QKV_H_

#include "binding/operands.h"
#include "core/qkv.h"

namespace lowrank_attention {

// Operands and numbers of such a call begin so; lib/qkv.ts writes them.
struct QkvOperands {
  enum : std::size_t { kQuery, kKey, kValue, kOutput, kCount };
};
struct QkvNumbers {
  enum : std::size_t {
    kQueryType,
    kKeyType,
    kOutputType,
    kBatch,
    kHeads,
    kKvHeads,
    kQueries,
    kKeys,
    kHeadDim,
    kValueDim,
    kRowsBeforeHeads,  // 1: [batch, length, heads, dim]
    kCount
  };
};

// The rows of a dense tensor of the call, once its extents are known to fit.
BatchRows readRows(Operands& operands, std::size_t index, const char* name, DataType type, Index batch, Index heads,
                   Index length, Index dim, bool rowsBeforeHeads);

// Extents and memory that fit each other, or a failure noted in `operands`. Without a failure products of extents are
// safe from overflow, as long as there is at least one query: nothing else says how large the others may be.
Qkv readQkv(Operands& operands);

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_BINDING_QKV_H_
