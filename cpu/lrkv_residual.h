// What a head's latents add to its scores and to its output. Each latent is used once a query row, so reading it is the
// cost: both loops run forwards through memory, and ask meanwhile for what will be read next.
//
// Lanes run along the keys for scores, whose latents are stored transposed for it, and along the latent for outputs: so
// neither needs sums across lanes.
#ifndef LOWRANK_ATTENTION_CPU_LRKV_RESIDUAL_H_
#define LOWRANK_ATTENTION_CPU_LRKV_RESIDUAL_H_

#include "core/lrkv.h"
#include "cpu/microkernel.h"

namespace lowrank_attention::HWY_NAMESPACE {

// Accumulators that are enough to hide the latency of a multiply-add.
constexpr Index kResidualSums = 8;

// Memory that is asked for a cache line at a time while something else is read.
class Ahead {
 public:
  LA_METHOD Ahead(const void* memory, Index bytes)
      : next_(static_cast<const char*>(memory)), end_(next_ + (memory == nullptr ? 0 : bytes)) {}

  // Asks for as much as is read meanwhile.
  LA_METHOD void fetch(Index bytes) {
    const Index some = minimum(bytes, end_ - next_);
    prefetch<3>(next_, some);
    next_ += some;
  }

 private:
  const char* next_;
  const char* end_;
};

// scores[j] = Σ_c query[c]·latent[j][c] for `blocks` blocks of kLatentRows keys; latents [block][width][kLatentRows].
template <DataType kType>
static void residualScores(const void* latents, Index width, Index blocks, const float* query, float* scores,
                           Ahead ahead) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  constexpr int kVecs = static_cast<int>(kLatentRows / n);
  constexpr int kDepth = kVecs >= kResidualSums ? 1 : static_cast<int>(kResidualSums / kVecs);
  static_assert(kRankStep % kDepth == 0);
  for (Index block = 0; block < blocks; ++block) {
    Vec<Full> sum[kDepth][kVecs];
#pragma GCC unroll 8
    for (int k = 0; k < kDepth; ++k) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[k][v] = hn::Zero(d);
    }
    for (Index c = 0; c < width; c += kDepth) {
      ahead.fetch(kDepth * kLatentRows * elementBytes(kType));
#pragma GCC unroll 8
      for (int k = 0; k < kDepth; ++k) {
        const auto q = hn::Set(d, query[c + k]);
        const Index first = (block * width + c + k) * kLatentRows;
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          sum[k][v] = hn::MulAdd(q, loadAs(d, kType, elementAt(latents, kType, first + v * n)), sum[k][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      auto total = sum[0][v];
#pragma GCC unroll 8
      for (int k = 1; k < kDepth; ++k) total = hn::Add(total, sum[k][v]);
      hn::Store(total, d, scores + block * kLatentRows + v * n);
    }
  }
}

// sum[c] = sum[c]·decay + Σ_j weights[j·stride]·latents[j][c] for kVecs vectors from the first on.
template <DataType kType, int kVecs, class D>
LA_INLINE void residualColumns(D d, const void* latents, Index width, Index count, const float* weights, Index stride,
                               float decay, float* sum, Ahead& ahead) {
  constexpr Index n = kLanes<D>;
  constexpr int kDepth = kVecs >= kResidualSums ? 1 : static_cast<int>(kResidualSums / kVecs);
  Vec<D> total[kDepth][kVecs];
#pragma GCC unroll 8
  for (int k = 0; k < kDepth; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      total[k][v] = k == 0 ? hn::Mul(hn::Set(d, decay), hn::LoadU(d, sum + v * n)) : hn::Zero(d);
    }
  }
  const auto add = [&](Index j, Vec<D>(&into)[kVecs]) {
    const auto weight = hn::Set(d, weights[j * stride]);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      into[v] = hn::MulAdd(weight, loadAs(d, kType, elementAt(latents, kType, j * width + v * n)), into[v]);
    }
  };
  Index j = 0;
  for (; j + kDepth <= count; j += kDepth) {
    ahead.fetch(n * kVecs * kDepth * elementBytes(kType));
#pragma GCC unroll 8
    for (int k = 0; k < kDepth; ++k) add(j + k, total[k]);
  }
  for (; j < count; ++j) add(j, total[0]);
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    auto all = total[0][v];
#pragma GCC unroll 8
    for (int k = 1; k < kDepth; ++k) all = hn::Add(all, total[k][v]);
    hn::StoreU(all, d, sum + v * n);
  }
}

// sum[c] = sum[c]·decay + Σ_j weights[j·stride]·latents[j][c] over `count` keys; latents [count][width].
template <DataType kType>
static void residualOutput(const void* latents, Index width, Index count, const float* weights, Index stride,
                           float decay, float* sum, Ahead ahead) {
  constexpr Index n = kLanes<Full>;
  const auto columns = [&](Index c, auto vecs, auto tag) {
    residualColumns<kType, decltype(vecs)::value>(tag, elementAt(latents, kType, c), width, count, weights, stride,
                                                  decay, sum + c, ahead);
  };
  Index c = 0;
  for (; c + 8 * n <= width; c += 8 * n) columns(c, Constant<8>(), Full());
  for (; c + 4 * n <= width; c += 4 * n) columns(c, Constant<4>(), Full());
  for (; c + 2 * n <= width; c += 2 * n) columns(c, Constant<2>(), Full());
  for (; c + n <= width; c += n) columns(c, Constant<1>(), Full());
  // Widths are multiples of kRankStep, which may be half a vector.
  if constexpr (n > kRankStep) {
    if (c < width) columns(c, Constant<1>(), hn::CappedTag<float, kRankStep>());
  }
}

// Columns of a value base that are converted together.
constexpr Index kValueStrip = 32;

// strip[j][c] = rows[j·stride + c] as float32, for `count` rows and at most kValueStrip columns.
template <DataType kType>
static void stripOfColumns(const void* rows, Index stride, Index count, Index columns, float* strip) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  static_assert(kValueStrip % n == 0);
  for (Index j = 0; j < count; ++j) {
    const void* row = elementAt(rows, kType, j * stride);
    float* target = strip + j * kValueStrip;
    if (columns < kValueStrip) {
      convertRow(kType, row, DataType::kFloat32, target, columns);
      continue;
    }
#pragma GCC unroll 8
    for (Index c = 0; c < kValueStrip; c += n) hn::Store(loadAs(d, kType, elementAt(row, kType, c)), d, target + c);
  }
}

// The loops over what is stored in one type. All else around them is the same code for every type.
struct ResidualLoops {
  void (*scores)(const void* latents, Index width, Index blocks, const float* query, float* scores, Ahead ahead);
  void (*output)(const void* latents, Index width, Index count, const float* weights, Index stride, float decay,
                 float* sum, Ahead ahead);
  void (*columns)(const void* rows, Index stride, Index count, Index columns, float* strip);
};

LA_INLINE ResidualLoops residualLoops(DataType type) {
  switch (type) {
    case DataType::kFloat16:
      return {residualScores<DataType::kFloat16>, residualOutput<DataType::kFloat16>,
              stripOfColumns<DataType::kFloat16>};
    case DataType::kBfloat16:
      return {residualScores<DataType::kBfloat16>, residualOutput<DataType::kBfloat16>,
              stripOfColumns<DataType::kBfloat16>};
    case DataType::kFloat32:
      break;
  }
  return {residualScores<DataType::kFloat32>, residualOutput<DataType::kFloat32>, stripOfColumns<DataType::kFloat32>};
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_LRKV_RESIDUAL_H_
