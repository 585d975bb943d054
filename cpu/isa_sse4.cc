#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace lowrank_attention {

const KernelSet kSse4Kernels = HWY_NAMESPACE::kernelSet("sse4", haveSse4);

}  // namespace lowrank_attention
