// What a kernel brings along, and how a shared library offers its kernels to Trireme.
//
//   #include <trireme/kernels/plugin.h>
//   static void my_rms_norm(const at::Tensor& x, ...) { ... }          // the contract of ops.h
//   TRIREME_KERNELS(registrar) {
//     registrar.add<&trireme::kernels::rms_norm>({.name = "my_rms_norm"}, &my_rms_norm);
//   }
//
// Built as a module against these headers and libtorch alone (CMake: Trireme::kernel_headers), named in the run file:
// [kernels] load = ["./my_rms_norm.so"]. A function of another signature than the op's does not compile.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "trireme/base/torch_compat.h"
#include "trireme/kernels/moe_ops.h"
#include "trireme/kernels/op_list.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {

/// Sizes of a call, for whoever asks a kernel what it will hold. Those that the op does not have are 0.
struct CallSizes {
  at::ScalarType dtype = at::kFloat;
  int64_t rows = 0;        ///< N; of all groups together
  int64_t in = 0;          ///< width of x (linear's, a norm's, the head's hidden states)
  int64_t out = 0;         ///< width of y; size of the vocabulary
  int64_t groups = 0;      ///< of about as many rows each
  int64_t parts = 1;       ///< weights side by side in one call of grouped_linear
  int64_t chunk_rows = 0;  ///< of linear_cross_entropy, with both gradients
  bool bias_and_residual = false;
  int64_t batch = 0;
  int64_t places = 0;  ///< of queries and of keys
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  bool softcap = false;
  bool sinks = false;
};
/// "Workspace" of ops.h: bytes of the device's memory, of tensors, that a call of these sizes holds beside what it is given.
/// The conformance suite holds a kernel to it: never more, and not much less.
using WorkspaceBytes = int64_t (*)(const CallSizes&);

enum class Recordable {
  kYes,
  kAsAten,  ///< where any ATen operator can be: it is made of those (Capabilities::records_aten)
  kNo       ///< it waits, reads back, or asks a library that does
};

/// A kernel of an op: who it is, and where it can be used.
struct KernelInfo {
  std::string name;                                 ///< unique among the op's kernels
  std::optional<at::DeviceType> device = at::kCPU;  ///< none: any device
  std::vector<at::ScalarType> dtypes = {};          ///< empty: all that the op computes in
  /// The highest that can run is chosen. Trireme's own have 0 (aten) and 100 (cpu): whoever loads a kernel means it.
  int priority = 200;
  /// What the device must have, as `trireme doctor` names it: avx512_bf16, amx_bf16 ... Without, it is not chosen.
  std::vector<std::string> needs = {};
  /// For the ops whose workspace the planner asks for: linear and its weight's gradient, bias_gradient, the norms' backward,
  /// attention, linear_cross_entropy, the grouped products. Null: not stated, and the plan leaves it out.
  WorkspaceBytes workspace = nullptr;
  /// Whether its calls can be recorded (Device::record).
  Recordable recordable = Recordable::kYes;
};

namespace detail {

using AnyFunction = void (*)();

enum OpIndex : int {
#define X(op, dtypes) kIndexOf_##op,
  TRIREME_KERNEL_OPS(X)
#undef X
      kNumOps
};

/// The index and the name of an op, by its function.
template <auto kOp>
struct OpOf;
#define X(op, dtypes)                            \
  template <>                                    \
  struct OpOf<&kernels::op> {                    \
    static constexpr int kIndex = kIndexOf_##op; \
    static constexpr const char* kName = #op;    \
  };
TRIREME_KERNEL_OPS(X)
#undef X

/// Changes with the layout of anything that the ops take or give by reference.
constexpr uint64_t layout_of_arguments() {
  uint64_t mix = 14695981039346656037U;
  for (const uint64_t size :
       {sizeof(AttentionOptions), sizeof(CrossEntropyOutputs), sizeof(AdamWParams),
        sizeof(RouterOptions), sizeof(RouterBalance), sizeof(ExpertRows), sizeof(ExpertActivation),
        sizeof(KernelInfo), sizeof(CallSizes), sizeof(at::Tensor)})
    mix = (mix ^ size) * 1099511628211U;
  return mix;
}

}  // namespace detail

/// Takes kernels in. Thread-safety: one caller at a time. Error{kConfig} for a name that is taken, and once kernels are
/// chosen.
class Registrar {
 public:
  virtual ~Registrar() = default;

  /// Offers `function` for the op kOp, such as &kernels::rms_norm. It must keep the op's contract (ops.h, moe_ops.h)
  /// and stay valid as long as the process.
  template <auto kOp>
  void add(const KernelInfo& info, std::type_identity_t<decltype(kOp)> function) {
    add_kernel(detail::OpOf<kOp>::kName, typeid(decltype(kOp)).name(), info,
               reinterpret_cast<detail::AnyFunction>(function));
  }

 private:
  /// By name and signature, for a library may know other ops than the program.
  virtual void add_kernel(const char* op, const char* signature, const KernelInfo& info,
                          detail::AnyFunction function) = 0;
};

/// What a library and the program must have in common.
struct KernelsAbi {
  int contract;          ///< of the ops; raised when what they mean changes
  int torch_version[3];  ///< major, minor, patch
  uint64_t layout;
};
// Not inline: an inline variable would be one for all libraries of the process, and say the same for each.
constexpr KernelsAbi kKernelsAbi = {1,
                                    {TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH},
                                    detail::layout_of_arguments()};

}  // namespace trireme::kernels

/// Defines what a kernel library exports; the body that follows registers its kernels.
#define TRIREME_KERNELS(registrar)                                                      \
  extern "C" __attribute__((visibility("default"))) const void* trireme_kernels_abi() { \
    return &::trireme::kernels::kKernelsAbi;                                            \
  }                                                                                     \
  extern "C" __attribute__((visibility("default"))) void trireme_register_kernels(      \
      ::trireme::kernels::Registrar& registrar)
