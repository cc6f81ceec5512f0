#include "trireme/execute/kernel_workspace.h"

#include <ATen/Parallel.h>

#include "trireme/kernels/cpu/product.h"

namespace trireme::execute {

namespace {

plan::Bf16Product way_of(kernels::cpu::Bf16Product product) {
  switch (product) {
    case kernels::cpu::Bf16Product::kConvert:
      return plan::Bf16Product::kConvert;
    case kernels::cpu::Bf16Product::kMkl:
      return plan::Bf16Product::kMkl;
    case kernels::cpu::Bf16Product::kOneDnn:
      return plan::Bf16Product::kOneDnn;
  }
  return plan::Bf16Product::kConvert;
}

}  // namespace

plan::KernelWorkspace kernel_workspace() {
  const kernels::cpu::Bf16Choice choice = kernels::cpu::bf16_choice();
  plan::KernelWorkspace workspace;
  workspace.threads = at::get_num_threads();
  workspace.activations = way_of(choice.activations);
  workspace.weights = way_of(choice.weights);
  return workspace;
}

}  // namespace trireme::execute
