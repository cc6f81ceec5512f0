#include "trireme/kernels/sim/sim_kernels.h"

#include <c10/core/DeviceGuard.h>

#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/device/sim/sim.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/sim/cost.h"

namespace trireme::kernels::sim {
namespace {

using at::Tensor;

// ---- What work holds of an argument: tensors as the queue's thread may touch them, everything else as a copy ----------

template <class T>
T held(const T& value) {
  return value;
}
Tensor held(const Tensor& tensor) {
  return device::sim::host_alias(tensor);
}
std::optional<Tensor> held(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(held(*tensor)) : std::nullopt;
}
std::vector<Tensor> held(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> all;
  for (const Tensor& tensor : tensors) all.push_back(held(tensor));
  return all;
}
ExpertRows held(const ExpertRows& rows) {
  ExpertRows mine = rows;
  mine.tokens = held(rows.tokens);
  mine.rows = held(rows.rows);
  return mine;
}
CrossEntropyOutputs held(const CrossEntropyOutputs& outputs) {
  CrossEntropyOutputs mine = outputs;
  mine.d_hidden = held(outputs.d_hidden);
  mine.d_weight = held(outputs.d_weight);
  mine.losses = held(outputs.losses);
  return mine;
}
/// The caller's segments are gone when the work runs.
struct HeldAttentionOptions {
  AttentionOptions options;
  std::optional<Segments> segments;
};
HeldAttentionOptions held(const AttentionOptions& options) {
  HeldAttentionOptions mine{options, std::nullopt};
  mine.options.sinks = held(options.sinks);
  if (options.segments != nullptr) mine.segments = *options.segments;
  return mine;
}

template <class T>
T& given(T& value) {
  return value;
}
AttentionOptions given(HeldAttentionOptions& mine) {
  AttentionOptions options = mine.options;
  options.segments = mine.segments ? &*mine.segments : nullptr;
  return options;
}

// ---- What comes back lies on the device --------------------------------------------------------------------------------

double to_device(double value, at::Device) {
  return value;
}
RouterBalance to_device(RouterBalance result, at::Device device) {
  result.d_scores = result.d_scores.to(device);
  return result;
}
ExpertRows to_device(ExpertRows result, at::Device device) {
  result.tokens = result.tokens.to(device);
  result.rows = result.rows.to(device);
  return result;
}

// ---- Which device, and what is written ---------------------------------------------------------------------------------

template <class T>
void find_device(const T& value, std::optional<at::Device>& device) {
  if constexpr (std::is_same_v<T, Tensor>) {
    if (!device && value.defined() && !value.is_cpu()) device = value.device();
  }
}
/// Outputs are the tensors that an op takes by reference or as its own.
template <class Arg, class T>
void find_output(T& value, std::vector<Tensor>& outputs) {
  if constexpr (std::is_same_v<Arg, Tensor&> || std::is_same_v<Arg, Tensor>) {
    if (value.defined()) outputs.push_back(value);
  } else if constexpr (std::is_same_v<std::remove_cvref_t<Arg>, CrossEntropyOutputs>) {
    if (value.d_hidden.defined()) outputs.push_back(value.d_hidden);
  }
}

template <auto kOp, auto kCpu, class Function>
struct OnQueue;

template <auto kOp, auto kCpu, class Result, class... Args>
struct OnQueue<kOp, kCpu, Result (*)(Args...)> {
  static Result run(Args... args) {
    std::optional<at::Device> device;
    (find_device(args, device), ...);
    TRIREME_CHECK(device.has_value(), "{}: no tensor is on the device",
                  kernels::detail::OpOf<kOp>::kName);
    const c10::DeviceGuard guard(*device);
    device::sim::Kernel kernel{.name = kernels::detail::OpOf<kOp>::kName,
                               .cost = cost_of<kOp>(args...)};
    (find_output<Args>(args, kernel.outputs), ...);
    using Held = std::tuple<decltype(held(args))...>;
    const auto mine = std::make_shared<Held>(held(args)...);
    if constexpr (std::is_void_v<Result>) {
      device::sim::submit(std::move(kernel), [mine] {
        std::apply([](auto&... each) { kCpu(given(each)...); }, *mine);
      });
    } else {
      const auto result = std::make_shared<std::optional<Result>>();
      device::sim::submit(std::move(kernel), [mine, result] {
        result->emplace(std::apply([](auto&... each) { return kCpu(given(each)...); }, *mine));
      });
      device::sim::synchronize();
      return to_device(std::move(result->value()), *device);
    }
  }
};

}  // namespace

void register_kernels(Registrar& registrar) {
  // Another device in PyTorch's place for private ones does not have what "sim" names.
  const KernelInfo info{
      .name = "sim", .device = at::kPrivateUse1, .priority = kPriority, .needs = {"sim"}};
#define X(op, dtypes) \
  registrar.add<&kernels::op>(info, &OnQueue<&kernels::op, &cpu::op, decltype(&cpu::op)>::run);
  TRIREME_KERNEL_OPS(X)
#undef X
}

}  // namespace trireme::kernels::sim
