#include <hwy/highway.h>

static_assert(HWY_TARGET == HWY_AVX3, "compile flags do not give AVX-512");

#include "cpu/isa.h"
#include "cpu/kernel_set.h"

namespace lowrank_attention {

const KernelSet kAvx512Kernels = HWY_NAMESPACE::kernelSet("avx512", haveAvx512);

}  // namespace lowrank_attention
