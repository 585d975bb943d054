#include "cpu/isa.h"

#include <cpuid.h>

#include <cstring>

namespace lowrank_attention {

namespace {

// Clang before 16 does not know the name for __builtin_cpu_supports. Asked once: in a virtual machine the instruction
// is answered by its host, which takes microseconds.
bool haveF16c() {
  static const bool have = [] {
    unsigned int a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  }();
  return have;
}

}  // namespace

// Every test names all the features the file of that instruction set is compiled with.
bool alwaysAvailable() { return true; }

bool haveSse4() {
  return __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2") &&
         __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("aes");
}

bool haveAvx2() {
  return haveSse4() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && haveF16c();
}

bool haveAvx512() {
  return haveAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd");
}

const KernelSet* const kKernelSets[] = {&kAvx512Kernels, &kAvx2Kernels, &kSse4Kernels, &kScalarKernels};
const Index kKernelSetCount = sizeof(kKernelSets) / sizeof(kKernelSets[0]);

const KernelSet* selectKernels(const char* isa) {
  for (const KernelSet* set : kKernelSets) {
    const bool wanted = isa[0] == '\0' || std::strcmp(isa, set->isa) == 0;
    if (wanted && set->available()) return set;
  }
  return nullptr;
}

}  // namespace lowrank_attention
