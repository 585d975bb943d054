#include "binding/lrkv_model.h"

namespace lowrank_attention {

namespace {

Index sumOf(const std::vector<std::int32_t>& ranks) {
  Index sum = 0;
  for (const std::int32_t rank : ranks) sum += rank;
  return sum;
}

// Where the parts of one side stand among the operands and numbers, and what messages call them.
struct Side {
  std::size_t up;
  std::size_t gauge;
  std::size_t ranks;
  std::size_t dim;
  std::size_t baseDim;
  const char* upName;
  const char* gaugeName;
  const char* ranksName;
  const char* baseName;
};
constexpr Side kKeySide{LrkvModelOperands::kKeyUp,
                        LrkvModelOperands::kKeyGauge,
                        LrkvModelOperands::kKeyRanks,
                        LrkvModelNumbers::kHeadDim,
                        LrkvModelNumbers::kKeyBaseDim,
                        "keyUp",
                        "keyGauge",
                        "keyRanks",
                        "keyBase"};
constexpr Side kValueSide{LrkvModelOperands::kValueUp,
                          LrkvModelOperands::kValueGauge,
                          LrkvModelOperands::kValueRanks,
                          LrkvModelNumbers::kValueDim,
                          LrkvModelNumbers::kValueBaseDim,
                          "valueUp",
                          "valueGauge",
                          "valueRanks",
                          "valueBase"};

LrkvFactors readFactors(Operands& operands, std::size_t firstOperand, std::size_t firstNumber, const Side& side,
                        Index kvHeads, std::vector<std::int32_t>* ranks) {
  LrkvFactors factors;
  factors.dim = operands.extent(firstNumber + side.dim, side.upName, 1);
  factors.baseDim = operands.extent(firstNumber + side.baseDim, side.baseName);
  const auto* given =
      operands.required<const std::int32_t>(firstOperand + side.ranks, side.ranksName, napi_int32_array, {kvHeads});
  // Not even the sum of an extent and a padded one may overflow.
  if (static_cast<double>(factors.dim) > kMaxRow) operands.fail(side.upName, "a head too large");
  if (static_cast<double>(factors.baseDim) > kMaxRow) operands.fail(side.baseName, "a base too large");
  if (!operands.ok()) return factors;
  ranks->assign(given, given + kvHeads);
  for (const std::int32_t rank : *ranks) {
    if (rank < 0) operands.fail(side.ranksName, "a rank below 0");
  }
  if (!operands.ok()) return factors;
  factors.ranks = ranks->data();
  factors.up = operands.required<const float>(firstOperand + side.up, side.upName, napi_float32_array,
                                              {sumOf(*ranks), factors.dim});
  factors.gauge = operands.optional<const float>(firstOperand + side.gauge, side.gaugeName, napi_float32_array,
                                                 {kvHeads, factors.baseDim, factors.dim});
  if (factors.gauge == nullptr && factors.baseDim != 0 && factors.baseDim != factors.dim)
    operands.fail(side.baseName, "a base that no gauge fits to the heads");
  return factors;
}

// The rotary embedding of a model whose factors are read.
void readRope(Operands& operands, std::size_t firstOperand, std::size_t firstNumber,
              const std::vector<std::int32_t>& ranks, LrkvModel* model) {
  const auto choice = [&](std::size_t number, Index last) {
    const Index value = operands.extent(firstNumber + number, "rope");
    if (value > last) operands.fail("rope", "unknown");
    return value;
  };
  model->rope = static_cast<LrkvRope>(choice(LrkvModelNumbers::kRope, static_cast<Index>(LrkvRope::kPaper)));
  model->pairing = static_cast<Pairing>(choice(LrkvModelNumbers::kPairing, static_cast<Index>(Pairing::kInterleaved)));
  model->firstPosition = operands.extent(firstNumber + LrkvModelNumbers::kFirstPosition, "rope");
  if (!operands.ok() || model->rope == LrkvRope::kOff) return;

  if (model->key.dim % 2 != 0) operands.fail("rope", "an odd head size");
  model->frequencies = operands.required<const double>(firstOperand + LrkvModelOperands::kFrequencies, "rope",
                                                       napi_float64_array, {model->key.dim / 2});
  // But for whole keys the base is rotated by itself, as a head is.
  if (model->rope != LrkvRope::kExact && model->key.baseDim != 0 && model->key.baseDim != model->key.dim)
    operands.fail("keyBase", "a base that the rotation of a head does not fit");
  if (model->rope != LrkvRope::kLatent && model->rope != LrkvRope::kPaper) return;
  for (const std::int32_t rank : ranks) {
    if (rank % 2 != 0) operands.fail("keyRanks", "an odd rank of latents that are rotated");
  }
  model->latentFrequencies =
      operands.required<const double>(firstOperand + LrkvModelOperands::kLatentFrequencies, "latentFrequencies",
                                      napi_float64_array, {sumOf(ranks) / 2});
}

RmsNorm readNorm(Operands& operands, std::size_t firstOperand, std::size_t firstNumber, Index dim) {
  RmsNorm norm;
  norm.on = operands.flag(firstNumber + LrkvModelNumbers::kNorm);
  norm.epsilon = operands.number(firstNumber + LrkvModelNumbers::kEpsilon);
  norm.order = operands.flag(firstNumber + LrkvModelNumbers::kGainOrder) ? GainOrder::kAfterRotation
                                                                         : GainOrder::kBeforeRotation;
  norm.gain =
      operands.optional<const float>(firstOperand + LrkvModelOperands::kGain, "keyNorm", napi_float32_array, dim);
  return norm;
}

// Elements of all heads in a row as it is stored, with its scales. As a double, which cannot overflow.
double storedElements(const LrkvModel& model) {
  double elements = static_cast<double>(storedKeyBase(model) + model.value.baseDim);
  for (Index head = 0; head < model.kvHeads; ++head) {
    elements += static_cast<double>(storedKeyWidth(model, head) + storedValueWidth(model, head) + 1);
  }
  return elements;
}

}  // namespace

LrkvModel readLrkvModel(Operands& operands, std::size_t firstOperand, std::size_t firstNumber, LrkvRanks* ranks) {
  LrkvModel model;
  model.kvHeads = operands.extent(firstNumber + LrkvModelNumbers::kKvHeads, "kvHeads", 1);
  model.key = readFactors(operands, firstOperand, firstNumber, kKeySide, model.kvHeads, &ranks->key);
  model.value = readFactors(operands, firstOperand, firstNumber, kValueSide, model.kvHeads, &ranks->value);
  if (!operands.ok()) return model;
  readRope(operands, firstOperand, firstNumber, ranks->key, &model);
  model.norm = readNorm(operands, firstOperand, firstNumber, model.key.dim);
  if (model.key.baseDim + sumOf(ranks->key) + model.value.baseDim + sumOf(ranks->value) == 0)
    operands.fail("keyBase", "rows without elements");
  if (storedElements(model) > kMaxRow) operands.fail("keyBase", "rows too large");
  return model;
}

LrkvRows readLrkvRows(Operands& operands, std::size_t firstOperand, DataType type, Index batch, Index count,
                      const LrkvModel& model, const LrkvRanks& ranks) {
  const auto read = [&](std::size_t part, const char* name, Index columns) -> const void* {
    return operands.tensor(operands.array(firstOperand + part), name, type, {batch, count, columns});
  };
  LrkvRows rows;
  rows.type = type;
  rows.keyBase = read(LrkvRowOperands::kKeyBase, "keyBase", model.key.baseDim);
  rows.keyLatent = read(LrkvRowOperands::kKeyLatent, "keyLatent", sumOf(ranks.key));
  rows.valueBase = read(LrkvRowOperands::kValueBase, "valueBase", model.value.baseDim);
  rows.valueLatent = read(LrkvRowOperands::kValueLatent, "valueLatent", sumOf(ranks.value));
  return rows;
}

LrkvRows rowsFrom(const LrkvRows& rows, Index first, const LrkvModel& model, const LrkvRanks& ranks) {
  const auto skip = [&](const void* data, Index columns) { return elementAt(data, rows.type, first * columns); };
  return {rows.type, skip(rows.keyBase, model.key.baseDim), skip(rows.keyLatent, sumOf(ranks.key)),
          skip(rows.valueBase, model.value.baseDim), skip(rows.valueLatent, sumOf(ranks.value))};
}

double storeOperations(const LrkvModel& model, const LrkvRanks& ranks, Index count) {
  const auto product = [](Index a, Index b) { return static_cast<double>(a) * static_cast<double>(b); };
  double row = storedElements(model);
  // Whole keys, and the means of normalised ones, are products with the factors.
  if (model.rope == LrkvRope::kExact || model.norm.on) {
    row += 2 * product(sumOf(ranks.key), model.key.dim);
    if (model.key.gauge != nullptr)
      row += 2 * product(model.key.baseDim, model.key.dim) * static_cast<double>(model.kvHeads);
  }
  return row * static_cast<double>(count);
}

void setLayout(const LrkvLayout& layout, LrkvProblem* problem) {
  problem->layout = layout;
  problem->full.keyType = layout.type;
  problem->full.kvHeads = problem->model.kvHeads;
  problem->full.headDim = problem->model.key.dim;
  problem->full.valueDim = problem->model.value.dim;
}

double operationsOf(const LrkvProblem& problem) {
  const LrkvLayout& layout = problem.layout;
  const double heads = static_cast<double>(problem.full.heads);
  const double bases = static_cast<double>(layout.keyBaseDim + layout.valueBaseDim);
  const double latents = static_cast<double>(layout.keyStarts[layout.kvHeads] + layout.valueStarts[layout.kvHeads]);
  return operationsOf(problem.full, heads * bases + heads / static_cast<double>(layout.kvHeads) * latents);
}

}  // namespace lowrank_attention
