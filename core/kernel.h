// The table of kernels: one set of rows per device and instruction set. Selection, info(), tests and benchmarks all
// enumerate it.
#ifndef LOWRANK_ATTENTION_CORE_KERNEL_H_
#define LOWRANK_ATTENTION_CORE_KERNEL_H_

#include "core/execution.h"
#include "core/types.h"

namespace lowrank_attention {

struct ConvertProblem;
struct FullProblem;
struct LinalgProblem;
struct LinearProblem;
struct LinformerProblem;
struct LowRankProblem;
struct LrkvProblem;
struct LrkvStoreProblem;
struct MatmulProblem;
struct MergeProblem;
struct NystromProblem;
struct ReadProblem;
struct RotaryProblem;

template <class Problem>
struct Kernel {
  // Scratch bytes for a call on so many threads: the op's one workspace formula.
  std::size_t (*workspaceBytes)(const Problem&, Index threads);
  void (*run)(const Problem&, const Execution&);
};

// All kernels of one instruction set of one device.
struct KernelSet {
  const char* device;
  const char* isa;
  // Whether this machine can run them.
  bool (*available)();
  Kernel<ConvertProblem> convert;
  Kernel<FullProblem> full;
  Kernel<LinalgProblem> linalg;
  Kernel<LinearProblem> linear;
  Kernel<LinformerProblem> linformer;
  Kernel<LowRankProblem> lowrank;
  Kernel<LrkvProblem> lrkv;
  Kernel<LrkvStoreProblem> lrkvStore;
  Kernel<MatmulProblem> matmul;
  Kernel<MergeProblem> merge;
  Kernel<NystromProblem> nystrom;
  Kernel<ReadProblem> read;
  Kernel<RotaryProblem> rotary;
};

// Sets that were built, fastest first.
extern const KernelSet* const kKernelSets[];
extern const Index kKernelSetCount;

// The first available set, or the one named by `isa` if that is not empty; null if there is none.
const KernelSet* selectKernels(const char* isa);

}  // namespace lowrank_attention

#endif  // LOWRANK_ATTENTION_CORE_KERNEL_H_
