#include "trireme/execute/kernel_workspace.h"

#include <ATen/Parallel.h>
#include <c10/core/DeviceType.h>
#include <fmt/format.h>

#include <array>
#include <utility>

#include "trireme/base/torch_compat.h"
#include "trireme/device/device.h"
#include "trireme/kernels/cpu/product.h"
#include "trireme/kernels/registry.h"

namespace trireme::execute {

namespace {

using plan::WorkspaceOp;

constexpr std::array<std::pair<WorkspaceOp, const char*>, 11> kOps = {
    {{WorkspaceOp::kLinear, "linear"},
     {WorkspaceOp::kLinearWeight, "linear_backward_weight"},
     {WorkspaceOp::kBiasGradient, "bias_gradient"},
     {WorkspaceOp::kRmsNormBackward, "rms_norm_backward"},
     {WorkspaceOp::kLayerNormBackward, "layer_norm_backward"},
     {WorkspaceOp::kAttention, "attention"},
     {WorkspaceOp::kAttentionBackward, "attention_backward"},
     {WorkspaceOp::kCrossEntropy, "linear_cross_entropy"},
     {WorkspaceOp::kGroupedLinear, "grouped_linear"},
     {WorkspaceOp::kGroupedInput, "grouped_linear_backward_input"},
     {WorkspaceOp::kGroupedWeight, "grouped_linear_backward_weight"}}};

kernels::CallSizes sizes_of(const plan::KernelCall& call) {
  return {.dtype = call.precision == plan::Precision::kBf16 ? at::kBFloat16 : at::kFloat,
          .rows = call.rows,
          .in = call.in,
          .out = call.out,
          .groups = call.groups,
          .parts = call.parts,
          .chunk_rows = call.chunk_rows,
          .bias_and_residual = call.bias_and_residual,
          .batch = call.batch,
          .places = call.places,
          .heads = call.heads,
          .kv_heads = call.kv_heads,
          .head_dim = call.head_dim,
          .value_dim = call.value_dim,
          .softcap = call.softcap,
          .sinks = call.sinks};
}

/// Of the kernels that would run in `dtype`; null where all are the processor's or the simulated device's.
std::shared_ptr<const plan::StatedWorkspace> stated_workspace(at::DeviceType device,
                                                              at::ScalarType dtype) {
  auto result = std::make_shared<plan::StatedWorkspace>();
  for (const auto& [op, name] : kOps) {
    const kernels::KernelInfo* info = kernels::registry().info(name, dtype, device);
    if (info == nullptr || info->name == "cpu" || info->name == "sim") continue;
    if (info->workspace != nullptr) {
      result->of[op] = [stated = info->workspace](const plan::KernelCall& call) {
        return stated(sizes_of(call));
      };
    } else {
      // What it holds is not known: nothing, rather than what other kernels would.
      result->of[op] = [](const plan::KernelCall&) { return int64_t{0}; };
      result->unstated.push_back(fmt::format("{} ({})", name, info->name));
    }
  }
  if (result->of.empty()) return nullptr;
  return result;
}

}  // namespace

plan::KernelWorkspace kernel_workspace(at::Device device, plan::Precision precision) {
  using kernels::cpu::Bf16Product;
  using kernels::cpu::FloatProduct;
  const kernels::cpu::ProductChoice choice = kernels::cpu::product_choice();
  plan::KernelWorkspace workspace;
  workspace.in_device_memory = device.is_cpu();
  workspace.stated = stated_workspace(
      device.type(), precision == plan::Precision::kBf16 ? at::kBFloat16 : at::kFloat);
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

plan::KernelWorkspace kernel_workspace_of(const std::string& device, plan::Precision precision) {
  const std::string type = device.substr(0, device.find(':'));
  if (type == "cpu") return kernel_workspace(at::kCPU, precision);
  const bool is_cuda = type == "cuda";
  const bool is_here =
      is_cuda ? kernels::registry().info("linear", at::kFloat, at::kCUDA)->name != "aten"
              : c10::get_privateuse1_backend() == type;
  if (is_here) {
    plan::KernelWorkspace workspace =
        kernel_workspace(is_cuda ? at::kCUDA : at::kPrivateUse1, precision);
    workspace.library_bytes = device::get_device(device).capabilities().library_bytes;
    return workspace;
  }
  plan::KernelWorkspace workspace = kernel_workspace(at::kCPU, precision);
  if (type == "sim") {
    workspace.in_device_memory = false;
    workspace.stated = nullptr;
  }
  return workspace;
}

std::string arithmetic_name() {
  const kernels::cpu::ProductChoice choice = kernels::cpu::product_choice();
  return fmt::format("{} and {} products of torch {}", kernels::cpu::to_string(choice.float32),
                     kernels::cpu::to_string(choice.bfloat16), TORCH_VERSION);
}

}  // namespace trireme::execute
