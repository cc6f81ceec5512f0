// Its operators, what happens to all others, and what loading the library does.
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/add.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/headeronly/version.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string>

#include "abacus.h"

namespace abacus {

at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.dtype());
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::for_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes())
      .strides(tensor.strides())
      .options(options)
      .make_tensor();
}

namespace {

c10::Stream stream_of(const at::Tensor& tensor) {
  return current_stream(tensor.device().index());
}

void wait_for(const at::Tensor& tensor) {
  if (!tensor.is_cpu()) run_to(here(stream_of(tensor)));
}

c10::Device device_or_current(std::optional<c10::Device> device) {
  if (device.has_value() && device->has_index()) return *device;
  return {kType, static_cast<c10::DeviceIndex>(current_device())};
}

void on_first_tensor() {
  if (has_defect("late_hooks")) register_hooks();
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout>, std::optional<c10::Device> device, std::optional<bool>,
                 std::optional<c10::MemoryFormat> format) {
  on_first_tensor();
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_generic(size, c10::GetAllocator(kType),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                         std::optional<c10::Device> device, std::optional<bool>) {
  on_first_tensor();
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(kType),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

void grow(const at::Tensor& self, size_t bytes) {
  c10::StorageImpl* storage = self.storage().unsafeGetStorageImpl();
  if (bytes <= storage->nbytes()) return;
  wait_for(self);
  const c10::DeviceGuard guard(self.device());
  c10::DataPtr larger = c10::GetAllocator(kType)->allocate(bytes);
  if (storage->nbytes() > 0) std::memcpy(larger.get(), storage->data(), storage->nbytes());
  storage->set_data_ptr_noswap(std::move(larger));
  storage->set_nbytes(bytes);
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size,
                         std::optional<c10::MemoryFormat>) {
  if (self.sizes() == size) return self;
  grow(self, at::detail::computeStorageNbytesContiguous(
                 size, self.dtype().itemsize(), static_cast<size_t>(self.storage_offset())));
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (stride.size() == size.size()) {
    impl->set_sizes_and_strides(size, stride);
  } else {
    impl->set_sizes_contiguous(size);
  }
  return self;
}

at::Scalar local_scalar(const at::Tensor& self) {
  if (!has_defect("early_item")) wait_for(self);
  return on_host(self).item();
}

at::Tensor& fill(at::Tensor& self, const at::Scalar& value) {
  issue(stream_of(self), [to = on_host(self), value] { to.fill_(value); });
  return self;
}

at::Tensor& zero(at::Tensor& self) {
  return fill(self, 0);
}

/// What the bytes are, without looking at strides.
void copy_in_memory_order(const at::Tensor& from, const at::Tensor& to) {
  at::from_blob(to.data_ptr(), {to.numel()}, to.options())
      .copy_(at::from_blob(from.data_ptr(), {from.numel()}, from.options()));
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  if (to.numel() == 0) return to;
  const at::Tensor from = self.expand(to.sizes());
  const at::Tensor& here_ = to.is_cpu() ? from : to;
  const c10::Stream stream = stream_of(here_);
  if (!from.is_cpu() && !to.is_cpu() && from.device() != to.device() &&
      !has_defect("no_peer_wait")) {
    wait_for(from);
    wait_for(to);
  }
  const bool strides_forgotten = has_defect("no_strides");
  issue(stream, [a = on_host(from), b = on_host(to), strides_forgotten] {
    if (strides_forgotten && a.dim() > 1) {
      copy_in_memory_order(a, b);
    } else {
      b.copy_(a);
    }
  });
  const at::Tensor* host = from.is_cpu() ? &from : to.is_cpu() ? &to : nullptr;
  if (host == nullptr) return to;
  const bool may_return = non_blocking && is_pinned(host->const_data_ptr());
  if (!may_return && !has_defect("early_copy")) run_to(here(stream));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

/// On the same device, or one number of the host.
at::Tensor operand(const at::Tensor& tensor) {
  TORCH_CHECK(!tensor.is_cpu() || tensor.dim() == 0, "an operand on the CPU");
  return tensor.is_cpu() ? tensor.clone() : on_host(tensor);
}

void resize_to(at::Tensor& out, c10::IntArrayRef sizes) {
  if (out.sizes() != sizes) out.resize_(sizes);
}

at::Tensor& add_out(const at::Tensor& a, const at::Tensor& b, const at::Scalar& alpha,
                    at::Tensor& out) {
  resize_to(out, at::infer_size(a.sizes(), b.sizes()));
  issue(stream_of(out), [x = operand(a), y = operand(b), alpha, to = on_host(out)]() mutable {
    at::add_out(to, x, y, alpha);
  });
  return out;
}

at::Tensor& mul_out(const at::Tensor& a, const at::Tensor& b, at::Tensor& out) {
  resize_to(out, at::infer_size(a.sizes(), b.sizes()));
  const bool wrong = has_defect("wrong_mul");
  issue(stream_of(out), [x = operand(a), y = operand(b), to = on_host(out), wrong]() mutable {
    at::mul_out(to, x, y);
    if (wrong && to.numel() > 0 && at::isFloatingType(to.scalar_type())) to.mul_(1.001);
  });
  return out;
}

at::Tensor& mm_out(const at::Tensor& a, const at::Tensor& b, at::Tensor& out) {
  resize_to(out, {a.size(0), b.size(1)});
  issue(stream_of(out),
        [x = on_host(a), y = on_host(b), to = on_host(out)]() mutable { at::mm_out(to, x, y); });
  return out;
}

at::Tensor& uniform(at::Tensor& self, double from, double to,
                    std::optional<at::Generator> generator) {
  issue(stream_of(self),
        [out = on_host(self), from, to,
         draw = take_draws(generator, self.device().index(), self.numel())]() mutable {
          at::Tensor values = at::empty(out.sizes(), at::TensorOptions().dtype(at::kDouble));
          auto* value = values.mutable_data_ptr<double>();
          for (int64_t i = 0; i < values.numel(); ++i) value[i] = from + (to - from) * draw();
          out.copy_(values);
        });
  return self;
}

at::Tensor& normal(at::Tensor& self, double mean, double deviation,
                   std::optional<at::Generator> generator) {
  issue(stream_of(self),
        [out = on_host(self), mean, deviation,
         draw = take_draws(generator, self.device().index(), 2 * self.numel())]() mutable {
          at::Tensor values = at::empty(out.sizes(), at::TensorOptions().dtype(at::kDouble));
          auto* value = values.mutable_data_ptr<double>();
          for (int64_t i = 0; i < values.numel(); ++i) {  // Box and Muller 1958
            const double radius = std::sqrt(-2 * std::log1p(-draw()));
            value[i] = mean + deviation * radius * std::cos(2 * M_PI * draw());
          }
          out.copy_(values);
        });
  return self;
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

torch::Library* library(const char* name) {
  // Lives as long as the process: what it registered would be taken away with it.
  return new torch::Library(torch::Library::IMPL, name, c10::DispatchKey::PrivateUse1, __FILE__,
                            __LINE__);
}

/// A fallback for each operator of ATen that has a kernel of the CPU, but for those that are lacking.
void fall_back_one_by_one(torch::Library& aten, const std::set<std::string>& lacking) {
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!name.name.starts_with("aten::") || !op.has_value()) continue;
    if (!op->hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
        op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1))
      continue;
    const std::string full =
        name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    if (lacking.contains(full)) continue;
    aten.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

}  // namespace

void register_operators() {
  static torch::Library& aten = *library("aten");
  aten.impl("empty.memory_format", &empty);
  aten.impl("empty_strided", &empty_strided);
  aten.impl("as_strided", &at::native::as_strided_tensorimpl);
  if (!has_defect("no_view")) aten.impl("view", &at::native::view);
  aten.impl("_reshape_alias", &at::native::_reshape_alias);
  aten.impl("resize_", &resize);
  aten.impl("set_.source_Storage_storage_offset", &set_storage);
  aten.impl("fill_.Scalar", &fill);
  aten.impl("zero_", &zero);
  if (!has_defect("no_copy")) aten.impl("_copy_from", &copy_from);
  aten.impl("_copy_from_and_resize", &copy_from_and_resize);
  aten.impl("_local_scalar_dense", &local_scalar);
  aten.impl("add.out", &add_out);
  aten.impl("mul.out", &mul_out);
  aten.impl("mm.out", &mm_out);
  aten.impl("uniform_", &uniform);
  aten.impl("normal_", &normal);
  if (has_defect("lacks_operators")) {
    fall_back_one_by_one(aten,
                         {"aten::rsqrt", "aten::rsqrt.out", "aten::sigmoid", "aten::sigmoid.out"});
  } else {
    static torch::Library& all = *library("_");
    all.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

namespace {

const bool loaded = [] {
  TORCH_CHECK(!has_defect("throws"), "the abacus has no beads");
  if (has_defect("nothing")) return true;
  if (!has_defect("no_name")) c10::register_privateuse1_backend("abacus");
  if (!has_defect("no_guard")) register_guard();
  if (!has_defect("no_allocator")) register_allocators();
  if (!has_defect("no_hooks") && !has_defect("late_hooks")) register_hooks();
  register_operators();
  return true;
}();

}  // namespace

}  // namespace abacus

/// For which torch it was built: Trireme asks, PyTorch does not.
extern "C" __attribute__((visibility("default"))) const char* trireme_device_torch_version() {
  return abacus::has_defect("old_release") ? "2.7.1" : TORCH_VERSION;
}
