#include "trireme/execute/kernel_workspace.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "trireme/base/torch_compat.h"
#include "trireme/kernels/cpu/product.h"

namespace trireme::execute {

plan::KernelWorkspace kernel_workspace(at::Device device) {
  using kernels::cpu::Bf16Product;
  using kernels::cpu::FloatProduct;
  const kernels::cpu::ProductChoice choice = kernels::cpu::product_choice();
  plan::KernelWorkspace workspace;
  workspace.in_device_memory = !device.is_privateuseone();
  workspace.threads = at::get_num_threads();
  workspace.float32 = choice.float32 == FloatProduct::kPanels ? plan::FloatProduct::kPanels
                                                              : plan::FloatProduct::kMkl;
  switch (choice.bfloat16) {
    case Bf16Product::kConvert:
      workspace.bfloat16 = plan::Bf16Product::kConvert;
      break;
    case Bf16Product::kMkl:
      workspace.bfloat16 = plan::Bf16Product::kMkl;
      break;
    case Bf16Product::kPanels:
      workspace.bfloat16 = plan::Bf16Product::kPanels;
      break;
  }
  return workspace;
}

std::string arithmetic_name() {
  const kernels::cpu::ProductChoice choice = kernels::cpu::product_choice();
  return fmt::format("{} and {} products of torch {}", kernels::cpu::to_string(choice.float32),
                     kernels::cpu::to_string(choice.bfloat16), TORCH_VERSION);
}

}  // namespace trireme::execute
