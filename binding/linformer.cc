#include "core/linformer.h"

#include "binding/full_problem.h"
#include "binding/ops.h"
#include "binding/qkv.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct LinformerOperands {
  enum : std::size_t {
    kKeyProjection = QkvOperands::kCount,
    kValueProjection,  // null: keyProjection
    kKeyMask,
    kStateIn,
    kStateOut,
    kCount
  };
};

struct LinformerNumbers {
  enum : std::size_t {
    kScale = QkvNumbers::kCount,
    kProjectionType,
    kProjected,
    kMaxLength,
    kPerHead,  // 1: a matrix for each key/value head
    kFirstColumn,
    kCount
  };
};

}  // namespace

Napi::Value linformer(const Napi::CallbackInfo& info) {
  Operands operands(info, LinformerOperands::kCount, LinformerNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  LinformerProblem problem;
  problem.qkv = readQkv(operands);
  problem.scale = static_cast<float>(operands.number(LinformerNumbers::kScale));
  problem.projectionType = operands.dataType(LinformerNumbers::kProjectionType, "keyProjection");
  problem.projected = operands.extent(LinformerNumbers::kProjected, "keyProjection", 1);
  problem.maxLength = operands.extent(LinformerNumbers::kMaxLength, "keyProjection", 1);
  problem.firstColumn = operands.extent(LinformerNumbers::kFirstColumn, "keyProjection");
  const Qkv& qkv = problem.qkv;
  if (operands.ok() && problem.firstColumn + qkv.keys > problem.maxLength) operands.fail("k", "more rows than columns");
  if (!operands.ok() || qkv.batch == 0) return statusValue(info.Env(), operands.status());

  // K' and V' lie in no array of the caller's unless there is a state, so nothing else says that they are of a size.
  const auto factor = [](Index extent) { return static_cast<unsigned __int128>(extent); };
  constexpr unsigned __int128 most = static_cast<unsigned __int128>(1) << 44;
  unsigned __int128 elements = factor(qkv.headDim) + factor(qkv.valueDim);
  for (const Index extent : {qkv.batch, qkv.kvHeads, problem.projected}) {
    elements *= factor(extent);
    if (elements > most) return statusValue(info.Env(), {Code::kMemory, "", "a call whose workspace does not fit"});
  }

  const bool perHead = operands.flag(LinformerNumbers::kPerHead);
  const auto projection = [&](const Array& array, const char* name) {
    void* data = operands.tensor(array, name, problem.projectionType,
                                 {perHead ? qkv.kvHeads : 1, problem.projected, problem.maxLength});
    return operands.ok() ? Projection{data, perHead ? problem.projected * problem.maxLength : 0} : Projection();
  };
  problem.keyProjection = projection(operands.array(LinformerOperands::kKeyProjection), "keyProjection");
  const Array valueProjection = operands.array(LinformerOperands::kValueProjection);
  problem.valueProjection =
      valueProjection.present ? projection(valueProjection, "valueProjection") : problem.keyProjection;
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  problem.keyMask =
      operands.optional<std::uint8_t>(LinformerOperands::kKeyMask, "keyMask", napi_uint8_array, qkv.batch * qkv.keys);
  const Index stateDoubles = linformerStateDoubles(problem);
  problem.stateIn = operands.optional<double>(LinformerOperands::kStateIn, "state", napi_float64_array, stateDoubles);
  problem.stateOut = operands.optional<double>(LinformerOperands::kStateOut, "state", napi_float64_array, stateDoubles);
  // Nothing is wanted, or nothing that exists bounds the extents.
  if (!operands.ok() || (qkv.queries == 0 && problem.stateOut == nullptr))
    return statusValue(info.Env(), operands.status());

  FullMemory memory;
  memory.sequences.resize(static_cast<std::size_t>(qkv.batch));
  memory.pages.resize(static_cast<std::size_t>(2 * qkv.batch));
  const Qkv projected = projectedQkv(qkv, problem.projected);
  for (Index item = 0; item < qkv.batch; ++item) {
    memory.sequences[static_cast<std::size_t>(item)] =
        sequenceOf(projected, item, &memory.pages[static_cast<std::size_t>(2 * item)]);
  }
  problem.sequences = memory.sequences.data();
  problem.pages = memory.pages.data();

  const double operations =
      2.0 * static_cast<double>(stateDoubles) * static_cast<double>(qkv.keys) + operationsOf(projectedProblem(problem));
  return runKernel(info, operands.status(), &KernelSet::linformer, problem, operations, std::move(memory));
}

}  // namespace lowrank_attention
