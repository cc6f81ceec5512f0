#include "trireme/device/sim/fallback.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/device/operators/for_each_tensor.h"
#include "trireme/device/sim/graph_arena.h"
#include "trireme/device/sim/runtime.h"

namespace trireme::device::sim {
namespace {

using c10::IValue;

std::mutex counts_mutex;
std::map<std::string, int64_t>& counts() {
  static auto* map = new std::map<std::string, int64_t>();
  return *map;
}

std::string name_of(const c10::OperatorHandle& op) {
  const c10::OperatorName& name = op.operator_name();
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

double bytes_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return 0;
  return static_cast<double>(tensor.numel()) * static_cast<double>(tensor.element_size());
}

bool is_generator(const c10::Argument& argument) {
  const auto optional = argument.type()->cast<c10::OptionalType>();
  const c10::TypePtr type = optional ? optional->getElementType() : argument.type();
  return type->kind() == c10::TypeKind::GeneratorType;
}

/// Arguments of one call, as the CPU kernel gets them.
class CpuCall {
 public:
  CpuCall(const c10::OperatorHandle& op, at::ArrayRef<IValue> arguments)
      : op_(op), name_(name_of(op)), arguments_(arguments), device_(find_device()) {
    for (size_t i = 0; i < arguments.size(); ++i) stack_.push_back(convert(i));
  }

  void run() {
    const c10::Stream stream = current_stream(device_.index());
    if (GraphArena::current() != nullptr) {
      record(stream);
      return;
    }
    std::exception_ptr error;
    submit(stream, {name_, {}, std::move(written_)}, [this, &error] {
      try {
        op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack_);
        add_cost(cost());
      } catch (...) {
        error = std::current_exception();
      }
    });
    synchronize(stream);
    if (error != nullptr) std::rethrow_exception(error);
    for (auto& [device, host] : remade_) {
      device.resize_(host.sizes());
      if (host.numel() > 0) copy_to(host, device);
    }
  }

  std::vector<IValue> results() {
    const std::vector<c10::Argument>& returns = op_.schema().returns();
    std::vector<IValue> results;
    for (size_t i = 0; i < returns.size(); ++i) {
      const IValue& value = stack_.at(i);
      const c10::AliasInfo* alias = returns[i].alias_info();
      if (alias != nullptr) {
        TORCH_CHECK(alias->isWrite(), name_, " returns a view, and sim has no kernel for it");
        results.push_back(argument_that_is(*alias));
      } else if (value.isTensor()) {
        results.emplace_back(to_device(value.toTensor()));
      } else if (value.isTensorList()) {
        c10::List<at::Tensor> list;
        for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(to_device(tensor));
        results.emplace_back(std::move(list));
      } else {
        results.push_back(value);
      }
    }
    return results;
  }

 private:
  /// Work that writes arguments can be done later and again; what makes tensors has to be done first.
  void record(const c10::Stream& stream) {
    const auto is_argument = [](const c10::Argument& result) {
      return result.alias_info() != nullptr;
    };
    TRIREME_USER_CHECK(remade_.empty() && std::ranges::all_of(op_.schema().returns(), is_argument),
                       kDevice, "give it the tensor that it writes to",
                       "{} makes a tensor on the CPU while work of {} is recorded", name_,
                       device_.str());
    struct Call {
      c10::OperatorHandle op;
      torch::jit::Stack stack;
      std::vector<at::Tensor> hosts;
      Cost cost;
    };
    const auto call = std::make_shared<Call>(Call{op_, stack_, hosts_, cost()});
    submit(stream, {name_, {}, std::move(written_)}, [call] {
      torch::jit::Stack stack = call->stack;
      call->op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
      add_cost(call->cost);
    });
  }

  c10::Device find_device() const {
    std::optional<c10::Device> found;
    for (const IValue& value : arguments_) {
      for_each_tensor(value, [&](const at::Tensor& tensor) {
        if (!tensor.defined() || !tensor.is_privateuseone()) return;
        TORCH_CHECK(!found.has_value() || *found == tensor.device(), name_, " with tensors on ",
                    *found, " and ", tensor.device());
        found = tensor.device();
      });
    }
    if (found.has_value()) return *found;
    for (const IValue& value : arguments_) {
      if (value.isDevice() && value.toDevice().has_index()) return value.toDevice();
    }
    return {c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(current_device())};
  }

  at::Tensor to_host(const at::Tensor& tensor, const c10::Argument& argument) {
    const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    if (!tensor.defined()) return tensor;
    if (tensor.is_cpu()) {
      // Every accelerator takes scalars in host memory, and indices where they select.
      TORCH_CHECK(tensor.dim() == 0 || name_.find("index") != std::string::npos, name_,
                  " with a tensor on the CPU among those on ", device_);
      return tensor;
    }
    if (argument.is_out() && tensor.numel() == 0) {  // the kernel may resize it
      const at::Tensor fresh =
          at::empty({0}, at::TensorOptions().dtype(tensor.dtype()).device(c10::DeviceType::CPU));
      remade_.emplace_back(tensor, fresh);
      return fresh;
    }
    if (written) written_.push_back(tensor);
    return hosts_.emplace_back(host_alias(tensor));
  }

  IValue convert(size_t i) {
    const IValue& value = arguments_[i];
    const c10::Argument& argument = op_.schema().arguments()[i];
    if (value.isTensor()) return to_host(value.toTensor(), argument);
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) {
        list.push_back(to_host(tensor, argument));
      }
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        list.push_back(tensor.has_value() ? std::optional(to_host(*tensor, argument))
                                          : std::nullopt);
      }
      return list;
    }
    if (value.isDevice()) return c10::Device(c10::DeviceType::CPU);
    if (is_generator(argument)) {
      if (value.isNone()) {
        return cpu_generator_of(Runtime::get().device(device_.index()).generator);
      }
      const at::Generator generator = value.toGenerator();
      return generator.device().is_cpu() ? generator : cpu_generator_of(generator);
    }
    return value;
  }

  const IValue& argument_that_is(const c10::AliasInfo& alias) const {
    const std::vector<c10::Argument>& arguments = op_.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i) {
      const c10::AliasInfo* other = arguments[i].alias_info();
      if (other != nullptr && other->beforeSets() == alias.beforeSets()) return arguments_[i];
    }
    TORCH_CHECK(false, name_, " returns an argument that it does not have");
  }

  /// Part of the kernel as faults and the clock see it.
  static void copy_to(const at::Tensor& host, const at::Tensor& device) {
    Runtime& runtime = Runtime::get();
    runtime.scheduler().submit(
        runtime.queue(current_stream(device.device().index())), {"result"},
        [host, alias = host_alias(device)] { alias.copy_(host); }, /*internal=*/true);
  }

  at::Tensor to_device(const at::Tensor& host) const {
    if (!host.defined()) return host;
    const c10::DeviceGuard guard(device_);
    const auto options = at::TensorOptions().dtype(host.dtype()).device(device_);
    at::Tensor device = at::empty_strided(host.sizes(), host.strides(), options);
    if (host.numel() > 0) copy_to(host, device);
    return device;
  }

  /// Bytes of arguments and results; arithmetic of the products only.
  Cost cost() const {
    Cost cost;
    const auto add = [&cost](const at::Tensor& tensor) { cost.bytes += bytes_of(tensor); };
    for (const IValue& value : arguments_) for_each_tensor(value, add);
    const std::vector<c10::Argument>& returns = op_.schema().returns();
    for (size_t i = 0; i < returns.size(); ++i) {
      if (returns[i].alias_info() == nullptr) for_each_tensor(stack_.at(i), add);
    }
    const std::string& name = op_.operator_name().name;
    const bool product = name == "aten::mm" || name == "aten::bmm";
    if (product || name == "aten::addmm" || name == "aten::baddbmm") {
      const at::Tensor& left = arguments_[product ? 0 : 1].toTensor();
      const at::Tensor& right = arguments_[product ? 1 : 2].toTensor();
      cost.flops = 2.0 * static_cast<double>(left.numel()) * static_cast<double>(right.size(-1));
      cost.dtype = left.scalar_type();
    }
    return cost;
  }

  const c10::OperatorHandle& op_;
  std::string name_;
  at::ArrayRef<IValue> arguments_;
  c10::Device device_;
  std::vector<at::Tensor> written_;
  /// A boxed kernel that returns several of its arguments returns references to the stack's slots, and copies from them
  /// after the stack was emptied: the tensors must live elsewhere.
  std::vector<at::Tensor> hosts_;
  std::vector<std::pair<at::Tensor, at::Tensor>> remade_;  ///< of the device, of the host
  torch::jit::Stack stack_;
};

}  // namespace

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  {
    const std::lock_guard lock(counts_mutex);
    ++counts()[name_of(op)];
  }
  const size_t num_arguments = op.schema().arguments().size();
  const std::vector<IValue> arguments(stack->end() - static_cast<std::ptrdiff_t>(num_arguments),
                                      stack->end());
  torch::jit::drop(*stack, num_arguments);
  CpuCall call(op, arguments);
  call.run();
  for (IValue& result : call.results()) stack->push_back(std::move(result));
}

std::map<std::string, int64_t> fallback_counts() {
  const std::lock_guard lock(counts_mutex);
  return counts();
}

void reset_fallback_counts() {
  const std::lock_guard lock(counts_mutex);
  counts().clear();
}

}  // namespace trireme::device::sim
