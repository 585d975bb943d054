#include "core/nystrom.h"

#include "binding/ops.h"
#include "binding/qkv.h"
#include "binding/task.h"

namespace lowrank_attention {

namespace {

struct NystromOperands {
  enum : std::size_t {
    kQueryPositions = QkvOperands::kCount,
    kKeyPositions,
    kConvFilters,
    kQueryMask,
    kKeyMask,
    kCount
  };
};

// After QkvNumbers.
struct NystromNumbers {
  enum : std::size_t {
    kScale = QkvNumbers::kCount,
    kLandmarks,
    kIterations,      // 0: by singular values
    kRegularization,  // of those
    kConvSize,
    kConvHeadStride,
    kCount
  };
};

// Positions of the landmarks, or null where they are segment means.
const std::int32_t* readPositions(Operands& operands, std::size_t index, Index landmarks, Index length) {
  const auto* positions = operands.optional<std::int32_t>(index, "landmarkIndices", napi_int32_array, landmarks);
  for (Index i = 0; i < landmarks && positions != nullptr && operands.ok(); ++i) {
    if (positions[i] < 0 || positions[i] >= length) operands.fail("landmarkIndices", "out of range");
  }
  return positions;
}

// Operations of the call: 2 per multiply-add of its products.
double operationsOf(const NystromProblem& problem) {
  const Qkv& qkv = problem.qkv;
  const double landmarks = static_cast<double>(problem.landmarks);
  const double rows = static_cast<double>(qkv.queries + qkv.keys);
  const double attended = rows * landmarks * static_cast<double>(qkv.headDim + qkv.valueDim);
  // A singular value decomposition costs about as much as a dozen products.
  const double products = problem.inverse == PseudoInverse::kSvd ? 12 : 4 * static_cast<double>(problem.iterations);
  const double inverted = products * landmarks * landmarks * landmarks;
  const double convolved = static_cast<double>(qkv.queries) * static_cast<double>(qkv.valueDim) *
                           static_cast<double>(minimum(problem.convSize, 2 * qkv.keys));
  return 2 * static_cast<double>(qkv.batch) * static_cast<double>(qkv.heads) * (attended + inverted + convolved);
}

}  // namespace

Napi::Value nystrom(const Napi::CallbackInfo& info) {
  Operands operands(info, NystromOperands::kCount, NystromNumbers::kCount);
  if (!operands.ok()) return statusValue(info.Env(), operands.status());
  NystromProblem problem;
  problem.qkv = readQkv(operands);
  const Qkv& qkv = problem.qkv;
  problem.scale = static_cast<float>(operands.number(NystromNumbers::kScale));
  problem.landmarks = operands.extent(NystromNumbers::kLandmarks, "landmarks");
  problem.iterations = operands.extent(NystromNumbers::kIterations, "iterations");
  problem.inverse = problem.iterations == 0 ? PseudoInverse::kSvd : PseudoInverse::kIterative;
  problem.regularization = operands.number(NystromNumbers::kRegularization);
  problem.convSize = operands.extent(NystromNumbers::kConvSize, "convKernel");
  problem.convHeadStride = operands.extent(NystromNumbers::kConvHeadStride, "convKernel");
  if (problem.landmarks > minimum(qkv.queries, qkv.keys)) operands.fail("landmarks", "more than there are positions");
  if (problem.convHeadStride != 0 && problem.convHeadStride != problem.convSize) {
    operands.fail("convKernel", "a stride that does not fit");
  }
  if (!operands.ok() || qkv.batch == 0 || qkv.queries == 0) return statusValue(info.Env(), operands.status());

  problem.queryPositions = readPositions(operands, NystromOperands::kQueryPositions, problem.landmarks, qkv.queries);
  problem.keyPositions = readPositions(operands, NystromOperands::kKeyPositions, problem.landmarks, qkv.keys);
  if (problem.convSize > 0) {
    const Index heads = problem.convHeadStride == 0 ? 1 : qkv.heads;
    problem.convFilters = static_cast<const float*>(operands.tensor(
        operands.array(NystromOperands::kConvFilters), "convKernel", DataType::kFloat32, {heads, problem.convSize}));
    if (problem.convSize % 2 == 0 || qkv.keys != qkv.queries)
      operands.fail("convKernel", "an extent that does not fit");
  }
  problem.queryMask = operands.optional<std::uint8_t>(NystromOperands::kQueryMask, "queryMask", napi_uint8_array,
                                                      qkv.batch * qkv.queries);
  problem.keyMask =
      operands.optional<std::uint8_t>(NystromOperands::kKeyMask, "keyMask", napi_uint8_array, qkv.batch * qkv.keys);
  return runKernel(info, operands.status(), &KernelSet::nystrom, problem, operationsOf(problem));
}

}  // namespace lowrank_attention
