// Landmarks of Nyström attention: which are alive, and the means they are. See core/nystrom.h.
#ifndef LOWRANK_ATTENTION_CPU_LANDMARKS_H_
#define LOWRANK_ATTENTION_CPU_LANDMARKS_H_

#include "core/nystrom.h"
#include "cpu/simd.h"

namespace lowrank_attention::HWY_NAMESPACE {

LA_INLINE bool isLive(const std::uint8_t* mask, Index position) { return mask == nullptr || mask[position] != 0; }

LA_INLINE bool anyLive(const std::uint8_t* mask, KeyRange range) {
  for (Index position = range.begin; position < range.end; ++position) {
    if (isLive(mask, position)) return true;
  }
  return false;
}

// One side of a batch item, queries or keys: where its landmarks come from.
struct LandmarkSource {
  const BatchRows& rows;
  DataType type;
  Index length;
  const std::int32_t* positions;
  const std::uint8_t* mask;  // of the batch item
};

LA_INLINE LandmarkSource querySource(const NystromProblem& problem, Index item) {
  const Qkv& qkv = problem.qkv;
  const std::uint8_t* mask = problem.queryMask == nullptr ? nullptr : problem.queryMask + item * qkv.queries;
  return {qkv.query, qkv.queryType, qkv.queries, problem.queryPositions, mask};
}

LA_INLINE LandmarkSource keySource(const NystromProblem& problem, Index item) {
  const Qkv& qkv = problem.qkv;
  const std::uint8_t* mask = problem.keyMask == nullptr ? nullptr : problem.keyMask + item * qkv.keys;
  return {qkv.key, qkv.keyType, qkv.keys, problem.keyPositions, mask};
}

// Lists the landmarks of a batch item that have a valid query and a valid key each. Returns their number.
LA_INLINE Index findLandmarks(const NystromProblem& problem, Index item, Index* live) {
  const LandmarkSource query = querySource(problem, item);
  const LandmarkSource key = keySource(problem, item);
  Index count = 0;
  for (Index i = 0; i < problem.landmarks; ++i) {
    if (anyLive(query.mask, landmarkRange(query.length, problem.landmarks, query.positions, i)) &&
        anyLive(key.mask, landmarkRange(key.length, problem.landmarks, key.positions, i))) {
      live[count++] = i;
    }
  }
  return count;
}

// sum += row
LA_INLINE void addRow(const float* row, Index count, float* sum) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  Index c = 0;
  for (; c + n <= count; c += n) hn::StoreU(hn::Add(hn::LoadU(d, sum + c), hn::LoadU(d, row + c)), d, sum + c);
  for (; c < count; ++c) sum[c] += row[c];
}

// mean [dim] = Σ live rows of the range / their number; there is at least one. `scratch` holds a row.
LA_INLINE void meanOfRows(const LandmarkSource& source, KeyRange range, Index item, Index head, Index dim,
                          float* scratch, float* mean) {
  Index count = 0;
  for (Index position = range.begin; position < range.end; ++position) {
    if (!isLive(source.mask, position)) continue;
    const void* row = rowOf(source.rows, source.type, item, head, position);
    if (count++ == 0) {
      convertRow(source.type, row, DataType::kFloat32, mean, dim);
    } else {
      addRow(asFloat32(source.type, row, dim, scratch), dim, mean);
    }
  }
  for (Index c = 0; c < dim; ++c) mean[c] /= static_cast<float>(count);
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LANDMARKS_H_
