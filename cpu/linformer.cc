// Linformer on the CPU. See core/linformer.h for the mathematics. One call is three passes:
//
//   project: sums of E·K and F·V over a range of keys, in float32
//   merge:   the ranges of each element in ascending order, with the state if there is one: K' and V'
//   attend:  exact attention over K' and V' (cpu/full.h)
//
// Projecting is as much work as attending where queries are as many as keys, so it runs as a matrix product in cache
// blocks: rows of E are broadcast against panels of keys whose lanes are head elements. Rows of E lie maxLength apart,
// often a power of two, at which they would share few cache sets; so a block of E is copied, once for all heads that
// stand side by side in the panels because they share E, and for their values too where F is E.
// Per key and element of a head: 2·projected operations; E is read once a group of heads, keys and values once a row
// block.

#include "core/linformer.h"

#include "cpu/arena.h"
#include "cpu/flash.h"
#include "cpu/kernels.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr Index kProjectWidth = 2 * kLanes<Full>;  // of a panel
constexpr Index kProjectDepth = 256;               // keys of a block: a panel of them lies in L1
constexpr Index kProjectRows = 288;                // of E in a block, a multiple of 6 and of 12: 288 KiB of L2
constexpr Index kProjectColumns = 256;             // head elements that use a copied block of E
constexpr Index kLeastProjectRows = 48;            // fewer do not pay for staging the keys
constexpr Index kMergedRows = 64;                  // of K' and V' in a unit of merging

// Keys are summed in ranges of at least kProjectRangeKeys, so that few heads keep many threads busy. Ranges depend on
// the number of keys alone: neither the batch nor the number of threads can change a bit of the result.
constexpr Index kProjectRangeKeys = 2048;
constexpr Index kMaxProjectRanges = 8;

// What one unit projects with one matrix: keys, values, or both.
struct ProjectionSide {
  Projection projection;
  Index keyColumns = 0;  // of a head: headDim or none
  Index valueColumns = 0;
  Index groupHeads = 0;  // heads, of any batch items, side by side in one unit
  Index groups = 0;      // of a matrix
  Index stride = 0;      // floats of a row of a group's sums
  Index firstUnit = 0;
  Index firstSum = 0;  // sums lie as [matrix][group][range][projected][stride]

  LA_METHOD Index columns() const { return keyColumns + valueColumns; }
};

struct LinformerPlan {
  ProjectionSide sides[2];
  Index sideCount = 0;
  Index matrices = 0;  // of one side: one a key/value head, or one for all
  Index sharers = 0;   // (item, head) pairs that share a matrix
  Index ranges = 0;
  Index rangeKeys = 0;
  Index rowBlocks = 0;
  Index blockRows = 0;
  Index units = 0;
  Index sums = 0;  // floats
};

// Fills in the groups, units and places of sums for so many columns a group and rows a block.
LA_INLINE void cutPlan(const LinformerProblem& problem, Index columns, Index rows, LinformerPlan* plan) {
  plan->rowBlocks = divideUp(problem.projected, rows);
  plan->blockRows = divideUp(problem.projected, plan->rowBlocks);
  plan->units = 0;
  plan->sums = 0;
  for (Index s = 0; s < plan->sideCount; ++s) {
    ProjectionSide& side = plan->sides[s];
    side.groups = divideUp(plan->sharers, maximum(1, columns / side.columns()));
    side.groupHeads = divideUp(plan->sharers, side.groups);
    side.stride = roundUp(side.groupHeads * side.columns(), kProjectWidth);
    side.firstUnit = plan->units;
    side.firstSum = plan->sums;
    plan->units += plan->matrices * side.groups * plan->ranges * plan->rowBlocks;
    plan->sums += plan->matrices * side.groups * plan->ranges * problem.projected * side.stride;
  }
}

LA_INLINE LinformerPlan planLinformer(const LinformerProblem& problem, Index threads) {
  const Qkv& qkv = problem.qkv;
  LinformerPlan plan;
  const bool perHead = problem.keyProjection.headStride != 0;
  plan.matrices = perHead ? qkv.kvHeads : 1;
  plan.sharers = perHead ? qkv.batch : qkv.batch * qkv.kvHeads;
  const bool joint = problem.keyProjection.data == problem.valueProjection.data;
  plan.sideCount = joint ? 1 : 2;
  plan.sides[0].projection = problem.keyProjection;
  plan.sides[1].projection = problem.valueProjection;
  plan.sides[0].keyColumns = qkv.headDim;
  plan.sides[joint ? 0 : 1].valueColumns = qkv.valueDim;
  if (qkv.keys > 0) {
    plan.ranges = maximum(1, minimum(kMaxProjectRanges, qkv.keys / kProjectRangeKeys));
    plan.rangeKeys = roundUp(divideUp(qkv.keys, plan.ranges), kProjectDepth);
    plan.ranges = divideUp(qkv.keys, plan.rangeKeys);
  }

  // Few units are cut finer, so that all threads have work. It costs copies: of E for narrower groups, of keys for
  // lower blocks; so the larger extent is halved.
  Index columns = kProjectColumns;
  Index rows = minimum(kProjectRows, problem.projected);
  const Index least = maximum(plan.sides[0].columns(), plan.sides[1].columns());
  cutPlan(problem, columns, rows, &plan);
  while (threads > 1 && plan.units < 4 * threads && (columns > least || rows > kLeastProjectRows)) {
    if (columns > least && (columns >= rows || rows <= kLeastProjectRows)) {
      columns /= 2;
    } else {
      rows = roundUp(rows / 2, 12);
    }
    cutPlan(problem, columns, rows, &plan);
  }
  return plan;
}

// Scratch of one worker that projects.
struct ProjectScratch {
  float* block = nullptr;   // of E, [blockRows][kProjectDepth]
  float* panels = nullptr;  // see stageKeys
  float* row = nullptr;     // of all heads of a group
};

LA_INLINE ProjectScratch placeProjectScratch(const LinformerPlan& plan, Arena& arena) {
  const Index stride = maximum(plan.sides[0].stride, plan.sides[1].stride);
  ProjectScratch scratch;
  scratch.block = arena.take<float>(plan.blockRows * kProjectDepth);
  scratch.panels = arena.take<float>(kProjectDepth * stride);
  scratch.row = arena.take<float>(stride);
  return scratch;
}

// Where everything lies in the workspace: K' and V', then what projecting needs and attending, after it, may overwrite.
struct LinformerWorkspace {
  LinformerPlan plan;
  float* projected = nullptr;  // as the state: K' of all items and heads, then V'; not there without queries
  float* sums = nullptr;
  std::byte* workers = nullptr;
  Index workerBytes = 0;
  std::byte* attention = nullptr;
  std::size_t bytes = 0;
};

// The op's one workspace formula.
LA_INLINE LinformerWorkspace layOutLinformer(const LinformerProblem& problem, Index threads, std::byte* memory) {
  LinformerWorkspace space;
  space.plan = planLinformer(problem, threads);
  const bool attends = problem.qkv.queries > 0;
  Arena worker(nullptr);
  placeProjectScratch(space.plan, worker);
  // Whole pages a worker.
  space.workerBytes = roundUp(worker.bytes(), 4096);

  Arena arena(memory);
  if (attends) space.projected = arena.take<float>(linformerStateDoubles(problem));
  // The same memory twice, for one after the other.
  Arena attending = arena;
  space.sums = arena.take<float>(space.plan.sums);
  space.workers = arena.take<std::byte>(threads * space.workerBytes);
  if (attends) {
    const auto bytes = static_cast<Index>(fullWorkspaceBytes(projectedProblem(problem), threads));
    space.attention = attending.take<std::byte>(bytes);
  }
  space.bytes = static_cast<std::size_t>(maximum(arena.bytes(), attending.bytes()));
  return space;
}

// A key/value head of a batch item.
struct HeadPlace {
  Index item;
  Index head;
};

LA_INLINE HeadPlace headPlace(const LinformerProblem& problem, const LinformerPlan& plan, Index matrix, Index sharer) {
  if (plan.matrices > 1) return {sharer, matrix};
  return {sharer / problem.qkv.kvHeads, sharer % problem.qkv.kvHeads};
}

// Heads of one group and the keys of one range.
struct ProjectUnit {
  const ProjectionSide& side;
  Index matrix;
  Index firstSharer;
  Index heads;
  KeyRange keys;
  Index firstRow;  // of E
  Index rows;
  float* sums;  // of firstRow
};

LA_INLINE ProjectUnit projectUnit(const LinformerProblem& problem, const LinformerPlan& plan, Index unit, float* sums) {
  const ProjectionSide& side = plan.sides[plan.sideCount == 2 && unit >= plan.sides[1].firstUnit ? 1 : 0];
  const Index within = unit - side.firstUnit;
  const Index firstRow = within % plan.rowBlocks * plan.blockRows;
  const Index slot = within / plan.rowBlocks;  // of [matrix][group][range]
  const Index range = slot % plan.ranges;
  const Index group = slot / plan.ranges % side.groups;
  const Index firstSharer = group * side.groupHeads;
  return {side,
          slot / plan.ranges / side.groups,
          firstSharer,
          minimum(side.groupHeads, plan.sharers - firstSharer),
          {range * plan.rangeKeys, minimum((range + 1) * plan.rangeKeys, problem.qkv.keys)},
          firstRow,
          minimum(plan.blockRows, problem.projected - firstRow),
          sums + side.firstSum + (slot * problem.projected + firstRow) * side.stride};
}

// panels[p][j][lane]: the elements of all heads of the group side by side, zeros after the last one and where the mask
// hides. `row` holds one such row.
LA_INLINE void stageKeys(const LinformerProblem& problem, const LinformerPlan& plan, const ProjectUnit& unit,
                         KeyRange keys, float* row, float* panels) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const Qkv& qkv = problem.qkv;
  for (Index c = unit.heads * unit.side.columns(); c < unit.side.stride; ++c) row[c] = 0;
  for (Index j = keys.begin; j < keys.end; ++j) {
    float* at = row;
    for (Index h = 0; h < unit.heads; ++h) {
      const HeadPlace place = headPlace(problem, plan, unit.matrix, unit.firstSharer + h);
      const bool hidden = problem.keyMask != nullptr && problem.keyMask[place.item * qkv.keys + j] == 0;
      const auto stage = [&](const BatchRows& rows, Index dim) {
        if (hidden) {
          __builtin_memset(at, 0, static_cast<std::size_t>(4 * dim));
        } else {
          convertRow(qkv.keyType, rowOf(rows, qkv.keyType, place.item, place.head, j), DataType::kFloat32, at, dim);
        }
        at += dim;
      };
      if (unit.side.keyColumns > 0) stage(qkv.key, unit.side.keyColumns);
      if (unit.side.valueColumns > 0) stage(qkv.value, unit.side.valueColumns);
    }
    float* target = panels + (j - keys.begin) * kProjectWidth;
    for (Index c = 0; c < unit.side.stride; c += kProjectWidth) {
      hn::Store(hn::Load(d, row + c), d, target + c * kProjectDepth);
      hn::Store(hn::Load(d, row + c + n), d, target + c * kProjectDepth + n);
    }
  }
}

// sums[row][column] = Σ_j E[row][j]·(keys and values)[j][column] over the unit's keys. Blocks are summed one by one and
// then added, so that rounding errors grow with the number of blocks, not of keys.
static void projectRange(const LinformerProblem& problem, const LinformerPlan& plan, const ProjectUnit& unit,
                         const ProjectScratch& scratch, const Execution& execution) {
  const Full d;
  constexpr Index width = kProjectWidth;
  const Index stride = unit.side.stride;
  float* block = scratch.block;
  float* panels = scratch.panels;
  forTiles(unit.keys, kProjectDepth, [&](KeyRange keys) {
    if (execution.aborted()) return false;
    const Index depth = keys.end - keys.begin;
    const Index column = problem.firstColumn + keys.begin;
    const Index first = unit.matrix * unit.side.projection.headStride + unit.firstRow * problem.maxLength + column;
    for (Index r = 0; r < unit.rows; ++r) {
      const void* source = elementAt(unit.side.projection.data, problem.projectionType, first + r * problem.maxLength);
      convertRow(problem.projectionType, source, DataType::kFloat32, block + r * kProjectDepth, depth);
    }
    stageKeys(problem, plan, unit, keys, scratch.row, panels);
    const bool fresh = keys.begin == unit.keys.begin;
    for (Index c = 0; c < stride; c += width) {
      forRowGroups<kMaxRows<2>>(unit.rows, [&](Index top, auto size) {
        float* out = unit.sums + top * stride + c;
        outerProduct<decltype(size)::value, 2>(
            d, block + top * kProjectDepth, kProjectDepth, 1, panels + c * kProjectDepth, width, depth,
            [&](int, int) { return hn::Zero(d); },
            [&](int r, int v, Vec<Full> sum) {
              float* place = out + r * stride + v * kLanes<Full>;
              hn::Store(fresh ? sum : hn::Add(hn::Load(d, place), sum), d, place);
            });
      });
    }
    return true;
  });
}

// K' or V' of one head, rows [first, last): the state, if there is one, and the sums of all ranges in ascending order.
// `target`, if not null, gets it in float32.
static void mergeRanges(const LinformerProblem& problem, const LinformerPlan& plan, HeadPlace place, bool isValue,
                        Index first, Index last, const float* sums, float* target) {
  const Qkv& qkv = problem.qkv;
  const ProjectionSide& side = plan.sides[isValue ? plan.sideCount - 1 : 0];
  const Index head = place.item * qkv.kvHeads + place.head;
  const Index matrix = plan.matrices > 1 ? place.head : 0;
  const Index sharer = plan.matrices > 1 ? place.item : head;
  const Index dim = isValue ? qkv.valueDim : qkv.headDim;
  const Index rangeStride = problem.projected * side.stride;
  const float* source = sums + side.firstSum +
                        (matrix * side.groups + sharer / side.groupHeads) * plan.ranges * rangeStride +
                        sharer % side.groupHeads * side.columns() + (isValue ? side.keyColumns : 0);
  const Index firstElement =
      (isValue ? qkv.batch * qkv.kvHeads * problem.projected * qkv.headDim : 0) + head * problem.projected * dim;
  constexpr Index kChunk = 64;
  for (Index row = first; row < last; ++row) {
    for (Index c = 0; c < dim; c += kChunk) {
      const Index count = minimum(kChunk, dim - c);
      const Index element = firstElement + row * dim + c;
      double sum[kChunk] = {};
      if (problem.stateIn != nullptr) {
        for (Index i = 0; i < count; ++i) sum[i] = problem.stateIn[element + i];
      }
      for (Index range = 0; range < plan.ranges; ++range) {
        const float* part = source + range * rangeStride + row * side.stride + c;
        for (Index i = 0; i < count; ++i) sum[i] += static_cast<double>(part[i]);
      }
      if (problem.stateOut != nullptr) {
        for (Index i = 0; i < count; ++i) problem.stateOut[element + i] = sum[i];
      }
      if (target != nullptr) {
        for (Index i = 0; i < count; ++i) target[element + i] = static_cast<float>(sum[i]);
      }
    }
  }
}

std::size_t linformerWorkspaceBytes(const LinformerProblem& problem, Index threads) {
  return layOutLinformer(problem, threads, nullptr).bytes;
}

void runLinformer(const LinformerProblem& problem, const Execution& execution) {
  const LinformerWorkspace space = layOutLinformer(problem, execution.threads, execution.workspace);
  const LinformerPlan& plan = space.plan;
  const Qkv& qkv = problem.qkv;
  forEachUnit(execution, plan.units, [&](Index worker, Index index) {
    Arena arena(space.workers + worker * space.workerBytes);
    projectRange(problem, plan, projectUnit(problem, plan, index, space.sums), placeProjectScratch(plan, arena),
                 execution);
  });
  if (execution.aborted()) return;

  const Index heads = qkv.batch * qkv.kvHeads;
  const Index blocks = divideUp(problem.projected, kMergedRows);
  forEachUnit(execution, 2 * heads * blocks, [&](Index, Index index) {
    const Index first = index % blocks * kMergedRows;
    const Index head = index / blocks % heads;
    mergeRanges(problem, plan, {head / qkv.kvHeads, head % qkv.kvHeads}, index / blocks >= heads, first,
                minimum(first + kMergedRows, problem.projected), space.sums, space.projected);
  });
  if (execution.aborted() || qkv.queries == 0) return;

  const Index itemRows = qkv.kvHeads * problem.projected;
  for (Index item = 0; item < qkv.batch; ++item) {
    problem.pages[2 * item] = space.projected + item * itemRows * qkv.headDim;
    problem.pages[2 * item + 1] =
        space.projected + heads * problem.projected * qkv.headDim + item * itemRows * qkv.valueDim;
  }
  Execution attention = execution;
  attention.workspace = space.attention;
  runFull(projectedProblem(problem), attention);
}

}  // namespace lowrank_attention::HWY_NAMESPACE
