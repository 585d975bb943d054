#include "binding/qkv.h"

namespace lowrank_attention {

BatchRows readRows(Operands& operands, std::size_t index, const char* name, DataType type, Index batch, Index heads,
                   Index length, Index dim, bool rowsBeforeHeads) {
  void* data = operands.tensor(operands.array(index), name, type, {batch, heads, length, dim});
  // Without rows no extent is bounded by memory that exists.
  const bool any = operands.ok() && batch > 0 && length > 0;
  return any ? denseRows(data, heads, length, dim, rowsBeforeHeads) : BatchRows();
}

Qkv readQkv(Operands& operands) {
  Qkv qkv;
  qkv.queryType = operands.dataType(QkvNumbers::kQueryType, "q");
  qkv.keyType = operands.dataType(QkvNumbers::kKeyType, "k");
  qkv.outputType = operands.dataType(QkvNumbers::kOutputType, "out");
  qkv.batch = operands.extent(QkvNumbers::kBatch, "q");
  qkv.heads = operands.extent(QkvNumbers::kHeads, "q", 1);
  qkv.kvHeads = operands.extent(QkvNumbers::kKvHeads, "k", 1);
  qkv.queries = operands.extent(QkvNumbers::kQueries, "q");
  qkv.keys = operands.extent(QkvNumbers::kKeys, "k");
  qkv.headDim = operands.extent(QkvNumbers::kHeadDim, "q", 1);
  qkv.valueDim = operands.extent(QkvNumbers::kValueDim, "v", 1);
  const bool rowsBeforeHeads = operands.flag(QkvNumbers::kRowsBeforeHeads);
  if (qkv.heads % qkv.kvHeads != 0) operands.fail("k", "heads do not divide");
  if (!operands.ok()) return qkv;

  const auto rows = [&](std::size_t index, const char* name, DataType type, Index heads, Index length, Index dim) {
    return readRows(operands, index, name, type, qkv.batch, heads, length, dim, rowsBeforeHeads);
  };
  qkv.query = rows(QkvOperands::kQuery, "q", qkv.queryType, qkv.heads, qkv.queries, qkv.headDim);
  qkv.key = rows(QkvOperands::kKey, "k", qkv.keyType, qkv.kvHeads, qkv.keys, qkv.headDim);
  qkv.value = rows(QkvOperands::kValue, "v", qkv.keyType, qkv.kvHeads, qkv.keys, qkv.valueDim);
  qkv.output = rows(QkvOperands::kOutput, "out", qkv.outputType, qkv.heads, qkv.queries, qkv.valueDim);
  return qkv;
}

}  // namespace lowrank_attention
