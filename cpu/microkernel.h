// The one inner loop of the package: a register tile of an outer product.
//
//   tile[r][lane] += Σ_k rows[r][k] · panel[k][lane]        r < kRows, lane < kVecs·lanes
//
// A scalar of `rows` is broadcast against kVecs vectors of `panel`. Cost per k: kRows broadcasts and kVecs loads for
// kRows·kVecs multiply-adds. Register budget: kRows·kVecs accumulators + kVecs of the panel + 1 broadcast:
// 16 registers hold 6 × 2 (15 used), 32 hold 12 × 2 (27 used).
#ifndef LOWRANK_ATTENTION_CPU_MICROKERNEL_H_
#define LOWRANK_ATTENTION_CPU_MICROKERNEL_H_

#include "cpu/simd.h"

namespace lowrank_attention::HWY_NAMESPACE {

template <int kVecs>
inline constexpr int kMaxRows = kRegisters == 32 ? 12 : (kVecs == 1 ? 12 : 6);

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

struct Nothing {
  LA_METHOD void operator()() const {}
};

// One tile. `init(r, v)` gives the first value of an accumulator, `finish(r, v, sum)` takes the last; `meanwhile()` is
// called at every step of the depth, to ask for memory that is needed later.
// The element (r, k) of `rows` lies at r·rowStride + k·depthStride.
template <int kRows, int kVecs, class D, class Init, class Finish, class Meanwhile = Nothing>
LA_INLINE void outerProduct(D d, const hn::TFromD<D>* HWY_RESTRICT rows, Index rowStride, Index depthStride,
                            const hn::TFromD<D>* HWY_RESTRICT panel, Index panelStride, Index depth, const Init& init,
                            const Finish& finish, const Meanwhile& meanwhile = {}) {
  Vec<D> sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[r][v] = init(r, v);
  }
  for (Index k = 0; k < depth; ++k) {
    meanwhile();
    Vec<D> columns[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) columns[v] = hn::LoadU(d, panel + v * kLanes<D>);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto scalar = hn::Set(d, rows[r * rowStride]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::MulAdd(scalar, columns[v], sum[r][v]);
    }
    rows += depthStride;
    panel += panelStride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) finish(r, v, sum[r][v]);
  }
}

// Calls body(Constant<rows>) for 1 <= rows <= kMax.
template <int kMax, class Body>
LA_INLINE void withRows(Index rows, const Body& body) {
  if constexpr (kMax == 1) {
    body(Constant<1>());
  } else {
    if (rows >= kMax) return body(Constant<kMax>());
    withRows<kMax - 1>(rows, body);
  }
}

// Cuts [0, count) into groups of at most kMax rows whose sizes differ by at most one, so that no group is left too
// small to hide the latency of a multiply-add, and calls body(first row, Constant<rows>).
template <int kMax, class Body>
LA_INLINE void forRowGroups(Index count, const Body& body) {
  Index groups = divideUp(count, kMax);
  for (Index row = 0; row < count; --groups) {
    const Index rows = divideUp(count - row, groups);
    withRows<kMax>(rows, [&](auto size) { body(row, size); });
    row += rows;
  }
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_MICROKERNEL_H_
