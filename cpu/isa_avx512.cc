#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace lowrank_attention {

const KernelSet kAvx512Kernels = HWY_NAMESPACE::kernelSet("avx512", haveAvx512);

}  // namespace lowrank_attention
