// The kernels of one instruction set, for its rows of the table and for each other. Each op is defined in a file of its
// own, which is compiled once an instruction set.
#ifndef LOWRANK_ATTENTION_CPU_KERNELS_H_
#define LOWRANK_ATTENTION_CPU_KERNELS_H_

#include "core/kernel.h"
#include "cpu/simd.h"

namespace lowrank_attention::HWY_NAMESPACE {

std::size_t convertWorkspaceBytes(const ConvertProblem& problem, Index threads);
void runConvert(const ConvertProblem& problem, const Execution& execution);

std::size_t fullWorkspaceBytes(const FullProblem& problem, Index threads);
// The same where only the first sequence exists so far, and all others will have its extents.
std::size_t uniformFullWorkspaceBytes(const FullProblem& problem, Index threads);
void runFull(const FullProblem& problem, const Execution& execution);

std::size_t linalgWorkspaceBytes(const LinalgProblem& problem, Index threads);
void runLinalg(const LinalgProblem& problem, const Execution& execution);

std::size_t linearWorkspaceBytes(const LinearProblem& problem, Index threads);
void runLinear(const LinearProblem& problem, const Execution& execution);

std::size_t linformerWorkspaceBytes(const LinformerProblem& problem, Index threads);
void runLinformer(const LinformerProblem& problem, const Execution& execution);

std::size_t lowRankWorkspaceBytes(const LowRankProblem& problem, Index threads);
void runLowRank(const LowRankProblem& problem, const Execution& execution);

std::size_t lrkvWorkspaceBytes(const LrkvProblem& problem, Index threads);
void runLrkv(const LrkvProblem& problem, const Execution& execution);

std::size_t lrkvStoreWorkspaceBytes(const LrkvStoreProblem& problem, Index threads);
void runLrkvStore(const LrkvStoreProblem& problem, const Execution& execution);
// Bases, and latents of heads [firstHead, endHead), of rows [begin, end) of a problem, which lie on one page; on one
// thread, in scratch of lrkvStoreBytes. Nothing but their places is touched, so other rows may be stored meanwhile.
Index lrkvStoreBytes(const LrkvStoreProblem& problem);
void storeLrkvRows(const LrkvStoreProblem& problem, Index begin, Index end, Index firstHead, Index endHead,
                   std::byte* page, std::byte* scratch);

std::size_t matmulWorkspaceBytes(const MatmulProblem& problem, Index threads);
void runMatmul(const MatmulProblem& problem, const Execution& execution);

std::size_t mergeWorkspaceBytes(const MergeProblem& problem, Index threads);
void runMerge(const MergeProblem& problem, const Execution& execution);

std::size_t nystromWorkspaceBytes(const NystromProblem& problem, Index threads);
void runNystrom(const NystromProblem& problem, const Execution& execution);

std::size_t readWorkspaceBytes(const ReadProblem& problem, Index threads);
void runRead(const ReadProblem& problem, const Execution& execution);

std::size_t rotaryWorkspaceBytes(const RotaryProblem& problem, Index threads);
void runRotary(const RotaryProblem& problem, const Execution& execution);

constexpr KernelSet kernelSet(const char* isa, bool (*available)()) {
  return {"cpu",
          isa,
          available,
          {convertWorkspaceBytes, runConvert},
          {fullWorkspaceBytes, runFull},
          {linalgWorkspaceBytes, runLinalg},
          {linearWorkspaceBytes, runLinear},
          {linformerWorkspaceBytes, runLinformer},
          {lowRankWorkspaceBytes, runLowRank},
          {lrkvWorkspaceBytes, runLrkv},
          {lrkvStoreWorkspaceBytes, runLrkvStore},
          {matmulWorkspaceBytes, runMatmul},
          {mergeWorkspaceBytes, runMerge},
          {nystromWorkspaceBytes, runNystrom},
          {readWorkspaceBytes, runRead},
          {rotaryWorkspaceBytes, runRotary}};
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_KERNELS_H_
