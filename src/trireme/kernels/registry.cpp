#include "trireme/kernels/registry.h"

#include <c10/core/DeviceType.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/device/machine.h"
#include "trireme/kernels/aten/aten_kernels.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/library.h"
#include "trireme/kernels/sim/sim_kernels.h"

namespace trireme::kernels {

namespace {

enum class Dtypes { kCompute, kFloat, kBFloat16 };

struct OpEntry {
  const char* name;
  const char* signature;
  Dtypes dtypes;
};

const std::vector<OpEntry>& op_table() {
  static const std::vector<OpEntry> table = {
#define X(op, dtypes) {#op, typeid(&kernels::op).name(), Dtypes::dtypes},
      TRIREME_KERNEL_OPS(X)
#undef X
  };
  return table;
}

const OpEntry& entry_of(int op) {
  return op_table()[static_cast<size_t>(op)];
}

int op_index(const std::string& name) {
  const auto& table = op_table();
  for (size_t i = 0; i < table.size(); ++i) {
    if (name == table[i].name) return static_cast<int>(i);
  }
  throw Error(ErrorCode::kConfig, fmt::format("there is no op '{}'", name),
              suggestion(name, op_names()));
}

std::string device_name(at::DeviceType device) {
  return c10::DeviceTypeName(device, true);
}

std::vector<at::ScalarType> dtypes_of(int op) {
  switch (entry_of(op).dtypes) {
    case Dtypes::kFloat:
      return {at::kFloat};
    case Dtypes::kBFloat16:
      return {at::kBFloat16};
    case Dtypes::kCompute:
      break;
  }
  return {at::kFloat, at::kBFloat16};
}

bool contains(const std::vector<at::ScalarType>& dtypes, at::ScalarType dtype) {
  return std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end();
}

}  // namespace

struct Registry::Kernel {
  KernelInfo info;
  detail::AnyFunction function;
  bool computes_in(at::ScalarType dtype) const {
    return info.dtypes.empty() || contains(info.dtypes, dtype);
  }
  bool is_for(at::DeviceType device, at::ScalarType dtype) const {
    return (!info.device || *info.device == device) && computes_in(dtype);
  }
};

Registry::Registry(Capabilities capabilities)
    : capabilities_(std::move(capabilities)), kernels_(detail::kNumOps) {}
Registry::~Registry() = default;

void Registry::add_kernel(const char* op, const char* signature, const KernelInfo& info,
                          detail::AnyFunction function) {
  const std::lock_guard lock(mutex_);
  const int index = op_index(op);
  TRIREME_USER_CHECK(std::strcmp(signature, entry_of(index).signature) == 0, kConfig,
                     "build the library again with the headers of this Trireme",
                     "kernel '{}' has another signature than {} has here", info.name, op);
  TRIREME_USER_CHECK(!chosen_, kConfig, "load libraries before kernels are chosen",
                     "kernel '{}' of {} comes too late: kernels are chosen", info.name, op);
  TRIREME_USER_CHECK(!info.name.empty() && function != nullptr, kConfig,
                     "give it a name and a function", "a kernel of {} has no name or no function",
                     op);
  auto& kernels = kernels_[static_cast<size_t>(index)];
  for (const auto& kernel : kernels) {
    TRIREME_USER_CHECK(kernel->info.name != info.name, kConfig, "give one of them another name",
                       "{} has two kernels named '{}'", op, info.name);
  }
  kernels.push_back(std::make_unique<Kernel>(Kernel{info, function}));
  // Who asked before gets the better one from now on.
  for (size_t cell = 0; cell < kNumDevices * kNumDtypes; ++cell)
    cells_[static_cast<size_t>(index) * kNumDevices * kNumDtypes + cell].store(nullptr);
}

void Registry::choose(const KernelNames& use) {
  const std::lock_guard lock(mutex_);
  TRIREME_USER_CHECK(!chosen_ || use == use_, kConfig, "start another process for another choice",
                     "kernels are chosen already, and differently");
  for (const auto& [op, name] : use) {
    const Kernel& kernel = named(op_index(op), name);
    if (!kernel.info.device) continue;
    const std::string lacking = missing(kernel, *kernel.info.device);
    TRIREME_USER_CHECK(lacking.empty(), kConfig, "`trireme doctor --kernels` lists what can run",
                       "kernel '{}' of {} needs {}, which this {} does not have", name, op, lacking,
                       device_name(*kernel.info.device));
  }
  use_ = use;
  chosen_ = true;
  for (auto& cell : cells_) cell.store(nullptr);
}

std::string Registry::missing(const Kernel& kernel, at::DeviceType device) const {
  std::vector<std::string> lacking;
  for (const std::string& need : kernel.info.needs) {
    if (!capabilities_of(device).contains(need)) lacking.push_back(need);
  }
  return fmt::format("{}", fmt::join(lacking, ", "));
}

const std::set<std::string>& Registry::capabilities_of(at::DeviceType device) const {
  const auto known = known_capabilities_.find(device);
  // A private device gets its name when it is first asked for.
  if (known != known_capabilities_.end() && device != at::kPrivateUse1) return known->second;
  const std::vector<std::string> names = capabilities_(device);
  return known_capabilities_[device] = std::set<std::string>(names.begin(), names.end());
}

const Registry::Kernel* Registry::best(int op, at::DeviceType device, at::ScalarType dtype) const {
  if (!contains(dtypes_of(op), dtype)) return nullptr;
  const auto named = use_.find(entry_of(op).name);
  const Kernel* found = nullptr;
  for (const auto& kernel : kernels_[static_cast<size_t>(op)]) {
    if (!kernel->is_for(device, dtype) || !missing(*kernel, device).empty()) continue;
    if (named != use_.end() && kernel->info.name == named->second) return kernel.get();
    if (found == nullptr || kernel->info.priority > found->info.priority) found = kernel.get();
  }
  return found;
}

detail::AnyFunction Registry::resolve(int op, at::DeviceType device, at::ScalarType dtype) {
  const std::lock_guard lock(mutex_);
  const Kernel* kernel = best(op, device, dtype);
  if (kernel == nullptr) unsupported(op, device, dtype);
  const size_t column = dtype == at::kFloat ? 0 : 1;
  cells_[(static_cast<size_t>(op) * kNumDevices + static_cast<size_t>(device)) * kNumDtypes +
         column]
      .store(kernel->function, std::memory_order_release);
  return kernel->function;
}

namespace {

std::string reason(int op, at::DeviceType device, at::ScalarType dtype) {
  std::vector<std::string> known;
  for (const at::ScalarType type : dtypes_of(op))
    known.emplace_back(type == at::kFloat ? "float32" : "bfloat16");
  if (!contains(dtypes_of(op), dtype)) {
    return fmt::format("{} computes in {}, not {}", entry_of(op).name, fmt::join(known, " or "),
                       c10::toString(dtype));
  }
  return fmt::format("{} has no kernel for {} on {}", entry_of(op).name, c10::toString(dtype),
                     device_name(device));
}

}  // namespace

void Registry::unsupported(int op, at::DeviceType device, at::ScalarType dtype) const {
  throw Error(ErrorCode::kDevice, reason(op, device, dtype),
              "`trireme doctor --kernels` lists what can run; [kernels] load brings more");
}

const Registry::Kernel& Registry::named(int op, const std::string& name) const {
  std::vector<std::string> names;
  for (const auto& kernel : kernels_[static_cast<size_t>(op)]) {
    if (kernel->info.name == name) return *kernel;
    names.push_back(kernel->info.name);
  }
  throw Error(ErrorCode::kConfig, fmt::format("{} has no kernel '{}'", entry_of(op).name, name),
              suggestion(name, names));
}

detail::AnyFunction Registry::function_of(int op, const std::string& name) const {
  return named(op, name).function;
}

std::vector<at::ScalarType> Registry::dtypes_of_kernel(const std::string& op,
                                                       const std::string& kernel) const {
  const std::lock_guard lock(mutex_);
  const int index = op_index(op);
  std::vector<at::ScalarType> result;
  for (const at::ScalarType dtype : dtypes_of(index)) {
    if (named(index, kernel).computes_in(dtype)) result.push_back(dtype);
  }
  return result;
}

const KernelInfo* Registry::info(const std::string& op, at::ScalarType dtype,
                                 at::DeviceType device) const {
  const std::lock_guard lock(mutex_);
  const Kernel* kernel = best(op_index(op), device, dtype);
  return kernel == nullptr ? nullptr : &kernel->info;
}

const KernelInfo& Registry::info_of_kernel(const std::string& op, const std::string& kernel) const {
  const std::lock_guard lock(mutex_);
  return named(op_index(op), kernel).info;
}

std::optional<std::string> Registry::unsupported_reason(const std::string& op, at::ScalarType dtype,
                                                        at::DeviceType device) const {
  const std::lock_guard lock(mutex_);
  const int index = op_index(op);
  if (best(index, device, dtype) != nullptr) return std::nullopt;
  return reason(index, device, dtype);
}

std::vector<KernelRow> Registry::rows(at::DeviceType device) const {
  const std::lock_guard lock(mutex_);
  std::vector<KernelRow> result;
  for (int op = 0; op < detail::kNumOps; ++op) {
    for (const at::ScalarType dtype : dtypes_of(op)) {
      KernelRow row{entry_of(op).name, dtype, "", {}};
      if (const Kernel* kernel = best(op, device, dtype)) row.chosen = kernel->info.name;
      for (const auto& kernel : kernels_[static_cast<size_t>(op)]) {
        if (kernel->is_for(device, dtype))
          row.candidates.push_back(
              {kernel->info.name, kernel->info.priority, missing(*kernel, device)});
      }
      std::stable_sort(row.candidates.begin(), row.candidates.end(),
                       [](const auto& a, const auto& b) { return a.priority > b.priority; });
      result.push_back(std::move(row));
    }
  }
  return result;
}

std::set<std::string> Registry::called(at::DeviceType device) const {
  std::set<std::string> ops;
  for (int op = 0; op < detail::kNumOps; ++op) {
    for (size_t column = 0; column < kNumDtypes; ++column) {
      const size_t cell =
          (static_cast<size_t>(op) * kNumDevices + static_cast<size_t>(device)) * kNumDtypes +
          column;
      if (cells_[cell].load() != nullptr) ops.insert(entry_of(op).name);
    }
  }
  return ops;
}

std::vector<std::string> Registry::kernels_of(const std::string& op, at::DeviceType device) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const auto& kernel : kernels_[static_cast<size_t>(op_index(op))]) {
    if (kernel->info.device.value_or(device) == device && missing(*kernel, device).empty())
      names.push_back(kernel->info.name);
  }
  return names;
}

void add_own_kernels(Registrar& registrar) {
  KernelInfo of_aten{
      .name = "aten", .device = std::nullopt, .priority = 0, .recordable = Recordable::kAsAten};
  const KernelInfo of_cpu{.name = "cpu", .device = at::kCPU, .priority = 100};
  // The planner knows what the processor's hold; of the references it asks those that hold the most.
  const auto aten_workspace = [](std::string_view op) -> WorkspaceBytes {
    if (op == "attention")
      return [](const CallSizes& c) { return aten::attention_workspace(c, false); };
    if (op == "attention_backward")
      return [](const CallSizes& c) { return aten::attention_workspace(c, true); };
    return nullptr;
  };
#define X(op, dtypes)                              \
  of_aten.workspace = aten_workspace(#op);         \
  registrar.add<&kernels::op>(of_aten, &aten::op); \
  registrar.add<&kernels::op>(of_cpu, &cpu::op);
  TRIREME_KERNEL_OPS(X)
#undef X
  sim::register_kernels(registrar);
}

Registry& registry() {
  static Registry& process = *[] {
    auto* made = new Registry([](at::DeviceType device) {
      if (device == at::kCPU) return device::read_machine().features;
      // Whose device has the private place is a capability, too: kernels for one are not for another.
      if (device == at::kPrivateUse1) return std::vector{c10::get_privateuse1_backend()};
      return std::vector<std::string>{};
    });
    add_own_kernels(*made);
    add_device_kernels(*made);
    return made;
  }();
  return process;
}

const std::vector<std::string>& op_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> result;
    for (const OpEntry& entry : op_table()) result.emplace_back(entry.name);
    return result;
  }();
  return names;
}

std::vector<at::ScalarType> op_dtypes(const std::string& op) {
  return dtypes_of(op_index(op));
}

std::optional<std::string> unsupported_reason(const std::string& op, at::ScalarType dtype,
                                              at::Device device) {
  return registry().unsupported_reason(op, dtype, device.type());
}

}  // namespace trireme::kernels
