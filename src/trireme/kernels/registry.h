// Which kernel runs an op: the table behind the functions of ops.h and moe_ops.h.
//
// A cell of the table is an op on a type of device in a dtype. Its kernel is the one that the user named, or else the
// one of highest priority that can run there; the choice is made at the first call or by choose(), once, and a call
// costs an indexed load. Every op has the kernel "aten" on any device (kernels/aten) and "cpu" on processors.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "trireme/kernels/plugin.h"

namespace trireme::kernels {

/// A kernel that could run a cell, or why not.
struct KernelCandidate {
  std::string name;
  int priority = 0;
  std::string missing;  ///< what the device lacks of its needs; "": nothing
};

/// A cell for people.
struct KernelRow {
  std::string op;
  at::ScalarType dtype = at::kFloat;
  std::string chosen;                       ///< "" if no kernel can
  std::vector<KernelCandidate> candidates;  ///< highest priority first
};

/// Kernels by the op's name, as the user writes them.
using KernelNames = std::map<std::string, std::string>;

/// Thread-safety: find() from any thread; add() and choose() before that, from one.
class Registry : public Registrar {
 public:
  /// What a type of device has of KernelInfo::needs.
  using Capabilities = std::function<std::vector<std::string>(at::DeviceType)>;

  explicit Registry(Capabilities capabilities);
  ~Registry() override;

  /// Makes the choice for good: the kernels named in `use`, for every dtype that they have, and by priority elsewhere.
  /// Kernels cannot be added any more; the same choice may be made again. Error{kConfig} for an unknown op or kernel
  /// (with the nearest name), for one that needs what the device lacks, and for another choice than the one made.
  void choose(const KernelNames& use);
  bool chosen() const { return chosen_; }

  /// The kernel of an op. Error{kDevice} naming op, dtype and device if there is none.
  template <auto kOp>
  auto find(at::DeviceType device, at::ScalarType dtype) -> decltype(kOp) {
    const int column = dtype == at::kFloat ? 0 : dtype == at::kBFloat16 ? 1 : kNumDtypes;
    const auto row = static_cast<size_t>(device);
    if (column == kNumDtypes || row >= kNumDevices) [[unlikely]]
      unsupported(detail::OpOf<kOp>::kIndex, device, dtype);
    auto& cell = cells_[(detail::OpOf<kOp>::kIndex * kNumDevices + row) * kNumDtypes +
                        static_cast<size_t>(column)];
    detail::AnyFunction function = cell.load(std::memory_order_acquire);
    if (function == nullptr) [[unlikely]]
      function = resolve(detail::OpOf<kOp>::kIndex, device, dtype);
    return reinterpret_cast<decltype(kOp)>(function);
  }

  /// The kernel of this name. Error{kConfig} with the nearest name if there is none.
  template <auto kOp>
  auto find_named(const std::string& kernel) const -> decltype(kOp) {
    return reinterpret_cast<decltype(kOp)>(function_of(detail::OpOf<kOp>::kIndex, kernel));
  }

  /// Of the kernel that runs a cell; null: none can. Stays valid. Error{kConfig} for an unknown op.
  const KernelInfo* info(const std::string& op, at::ScalarType dtype, at::DeviceType device) const;
  /// Of a kernel by name. Error{kConfig} for unknown names.
  const KernelInfo& info_of_kernel(const std::string& op, const std::string& kernel) const;

  /// Why no kernel can run; empty if one can. Error{kConfig} for an unknown op.
  std::optional<std::string> unsupported_reason(const std::string& op, at::ScalarType dtype,
                                                at::DeviceType device) const;

  /// Every cell of a type of device, in the order of the ops; what would be chosen where nothing is yet.
  std::vector<KernelRow> rows(at::DeviceType device) const;

  /// Ops that were called on a type of device, since kernels of theirs were last added.
  std::set<std::string> called(at::DeviceType device) const;

  /// Names of an op's kernels that a type of device can run, in the order in which they came. Error{kConfig} for an unknown
  /// op.
  std::vector<std::string> kernels_of(const std::string& op, at::DeviceType device) const;

  /// What a kernel computes in, of what its op does. Error{kConfig} for unknown names.
  std::vector<at::ScalarType> dtypes_of_kernel(const std::string& op,
                                               const std::string& kernel) const;

 private:
  struct Kernel;
  static constexpr size_t kNumDevices =
      static_cast<size_t>(at::DeviceType::COMPILE_TIME_MAX_DEVICE_TYPES);
  static constexpr size_t kNumDtypes = 2;

  void add_kernel(const char* op, const char* signature, const KernelInfo& info,
                  detail::AnyFunction function) override;
  detail::AnyFunction resolve(int op, at::DeviceType device, at::ScalarType dtype);
  [[noreturn]] void unsupported(int op, at::DeviceType device, at::ScalarType dtype) const;
  detail::AnyFunction function_of(int op, const std::string& name) const;
  const Kernel& named(int op, const std::string& name) const;
  const Kernel* best(int op, at::DeviceType device, at::ScalarType dtype) const;
  std::string missing(const Kernel& kernel, at::DeviceType device) const;
  const std::set<std::string>& capabilities_of(at::DeviceType device) const;

  Capabilities capabilities_;
  mutable std::map<at::DeviceType, std::set<std::string>> known_capabilities_;
  mutable std::mutex mutex_;
  std::vector<std::vector<std::unique_ptr<Kernel>>> kernels_;  ///< by op
  KernelNames use_;
  bool chosen_ = false;
  std::array<std::atomic<detail::AnyFunction>, detail::kNumOps * kNumDevices * kNumDtypes> cells_{};
};

/// Trireme's kernels of every op: "aten" (priority 0, any device), "cpu" and, for the simulated device, "sim" (100).
void add_own_kernels(Registrar& registrar);

/// The process's own, with Trireme's kernels in it.
Registry& registry();

/// The process's kernel of an op for tensors like this one.
template <auto kOp>
auto kernel_for(const at::Tensor& tensor) {
  return registry().find<kOp>(tensor.device().type(), tensor.scalar_type());
}

/// Every op, in the order of ops.h and moe_ops.h.
const std::vector<std::string>& op_names();
/// What an op computes in. Error{kConfig} for an unknown op.
std::vector<at::ScalarType> op_dtypes(const std::string& op);

}  // namespace trireme::kernels
