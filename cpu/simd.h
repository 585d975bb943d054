// Highway vectors and the conversions between element types. Compiled once per instruction set: everything in
// cpu/*.h lives in a namespace named after the target, so no symbol of one instruction set can serve another.
#ifndef LOWRANK_ATTENTION_CPU_SIMD_H_
#define LOWRANK_ATTENTION_CPU_SIMD_H_

#include <hwy/highway.h>

#include "core/types.h"

namespace lowrank_attention::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Full = hn::ScalableTag<float>;
template <class D>
using Vec = hn::Vec<D>;

template <class D>
inline constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(D()));

// Vector registers of the instruction set, which bound the register tile of the microkernel.
inline constexpr int kRegisters =
#if HWY_ARCH_ARM_A64 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    32;
#else
    16;
#endif

// Whether the target converts float16 in hardware; Highway's emulation truncates, ours below rounds.
inline constexpr bool kHardwareFloat16 =
#if HWY_ARCH_X86 && HWY_TARGET < HWY_SSE4
    true;
#else
    false;
#endif

template <class D>
LA_INLINE Vec<D> fromFloat16(D d, const std::uint16_t* source) {
  if constexpr (kHardwareFloat16) {
    const hn::Rebind<hwy::float16_t, D> half;
    return hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(source)));
  } else {
    const hn::RebindToUnsigned<D> du;
    const hn::Rebind<std::uint16_t, D> du16;
    const auto bits = hn::PromoteTo(du, hn::LoadU(du16, source));
    const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000u)));
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFu));
    // Exponent and fraction moved into float32's places; the product re-biases and also makes subnormals exact.
    const auto scaled =
        hn::Mul(hn::BitCast(d, hn::ShiftLeft<13>(magnitude)), hn::Set(d, 5.192296858534828e33f /* 2^112 */));
    const auto special = hn::VecFromMask(du, hn::Gt(magnitude, hn::Set(du, 0x7BFFu)));
    return hn::BitCast(d, hn::Or(hn::Or(hn::BitCast(du, scaled), sign), hn::And(special, hn::Set(du, 0x7F800000u))));
  }
}

template <class D>
LA_INLINE Vec<D> fromBfloat16(D d, const std::uint16_t* source) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<std::uint16_t, D> du16;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(du16, source))));
}

// The low 16 bits of every lane.
template <class D, class V>
LA_INLINE void storeLow16(D, V bits, std::uint16_t* target) {
  const hn::Rebind<std::int32_t, D> di;
  const hn::Rebind<std::uint16_t, D> du16;
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, bits)), du16, target);
}

// Rounds to nearest, ties to even; overflow gives infinity, NaN stays a (quiet) NaN.
template <class D>
LA_INLINE void toFloat16(D d, Vec<D> value, std::uint16_t* target) {
  if constexpr (kHardwareFloat16) {
    const hn::Rebind<hwy::float16_t, D> half;
    hn::StoreU(hn::DemoteTo(half, value), half, reinterpret_cast<hwy::float16_t*>(target));
  } else {
    const hn::RebindToUnsigned<D> du;
    const auto bits = hn::BitCast(du, value);
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFu));
    const auto sign = hn::ShiftRight<16>(hn::AndNot(hn::Set(du, 0x7FFFFFFFu), bits));
    const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
    const auto normal =
        hn::ShiftRight<13>(hn::Sub(hn::Add(hn::Add(magnitude, hn::Set(du, 0xFFFu)), odd), hn::Set(du, 112u << 23)));
    // Adding 0.5 puts the last place at 2^-24, the step of float16's subnormals, so the addition rounds.
    const auto half = hn::Set(d, 0.5f);
    const auto subnormal = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), half)), hn::BitCast(du, half));
    const auto nan = hn::Or(hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 0x3FFu)), hn::Set(du, 0x7E00u));
    auto result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x38800000u)), subnormal, normal);
    result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x477FEFFFu)), hn::Set(du, 0x7C00u), result);
    result = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x7F800000u)), nan, result);
    storeLow16(d, hn::Or(result, sign), target);
  }
}

template <class D>
LA_INLINE void toBfloat16(D d, Vec<D> value, std::uint16_t* target) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, value);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(du, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFu)), odd));
  const auto isNan = hn::Gt(hn::And(bits, hn::Set(du, 0x7FFFFFFFu)), hn::Set(du, 0x7F800000u));
  storeLow16(d, hn::IfThenElse(isNan, hn::Or(upper, hn::Set(du, 0x40u)), rounded), target);
}

template <class D>
LA_INLINE Vec<D> loadAs(D d, DataType type, const void* source) {
  switch (type) {
    case DataType::kFloat16:
      return fromFloat16(d, static_cast<const std::uint16_t*>(source));
    case DataType::kBfloat16:
      return fromBfloat16(d, static_cast<const std::uint16_t*>(source));
    case DataType::kFloat32:
      break;
  }
  return hn::LoadU(d, static_cast<const float*>(source));
}

template <class D>
LA_INLINE void storeAs(D d, DataType type, Vec<D> value, void* target) {
  switch (type) {
    case DataType::kFloat16:
      return toFloat16(d, value, static_cast<std::uint16_t*>(target));
    case DataType::kBfloat16:
      return toBfloat16(d, value, static_cast<std::uint16_t*>(target));
    case DataType::kFloat32:
      return hn::StoreU(value, d, static_cast<float*>(target));
  }
}

// target[i] = source[i] for i in [0, count).
LA_INLINE void convertRow(DataType sourceType, const void* source, DataType targetType, void* target, Index count) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  Index i = 0;
  for (; i + n <= count; i += n) {
    storeAs(d, targetType, loadAs(d, sourceType, elementAt(source, sourceType, i)), elementAt(target, targetType, i));
  }
  if (i < count) {
    alignas(64) std::byte in[4 * n] = {};
    alignas(64) std::byte out[4 * n];
    __builtin_memcpy(in, elementAt(source, sourceType, i),
                     static_cast<std::size_t>((count - i) * elementBytes(sourceType)));
    storeAs(d, targetType, loadAs(d, sourceType, in), out);
    __builtin_memcpy(elementAt(target, targetType, i), out,
                     static_cast<std::size_t>((count - i) * elementBytes(targetType)));
  }
}

// `count` elements as float32: where they lie if that is what they are, else converted into `scratch`.
LA_INLINE const float* asFloat32(DataType type, const void* source, Index count, float* scratch) {
  if (type == DataType::kFloat32) return static_cast<const float*>(source);
  convertRow(type, source, DataType::kFloat32, scratch, count);
  return scratch;
}

// Whether all elements are finite: 0·x is 0 for a finite x, else NaN.
LA_INLINE bool finiteRow(const float* data, Index count) {
  const Full d;
  constexpr Index n = kLanes<Full>;
  const auto zero = hn::Zero(d);
  auto sum0 = zero, sum1 = zero, sum2 = zero, sum3 = zero;
  Index i = 0;
  for (; i + 4 * n <= count; i += 4 * n) {
    sum0 = hn::MulAdd(hn::LoadU(d, data + i), zero, sum0);
    sum1 = hn::MulAdd(hn::LoadU(d, data + i + n), zero, sum1);
    sum2 = hn::MulAdd(hn::LoadU(d, data + i + 2 * n), zero, sum2);
    sum3 = hn::MulAdd(hn::LoadU(d, data + i + 3 * n), zero, sum3);
  }
  float tail = 0;
  for (; i < count; ++i) tail += 0.0f * data[i];
  const auto sum = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
  return tail == 0 && hn::AllTrue(d, hn::Eq(sum, zero));
}

// Σ a[i]·b[i].
template <class T>
LA_INLINE T dotRow(const T* a, const T* b, Index count) {
  const hn::ScalableTag<T> d;
  constexpr Index n = kLanes<hn::ScalableTag<T>>;
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  Index i = 0;
  for (; i + 2 * n <= count; i += 2 * n) {
    sum0 = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum0);
    sum1 = hn::MulAdd(hn::LoadU(d, a + i + n), hn::LoadU(d, b + i + n), sum1);
  }
  T tail = 0;
  for (; i < count; ++i) tail += a[i] * b[i];
  return tail + hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
}

// Asks for memory that will be read soon: to be brought to L1 (kLocality 3) or L2 (2).
template <int kLocality>
LA_INLINE void prefetch(const void* memory, Index bytes) {
  constexpr Index kCacheLine = 64;
  const char* line = static_cast<const char*>(memory);
  for (Index i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(line + i, 0, kLocality);
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_SIMD_H_
