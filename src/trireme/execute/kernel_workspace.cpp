#include "trireme/execute/kernel_workspace.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <array>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/torch_compat.h"
#include "trireme/device/device.h"
#include "trireme/kernels/cpu/product.h"
#include "trireme/kernels/registry.h"

namespace trireme::execute {

namespace {

using plan::WorkspaceOp;

constexpr std::array<std::pair<WorkspaceOp, const char*>, 12> kOps = {
    {{WorkspaceOp::kLinear, "linear"},
     {WorkspaceOp::kLinearWeight, "linear_backward_weight"},
     {WorkspaceOp::kBiasGradient, "bias_gradient"},
     {WorkspaceOp::kRmsNormBackward, "rms_norm_backward"},
     {WorkspaceOp::kLayerNormBackward, "layer_norm_backward"},
     {WorkspaceOp::kEmbeddingBackward, "embedding_backward"},
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

int64_t asked(kernels::WorkspaceBytes stated, const std::string& kernel,
              const plan::KernelCall& call) {
  int64_t bytes = 0;
  try {
    bytes = stated(sizes_of(call));
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kConfig,
                fmt::format("the kernel {} cannot say its workspace: {}", kernel, error.what()),
                "its library is at fault; choose another kernel with kernels.use");
  }
  TRIREME_USER_CHECK(bytes >= 0, kConfig,
                     "its library is at fault; choose another kernel with kernels.use",
                     "the kernel {} states a workspace of {} bytes", kernel, bytes);
  return bytes;
}

/// Of the kernels that would run in `dtype`; null where all are the processor's or the simulated device's.
std::shared_ptr<const plan::StatedWorkspace> stated_workspace(at::DeviceType device,
                                                              at::ScalarType dtype) {
  auto result = std::make_shared<plan::StatedWorkspace>();
  for (const auto& [op, name] : kOps) {
    const kernels::KernelInfo* info = kernels::registry().info(name, dtype, device);
    if (info == nullptr || info->name == "cpu" || info->name == "sim") continue;
    if (info->workspace != nullptr) {
      (*result)[op] = [stated = info->workspace,
                       kernel = fmt::format("'{}' of {}", info->name, name)](
                          const plan::KernelCall& call) { return asked(stated, kernel, call); };
    } else {
      // What it holds is not known: nothing, rather than what other kernels would.
      (*result)[op] = [](const plan::KernelCall&) { return int64_t{0}; };
    }
  }
  if (result->empty()) return nullptr;
  return result;
}

}  // namespace

plan::KernelWorkspace kernel_workspace(at::Device device, plan::Precision precision) {
  using kernels::cpu::Bf16Product;
  using kernels::cpu::FloatProduct;
  const kernels::cpu::ProductChoice choice = kernels::cpu::product_choice();
  plan::KernelWorkspace workspace;
  workspace.in_device_memory = device.is_cpu();
  workspace.precision = precision;
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

plan::KernelWorkspace kernel_workspace_of(const std::string& name, plan::Precision precision,
                                          bool records) {
  const device::Device* device = device::find_open_device(name);
  if (device != nullptr) {
    plan::KernelWorkspace workspace = kernel_workspace(device->torch_device(), precision);
    // What is recorded is so on a queue of its own, for which libraries keep memory of its own.
    workspace.library_bytes = (records ? 2 : 1) * device->capabilities().library_bytes;
    return workspace;
  }
  plan::KernelWorkspace workspace = kernel_workspace(at::kCPU, precision);
  if (name.starts_with("sim")) {
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
