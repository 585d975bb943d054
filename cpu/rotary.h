// Rotary embedding and RMS normalisation of rows of float32. See core/rotary.h for the formulas.
//
// Angles grow with the position: at a million, float32 has none of their fraction left. They are float64 up to the
// sine and cosine, which are rounded once. A table holds those of one row and serves all its heads.
#ifndef LOWRANK_ATTENTION_CPU_ROTARY_H_
#define LOWRANK_ATTENTION_CPU_ROTARY_H_

#include <cmath>

#include "core/rotary.h"
#include "cpu/simd.h"

namespace lowrank_attention::HWY_NAMESPACE {

using Wide = hn::ScalableTag<double>;
// As many float32.
using WideFloats = hn::Rebind<float, Wide>;

// Cosine and sine of each pair of a row.
struct RotaryTable {
  const float* cosines = nullptr;  // [dim / 2]
  const float* sines = nullptr;    // [dim / 2]
};

// Largest |angle| whose count of quarter turns has 20 bits, so that its product with the 33 bits of the first part of
// π/2 is exact.
constexpr double kMostAngle = 1.6e6;

// Cosines and sines within 1e-15. Range reduction in two parts (Cody & Waite 1980) to |r| <= π/4, then Taylor series.
LA_INLINE void turnOf(Vec<Wide> angle, Vec<Wide>* cosine, Vec<Wide>* sine) {
  const Wide d;
  const hn::RebindToUnsigned<Wide> du;
  // Adding 1.5·2^52 rounds to a whole number held in the low bits.
  const auto magic = hn::Set(d, 0x1.8p52);
  const auto shifted = hn::MulAdd(angle, hn::Set(d, 0.636619772367581343 /* 2/π */), magic);
  const auto quarters = hn::Sub(shifted, magic);
  auto r = hn::NegMulAdd(quarters, hn::Set(d, 0x1.921fb544p0), angle);
  r = hn::NegMulAdd(quarters, hn::Set(d, 0x1.0b4611a626331p-34), r);
  const auto square = hn::Mul(r, r);
  auto s = hn::Set(d, -1 / 1307674368000.0);
  s = hn::MulAdd(s, square, hn::Set(d, 1 / 6227020800.0));
  s = hn::MulAdd(s, square, hn::Set(d, -1 / 39916800.0));
  s = hn::MulAdd(s, square, hn::Set(d, 1 / 362880.0));
  s = hn::MulAdd(s, square, hn::Set(d, -1 / 5040.0));
  s = hn::MulAdd(s, square, hn::Set(d, 1 / 120.0));
  s = hn::MulAdd(s, square, hn::Set(d, -1 / 6.0));
  s = hn::MulAdd(hn::Mul(s, square), r, r);
  auto c = hn::Set(d, 1 / 20922789888000.0);
  c = hn::MulAdd(c, square, hn::Set(d, -1 / 87178291200.0));
  c = hn::MulAdd(c, square, hn::Set(d, 1 / 479001600.0));
  c = hn::MulAdd(c, square, hn::Set(d, -1 / 3628800.0));
  c = hn::MulAdd(c, square, hn::Set(d, 1 / 40320.0));
  c = hn::MulAdd(c, square, hn::Set(d, -1 / 720.0));
  c = hn::MulAdd(c, square, hn::Set(d, 1 / 24.0));
  c = hn::MulAdd(c, square, hn::Set(d, -0.5));
  c = hn::MulAdd(c, square, hn::Set(d, 1.0));
  // Quarter turn 1 exchanges the two; sines are negative in the quarters 2 and 3, cosines in 1 and 2.
  const auto quarter = hn::BitCast(du, shifted);
  const auto odd = hn::MaskFromVec(hn::BitCast(d, hn::Sub(hn::Zero(du), hn::And(quarter, hn::Set(du, 1u)))));
  const auto sign = [&](auto bits) { return hn::BitCast(d, hn::ShiftLeft<62>(hn::And(bits, hn::Set(du, 2u)))); };
  *sine = hn::Xor(hn::IfThenElse(odd, c, s), sign(quarter));
  *cosine = hn::Xor(hn::IfThenElse(odd, s, c), sign(hn::Add(quarter, hn::Set(du, 1u))));
}

// Cosines and sines of so many frequencies, in radians a position, at a position that is a whole number.
LA_INLINE void fillTable(const double* frequencies, Index count, double position, float* cosines, float* sines) {
  const Wide d;
  const WideFloats df;
  constexpr Index n = kLanes<Wide>;
  const auto place = hn::Set(d, position);
  for (Index i = 0; i < count; i += n) {
    const std::size_t lanes = static_cast<std::size_t>(minimum(n, count - i));
    alignas(64) double angles[n] = {};
    alignas(64) float cosine[n];
    alignas(64) float sine[n];
    __builtin_memcpy(angles, frequencies + i, lanes * sizeof(double));
    const auto angle = hn::Mul(hn::Load(d, angles), place);
    if (hn::AllTrue(d, hn::Lt(hn::Abs(angle), hn::Set(d, kMostAngle)))) {
      Vec<Wide> c, s;
      turnOf(angle, &c, &s);
      hn::Store(hn::DemoteTo(df, c), df, cosine);
      hn::Store(hn::DemoteTo(df, s), df, sine);
    } else {
      hn::Store(angle, d, angles);
      for (Index lane = 0; lane < n; ++lane) {
        cosine[lane] = static_cast<float>(::cos(angles[lane]));
        sine[lane] = static_cast<float>(::sin(angles[lane]));
      }
    }
    __builtin_memcpy(cosines + i, cosine, lanes * sizeof(float));
    __builtin_memcpy(sines + i, sine, lanes * sizeof(float));
  }
}

// Tables of the rows at positions first … first + rows − 1: [rows][count].
LA_INLINE void fillTables(const double* frequencies, Index count, double first, Index rows, float* cosines,
                          float* sines) {
  for (Index r = 0; r < rows; ++r) {
    fillTable(frequencies, count, first + static_cast<double>(r), cosines + r * count, sines + r * count);
  }
}

// (x, y) turned by the angle.
template <class V>
LA_INLINE void turn(V cosine, V sine, V* x, V* y) {
  const V turned = hn::NegMulAdd(*y, sine, hn::Mul(*x, cosine));
  *y = hn::MulAdd(*x, sine, hn::Mul(*y, cosine));
  *x = turned;
}

// Turns the pairs of a row of `dim` elements, in place.
LA_INLINE void rotateRow(float* row, Index dim, Pairing pairing, RotaryTable table) {
  const Full d;
  const hn::CappedTag<float, 1> one;
  constexpr Index n = kLanes<Full>;
  const Index pairs = dim / 2;
  const bool halves = pairing == Pairing::kHalf;
  Index i = 0;
  for (; i + n <= pairs; i += n) {
    const auto cosine = hn::LoadU(d, table.cosines + i);
    const auto sine = hn::LoadU(d, table.sines + i);
    Vec<Full> x, y;
    if (halves) {
      x = hn::LoadU(d, row + i);
      y = hn::LoadU(d, row + pairs + i);
    } else {
      hn::LoadInterleaved2(d, row + 2 * i, x, y);
    }
    turn(cosine, sine, &x, &y);
    if (halves) {
      hn::StoreU(x, d, row + i);
      hn::StoreU(y, d, row + pairs + i);
    } else {
      hn::StoreInterleaved2(x, y, d, row + 2 * i);
    }
  }
  for (; i < pairs; ++i) {
    float* first = row + (halves ? i : 2 * i);
    float* second = halves ? first + pairs : first + 1;
    auto x = hn::LoadU(one, first), y = hn::LoadU(one, second);
    turn(hn::LoadU(one, table.cosines + i), hn::LoadU(one, table.sines + i), &x, &y);
    hn::StoreU(x, one, first);
    hn::StoreU(y, one, second);
  }
}

// 1 / √(mean(row²) + epsilon). Squares are summed in float64: those of large float32 numbers overflow.
LA_INLINE float rmsFactor(const float* row, Index dim, double epsilon) {
  const Wide d;
  const WideFloats df;
  constexpr Index n = kLanes<Wide>;
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  Index i = 0;
  for (; i + 2 * n <= dim; i += 2 * n) {
    const auto x0 = hn::PromoteTo(d, hn::LoadU(df, row + i));
    const auto x1 = hn::PromoteTo(d, hn::LoadU(df, row + i + n));
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < dim; ++i) sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  return static_cast<float>(1 / ::sqrt(sum / static_cast<double>(dim) + epsilon));
}

// row ← factor·row·gain, where there is a gain.
LA_INLINE void scaleByGain(float* row, Index dim, float factor, const float* gain) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const auto factors = hn::Set(d, factor);
  Index i = 0;
  for (; i + n <= dim; i += n) {
    auto x = hn::Mul(hn::LoadU(d, row + i), factors);
    if (gain != nullptr) x = hn::Mul(x, hn::LoadU(d, gain + i));
    hn::StoreU(x, d, row + i);
  }
  for (; i < dim; ++i) row[i] = row[i] * factor * (gain == nullptr ? 1.0f : gain[i]);
}

// Normalises and rotates a row in place, both or one of them: without `table` it is not rotated.
LA_INLINE void normalizeAndRotate(const RmsNorm& norm, float* row, Index dim, Pairing pairing,
                                  const RotaryTable* table) {
  const bool before = norm.order == GainOrder::kBeforeRotation;
  const float factor = norm.on ? rmsFactor(row, dim, norm.epsilon) : 1.0f;
  if (norm.on && before) scaleByGain(row, dim, factor, norm.gain);
  if (table != nullptr) rotateRow(row, dim, pairing, *table);
  if (norm.on && !before) scaleByGain(row, dim, factor, norm.gain);
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_ROTARY_H_
