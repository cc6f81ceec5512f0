#include "trireme/device/operators/operator_survey.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/record_function.h>
#include <c10/core/TensorOptions.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>

#include "trireme/base/error.h"
#include "trireme/device/operators/for_each_tensor.h"

namespace trireme::device {
namespace {

using Where = OperatorUse::Where;

std::string text_of(const c10::OperatorName& name) {
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

c10::OperatorName name_of(const std::string& text) {
  const size_t dot = text.find('.');
  return {text.substr(0, dot), dot == std::string::npos ? "" : text.substr(dot + 1)};
}

/// Under which a type of device has its kernels.
c10::DispatchKey key_of(c10::DeviceType device) {
  return c10::computeDispatchKey(c10::ScalarType::Float, c10::Layout::Strided, c10::Device(device));
}

/// As the dispatcher computes the entry of a backend's key: its own kernel, a composite one, the fallback.
Where where_of(const c10::OperatorName& name, c10::DeviceType device, bool has_fallback) {
  using c10::DispatchKey;
  const auto op = c10::Dispatcher::singleton().findOp(name);
  if (!op.has_value()) return Where::kMissing;
  const DispatchKey key = key_of(device);
  if (op->hasKernelForDispatchKey(key)) return Where::kDevice;
  for (const DispatchKey composite :
       {DispatchKey::CompositeExplicitAutogradNonFunctional, DispatchKey::CompositeExplicitAutograd,
        DispatchKey::CompositeImplicitAutograd}) {
    if (op->hasKernelForDispatchKey(composite)) return Where::kComposite;
  }
  return has_fallback ? Where::kFallback : Where::kMissing;
}

bool has_fallback(c10::DeviceType device) {
  return device != c10::DeviceType::CPU &&
         c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(key_of(device));
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

// What runs within a call that runs on the CPU is that call's business.
thread_local int calls_on_cpu = 0;

}  // namespace

const char* to_string(Where where) {
  switch (where) {
    case Where::kDevice:
      return "device";
    case Where::kComposite:
      return "composite";
    case Where::kFallback:
      return "cpu";
    case Where::kMissing:
      break;
  }
  return "missing";
}

Where where_operator_runs(const std::string& name, c10::DeviceType device) {
  return where_of(name_of(name), device, has_fallback(device));
}

class OperatorSurvey::Recorder {
 public:
  explicit Recorder(c10::DeviceType device) : device_(device), falls_back_(has_fallback(device)) {
    TRIREME_CHECK(current == nullptr, "two surveys of operators at once");
    current = this;
    if (!falls_back_ && device_ != c10::DeviceType::CPU) {
      stand_in_.emplace(torch::Library::IMPL, "_", key_of(device_), __FILE__, __LINE__);
      stand_in_->fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
    }
    handle_ = at::addGlobalCallback(at::RecordFunctionCallback(&begin, &end)
                                        .needsInputs(true)
                                        .needsOutputs(true)
                                        .scopes({at::RecordScope::FUNCTION}));
  }
  ~Recorder() {
    at::removeCallback(handle_);
    stand_in_.reset();
    current = nullptr;
  }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  std::vector<OperatorUse> uses() const {
    std::vector<OperatorUse> result;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [name, use] : uses_) result.push_back(use);
    }
    const auto on_cpu = [](const OperatorUse& use) {
      return use.where == Where::kFallback || use.where == Where::kMissing;
    };
    std::stable_sort(result.begin(), result.end(), [&](const auto& a, const auto& b) {
      if (on_cpu(a) != on_cpu(b)) return on_cpu(a);
      return a.seconds > b.seconds;
    });
    return result;
  }

 private:
  struct Call final : at::ObserverContext {
    OperatorUse* use = nullptr;
    bool on_cpu = false;
    int64_t bytes = 0;
    std::chrono::steady_clock::time_point start;
  };

  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
    Recorder* self = current;
    const std::optional<c10::OperatorName> name = function.operator_name();
    if (self == nullptr || !name.has_value() || calls_on_cpu > 0) return nullptr;
    bool ours = false;
    int64_t bytes = 0;
    const auto look = [&](const at::Tensor& tensor) {
      if (!tensor.defined() || tensor.device().type() != self->device_) return;
      ours = true;
      bytes += tensor.numel() * static_cast<int64_t>(tensor.element_size());
    };
    for (const c10::IValue& value : function.inputs()) {
      for_each_tensor(value, look);
      // Factories have the device as an argument.
      ours = ours || (value.isDevice() && value.toDevice().type() == self->device_);
    }
    if (!ours) return nullptr;
    auto call = std::make_unique<Call>();
    call->use = &self->use_of(*name);
    call->on_cpu = call->use->where == Where::kFallback || call->use->where == Where::kMissing;
    call->bytes = bytes;
    if (call->on_cpu) ++calls_on_cpu;
    call->start = std::chrono::steady_clock::now();
    return call;
  }

  static void end(const at::RecordFunction& function, at::ObserverContext* context) {
    auto* call = static_cast<Call*>(context);
    Recorder* self = current;
    if (call == nullptr || self == nullptr) return;
    const auto took = std::chrono::steady_clock::now() - call->start;
    if (call->on_cpu) {
      --calls_on_cpu;
      for (const c10::IValue& value : function.outputs()) {
        for_each_tensor(value, [&](const at::Tensor& tensor) {
          if (tensor.defined())
            call->bytes += tensor.numel() * static_cast<int64_t>(tensor.element_size());
        });
      }
    }
    const std::lock_guard lock(self->mutex_);
    ++call->use->calls;
    if (!call->on_cpu) return;
    call->use->seconds += std::chrono::duration<double>(took).count();
    call->use->bytes += call->bytes;
  }

  OperatorUse& use_of(const c10::OperatorName& name) {
    const std::lock_guard lock(mutex_);
    const std::string text = text_of(name);
    const auto [place, is_new] = uses_.try_emplace(text);
    if (is_new) place->second = {.name = text, .where = where_of(name, device_, falls_back_)};
    return place->second;
  }

  static inline Recorder* current = nullptr;
  c10::DeviceType device_;
  bool falls_back_;
  std::optional<torch::Library> stand_in_;
  at::CallbackHandle handle_ = 0;
  mutable std::mutex mutex_;
  std::map<std::string, OperatorUse> uses_;
};

OperatorSurvey::OperatorSurvey(c10::DeviceType device)
    : recorder_(std::make_unique<Recorder>(device)) {}
OperatorSurvey::~OperatorSurvey() = default;

std::vector<OperatorUse> OperatorSurvey::uses() const {
  return recorder_->uses();
}

}  // namespace trireme::device
