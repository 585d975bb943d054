// The instruction sets that kernels are built for, and whether this processor has them.
#ifndef LOWRANK_ATTENTION_CPU_ISA_H_
#define LOWRANK_ATTENTION_CPU_ISA_H_

#include "core/kernel.h"

namespace lowrank_attention {

bool alwaysAvailable();
bool haveSse4();
bool haveAvx2();
bool haveAvx512();

extern const KernelSet kScalarKernels;
extern const KernelSet kSse4Kernels;
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CPU_ISA_H_
