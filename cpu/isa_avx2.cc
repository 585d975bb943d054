#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace lowrank_attention {

const KernelSet kAvx2Kernels = HWY_NAMESPACE::kernelSet("avx2", haveAvx2);

}  // namespace lowrank_attention
