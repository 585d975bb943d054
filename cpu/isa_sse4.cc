#include <hwy/highway.h>

static_assert(HWY_TARGET == HWY_SSE4, "compile flags do not give SSE4");

#include "cpu/isa.h"
#include "cpu/kernel_set.h"

namespace lowrank_attention {

const KernelSet kSse4Kernels = HWY_NAMESPACE::kernelSet("sse4", haveSse4);

}  // namespace lowrank_attention
