// The kernels of one instruction set as rows of the table. Included by each isa_*.cc after it has asserted its target.
#ifndef LOWRANK_ATTENTION_CPU_KERNEL_SET_H_
#define LOWRANK_ATTENTION_CPU_KERNEL_SET_H_

#include "core/kernel.h"
#include "cpu/convert.h"
#include "cpu/full.h"
#include "cpu/linalg.h"
#include "cpu/linformer.h"
#include "cpu/matmul.h"
#include "cpu/merge.h"

namespace lowrank_attention::HWY_NAMESPACE {

constexpr KernelSet kernelSet(const char* isa, bool (*available)()) {
  return {"cpu",
          isa,
          available,
          {convertWorkspaceBytes, runConvert},
          {fullWorkspaceBytes, runFull},
          {linalgWorkspaceBytes, runLinalg},
          {linformerWorkspaceBytes, runLinformer},
          {matmulWorkspaceBytes, runMatmul},
          {mergeWorkspaceBytes, runMerge},
          {readWorkspaceBytes, runRead}};
}

}  // namespace lowrank_attention::HWY_NAMESPACE

#endif  // LOWRANK_ATTENTION_CPU_KERNEL_SET_H_
