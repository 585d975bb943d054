// Vector functions of one argument, accurate to about an ulp on the range softmax needs.
#ifndef LOWRANK_ATTENTION_CPU_MATH_H_
#define LOWRANK_ATTENTION_CPU_MATH_H_

#include "cpu/simd.h"

namespace lowrank_attention::HWY_NAMESPACE {

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2 = 0.693147180559945309f;

// 2^x for x <= 0; results below 2^-126 are 0, 2^0 is exactly 1, NaN stays NaN. Range reduction x = n + r with n an
// integer and |r| <= 1/2, then a polynomial for 2^r of degree 5, minimax in relative error (9.2e-8 before rounding)
// among those that are 1 at 0.
template <class D>
LA_INLINE Vec<D> exp2NonPositive(D d, Vec<D> x) {
  const hn::RebindToUnsigned<D> du;
  // Adding 1.5·2^23 rounds to an integer held in the low bits; the extra 127 leaves them as a biased exponent.
  const auto magic = hn::Set(d, 12582912.0f + 127.0f);
  const auto shifted = hn::Add(x, magic);
  const auto r = hn::Sub(x, hn::Sub(shifted, magic));
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted)));
  auto p = hn::Set(d, 1.3264727213519285e-3f);
  p = hn::MulAdd(p, r, hn::Set(d, 9.671512812488832e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.550733744825048e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.4022242082677533e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 6.931469775973297e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, power));
}

// e^x for x <= 0, and as exact where |x| is large: what rounding took from x·log2(e) is put back, where there is a fused
// multiply-add to find it.
template <class D>
LA_INLINE Vec<D> expNonPositive(D d, Vec<D> x) {
  const auto log2e = hn::Set(d, kLog2E);
  const auto exponent = hn::Mul(x, log2e);
  // The second constant is what log2(e) has beyond float32.
  const auto lost = hn::MulAdd(x, hn::Set(d, 1.925963033500e-8f), hn::MulSub(x, log2e, exponent));
  const auto power = exp2NonPositive(d, exponent);
  const auto exact = hn::MulAdd(hn::Mul(power, lost), hn::Set(d, kLn2), power);
  return hn::IfThenZeroElse(hn::Lt(exponent, hn::Set(d, -126.0f)), exact);
}

// tanh(x). Small arguments take the odd Taylor-like series (degree 13, 2e-8 relative for |x| < 0.625), so that a
// soft cap leaves small scores as exact as they came; the rest 1 − 2 / (e^(2|x|) + 1) with the sign put back.
template <class D>
LA_INLINE Vec<D> tanh(D d, Vec<D> x) {
  const auto magnitude = hn::Abs(x);
  const auto square = hn::Mul(x, x);
  auto series = hn::Set(d, -5.70498872745e-3f);
  series = hn::MulAdd(series, square, hn::Set(d, 2.06390887954e-2f));
  series = hn::MulAdd(series, square, hn::Set(d, -5.37397155531e-2f));
  series = hn::MulAdd(series, square, hn::Set(d, 1.33314422036e-1f));
  series = hn::MulAdd(series, square, hn::Set(d, -3.33332819422e-1f));
  const auto small = hn::MulAdd(hn::Mul(series, square), x, x);
  const auto decay = exp2NonPositive(d, hn::Mul(magnitude, hn::Set(d, -2.0f * kLog2E)));
  const auto one = hn::Set(d, 1.0f);
  const auto large = hn::CopySign(hn::Div(hn::Sub(one, decay), hn::Add(one, decay)), x);
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.625f)), small, large);
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_MATH_H_
