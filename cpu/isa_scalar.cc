#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace lowrank_attention {

const KernelSet kScalarKernels = HWY_NAMESPACE::kernelSet("scalar", alwaysAvailable);

}  // namespace lowrank_attention
