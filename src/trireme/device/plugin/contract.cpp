#include "trireme/device/plugin/contract.h"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceCapability.h>
#include <c10/core/Event.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

namespace trireme::device {
namespace {

using State = ContractLine::State;

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;

/// What a call threw; none if it went well.
std::optional<std::string> complaint_of(const std::function<void()>& call) {
  try {
    call();
    return std::nullopt;
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an exception of no known type";
  }
}

bool has_kernel(const char* name, const char* overload) {
  const auto op = c10::Dispatcher::singleton().findOp({name, overload});
  return op.has_value() && op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1);
}

/// Operators that work on the device's own memory, so that no fallback to the CPU can stand in for them.
struct Minimal {
  const char* name;
  const char* overload;
  const char* needed_for;
};
constexpr Minimal kMinimal[] = {
    {"aten::empty.memory_format", "memory_format", "makes every tensor"},
    {"aten::empty_strided", "", "makes every tensor with strides"},
    {"aten::as_strided", "", "makes views"},
    {"aten::view", "", "makes views"},
    {"aten::_copy_from", "", "copies between host and device: aten::copy_ calls it"},
    {"aten::_local_scalar_dense", "", "reads one element on the host"},
};

class Check {
 public:
  Contract run() {
    name();
    guard();
    operators();
    // Nothing of what follows can be asked without a device.
    if (!has_guard_ || contract_.num_devices == 0) return std::move(contract_);
    // A factory without an allocator would not say so, but crash.
    if (!allocator()) return std::move(contract_);
    first_tensor();
    statistics();
    hooks();
    if (!contract_.kept()) return std::move(contract_);
    streams();
    events();
    types();
    return std::move(contract_);
  }

 private:
  void kept(const std::string& what, const std::string& text = "") {
    contract_.lines.push_back({what, State::kKept, text});
  }
  void broken(const std::string& what, const std::string& text) {
    contract_.lines.push_back({what, State::kBroken, text});
  }
  /// `support` becomes false where the call throws.
  bool optional(const std::string& what, const std::string& without, bool& support,
                const std::function<void()>& call) {
    const std::optional<std::string> complaint = complaint_of(call);
    support = !complaint.has_value();
    if (support) {
      kept(what);
    } else {
      contract_.lines.push_back({what, State::kReplaced, without});
    }
    return support;
  }

  void name() { kept("name", c10::get_privateuse1_backend()); }

  void guard() {
    has_guard_ = c10::impl::hasDeviceGuardImpl(kType);
    if (!has_guard_) {
      return broken("guard",
                    "PyTorch expects a device guard: C10_REGISTER_GUARD_IMPL(PrivateUse1, ...)");
    }
    kept("guard");
    contract_.num_devices = c10::impl::getDeviceGuardImpl(kType)->deviceCount();
    if (contract_.num_devices > 0) {
      kept("devices", std::to_string(contract_.num_devices));
    } else {
      broken("devices",
             "the guard's deviceCount() is 0: this machine has no such device, or its "
             "driver does not see it");
    }
  }

  void operators() {
    for (const Minimal& op : kMinimal) {
      const std::string full = op.name;
      const size_t dot = full.find('.');
      const bool own = has_kernel(full.substr(0, dot).c_str(), op.overload) ||
                       (full == "aten::_copy_from" && has_kernel("aten::copy_", ""));
      if (own) {
        kept("operator " + full);
      } else {
        has_operators_ = false;
        broken("operator " + full,
               fmt::format("PyTorch expects a kernel of it for PrivateUse1: it {}", op.needed_for));
      }
    }
    const bool fallback = c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(
        c10::DispatchKey::PrivateUse1);
    contract_.falls_back = fallback;
    if (fallback) {
      kept("fallback", "operators without a kernel of the device run on the CPU");
    } else {
      contract_.lines.push_back(
          {"fallback", State::kReplaced, "an operator without a kernel of the device is an error"});
    }
  }

  void first_tensor() {
    if (!has_operators_) return;
    const std::optional<std::string> complaint = complaint_of([] {
      at::empty({1}, at::TensorOptions().device(c10::Device(kType, 0)));
      c10::impl::VirtualGuardImpl guard(kType);
      guard.synchronizeStream(guard.getStream(c10::Device(kType, 0)));
    });
    if (complaint) return broken("first tensor", "an empty tensor cannot be made: " + *complaint);
    kept("first tensor");
  }

  bool allocator() {
    c10::Allocator* found = nullptr;
    if (complaint_of([&found] { found = c10::GetAllocator(kType); }) || found == nullptr) {
      broken("allocator", "PyTorch expects an allocator: REGISTER_ALLOCATOR(kPrivateUse1, ...)");
      return false;
    }
    kept("allocator");
    return true;
  }

  void statistics() {
    auto* counting = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(kType));
    AcceleratorSupport& support = contract_.support;
    optional("memory statistics",
             "the allocator is no c10::DeviceAllocator that counts: memory figures are 0",
             support.memory_statistics, [counting] {
               TORCH_CHECK(counting != nullptr);
               counting->getDeviceStats(0);
             });
    optional("memory size",
             "the allocator has no getMemoryInfo(): whether a run fits is not checked before it "
             "starts",
             support.memory_size, [counting] {
               TORCH_CHECK(counting != nullptr);
               counting->getMemoryInfo(0);
             });
  }

  void hooks() {
    if (!at::isPrivateUse1HooksRegistered()) {
      return broken("hooks",
                    "PyTorch expects at::RegisterPrivateUse1HooksInterface(...) when the library "
                    "is loaded, or when the first tensor is made");
    }
    kept("hooks");
    const at::PrivateUse1HooksInterface& hooks = at::detail::getPrivateUse1Hooks();
    AcceleratorSupport& support = contract_.support;
    optional("random numbers",
             "the hooks have no getDefaultGenerator(): what draws on the device is refused",
             support.generator, [&hooks] { hooks.getDefaultGenerator(0).current_seed(); });
    optional("pinned memory",
             "the hooks have no getPinnedMemoryAllocator(): copies from and to the host wait",
             support.pinned_memory, [&hooks] {
               TORCH_CHECK(hooks.getPinnedMemoryAllocator() != nullptr);
               const at::Tensor pinned = at::empty({1}, at::TensorOptions().pinned_memory(true));
               TORCH_CHECK(hooks.isPinnedPtr(pinned.const_data_ptr()));
             });
  }

  void streams() {
    const c10::impl::VirtualGuardImpl guard(kType);
    const c10::Device device(kType, 0);
    const std::optional<std::string> complaint = complaint_of([&] {
      const c10::Stream stream = guard.getStream(device);
      guard.exchangeStream(guard.exchangeStream(stream));
      stream.synchronize();
    });
    if (complaint) {
      return broken("streams",
                    "PyTorch expects getStream(), exchangeStream() and synchronizeStream() in the "
                    "device guard: " +
                        *complaint);
    }
    kept("streams");
    AcceleratorSupport& support = contract_.support;
    support.pool_streams =
        !complaint_of([&] { guard.getStreamFromGlobalPool(device).synchronize(); });
    optional("new streams",
             support.pool_streams
                 ? "the guard has no getNewStream(): streams are those of the pool"
                 : "the guard has neither getNewStream() nor getStreamFromGlobalPool(): one queue "
                   "for everything",
             support.new_streams, [&] { guard.getNewStream(device).synchronize(); });
    optional("synchronize device",
             "the guard has no synchronizeDevice(): the streams that were used are waited for",
             support.synchronize_device, [&] { guard.synchronizeDevice(0); });
  }

  void events() {
    const c10::impl::VirtualGuardImpl guard(kType);
    const c10::Stream stream = guard.getStream(c10::Device(kType, 0));
    AcceleratorSupport& support = contract_.support;
    const bool events =
        optional("events",
                 "the guard lacks record(), block(), queryEvent() or synchronizeEvent(): "
                 "recording an event waits for its queue",
                 support.events, [&] {
                   c10::Event event(kType);
                   event.record(stream);
                   event.block(stream);
                   event.synchronize();
                   event.query();
                 });
    if (!events) {
      support.event_times = false;
      return;
    }
    optional("event times", "the guard has no elapsedTime(): events read the host's clock",
             support.event_times, [&] {
               c10::Event first(kType, c10::EventFlag::BACKEND_DEFAULT);
               c10::Event second(kType, c10::EventFlag::BACKEND_DEFAULT);
               first.record(stream);
               second.record(stream);
               second.synchronize();
               first.elapsedTime(second);
             });
  }

  void types() {
    optional("data types",
             "the guard has no getDeviceCapability(): a type is there if a tensor of it is made",
             contract_.support.dtypes,
             [] { c10::impl::getDeviceGuardImpl(kType)->getDeviceCapability({kType, 0}); });
  }

  Contract contract_;
  bool has_guard_ = false;
  bool has_operators_ = true;
};

}  // namespace

bool Contract::kept() const {
  return std::none_of(lines.begin(), lines.end(),
                      [](const ContractLine& line) { return line.state == State::kBroken; });
}

Contract check_contract() {
  return Check().run();
}

}  // namespace trireme::device
