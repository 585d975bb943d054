#include <hwy/highway.h>

static_assert(HWY_TARGET == HWY_EMU128, "compile flags do not give EMU128");

#include "cpu/isa.h"
#include "cpu/kernel_set.h"

namespace lowrank_attention {

const KernelSet kScalarKernels = HWY_NAMESPACE::kernelSet("scalar", alwaysAvailable);

}  // namespace lowrank_attention
