// Element type conversion, and reading memory for a bandwidth measurement: the two ops without a matrix in them.
#ifndef LOWRANK_ATTENTION_CORE_CONVERT_H_
#define LOWRANK_ATTENTION_CORE_CONVERT_H_

#include "core/types.h"

namespace lowrank_attention {

// target[i] = source[i], rounded to nearest, ties to even.
struct ConvertProblem {
  DataType sourceType = DataType::kFloat32;
  DataType targetType = DataType::kFloat32;
  const void* source = nullptr;
  void* target = nullptr;
  Index count = 0;
};

// Reads every element once, as fast as the machine lets; the sum keeps the reads from being optimised away.
struct ReadProblem {
  const float* data = nullptr;
  Index count = 0;
  float* sum = nullptr;
};

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_CONVERT_H_
