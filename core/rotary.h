// Rotary position embedding (RoPE; Su et al. 2021, arXiv 2104.09864, section 3.2): at position p, pair i of a row is
// turned by the angle p·frequencies[i]. Optionally rows are brought to unit root mean square before or after
// (QK-norm; Henry et al. 2020, arXiv 2010.04245, in the RMS form of Zhang & Sennrich 2019, arXiv 1910.07467).
#ifndef LOWRANK_ATTENTION_CORE_ROTARY_H_
#define LOWRANK_ATTENTION_CORE_ROTARY_H_

#include "core/qkv.h"

namespace lowrank_attention {

// Which elements of a row of d elements make pair i.
enum class Pairing : std::uint8_t {
  kHalf = 0,         // i and i + d/2
  kInterleaved = 1,  // 2i and 2i + 1
};

// Where a learned gain, one number an element, comes in.
enum class GainOrder : std::uint8_t {
  kBeforeRotation = 0,  // normalise, gain, rotate
  kAfterRotation = 1,   // rotate, normalise, gain
};

// row / √(mean(row²) + epsilon) · gain. A rotation leaves the mean as it is.
struct RmsNorm {
  bool on = false;
  double epsilon = 0;
  const float* gain = nullptr;  // [d]; null: all ones
  GainOrder order = GainOrder::kBeforeRotation;
};

struct RotaryProblem {
  DataType inputType = DataType::kFloat32;
  DataType outputType = DataType::kFloat32;
  Index batch = 0;
  Index heads = 0;
  Index rows = 0;
  Index dim = 0;                        // even where rows are rotated
  BatchRows input;                      // heads × rows × dim
  BatchRows output;                     // the same; may be the input itself
  const double* frequencies = nullptr;  // [dim / 2] radians a position; null: no rotation
  Pairing pairing = Pairing::kHalf;
  const double* firstPositions = nullptr;  // [batch] position of row 0, whole numbers; the rows follow one by one
  RmsNorm norm;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_ROTARY_H_
