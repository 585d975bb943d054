#include <hwy/highway.h>

static_assert(HWY_TARGET == HWY_AVX2, "compile flags do not give AVX2");

#include "cpu/isa.h"
#include "cpu/kernel_set.h"

namespace lowrank_attention {

const KernelSet kAvx2Kernels = HWY_NAMESPACE::kernelSet("avx2", haveAvx2);

}  // namespace lowrank_attention
