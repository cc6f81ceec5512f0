// The operators that must be a device's own: making, viewing, filling and copying tensors. All others run ATen's CPU
// kernels through fallback.cpp.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/device/sim/fallback.h"
#include "trireme/device/sim/runtime.h"

namespace trireme::device::sim {
namespace {

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;

double bytes_of(const at::Tensor& tensor) {
  return static_cast<double>(tensor.numel()) * static_cast<double>(tensor.element_size());
}

// ---- making --------------------------------------------------------------------------------------

c10::Device device_or_current(std::optional<c10::Device> device) {
  if (device.has_value() && device->has_index()) return *device;
  return {kType, static_cast<c10::DeviceIndex>(current_device())};
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout> layout, std::optional<c10::Device> device,
                 std::optional<bool> pin_memory, std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(!pin_memory.value_or(false), "only host tensors can be pinned");
  TORCH_CHECK(layout.value_or(c10::Layout::Strided) == c10::Layout::Strided,
              "sim has dense tensors only");
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_generic(size, c10::GetAllocator(kType),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<c10::ScalarType> dtype, std::optional<c10::Layout> layout,
                         std::optional<c10::Device> device, std::optional<bool> pin_memory) {
  TORCH_CHECK(!pin_memory.value_or(false), "only host tensors can be pinned");
  TORCH_CHECK(layout.value_or(c10::Layout::Strided) == c10::Layout::Strided,
              "sim has dense tensors only");
  const c10::DeviceGuard guard(device_or_current(device));
  return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(kType),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// ---- viewing -------------------------------------------------------------------------------------

void grow_storage(c10::TensorImpl* self, size_t bytes) {
  if (bytes > self->unsafe_storage().nbytes()) resize_storage(self->storage(), bytes);
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size,
                         std::optional<c10::MemoryFormat> format) {
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  const auto wanted = format.value_or(c10::MemoryFormat::Contiguous);
  if (self.sizes() == size && (!format.has_value() || self.is_contiguous(wanted))) return self;
  const size_t bytes = at::detail::computeStorageNbytesContiguous(
      size, self.dtype().itemsize(), static_cast<size_t>(self.storage_offset()));
  grow_storage(impl, bytes);
  impl->set_sizes_contiguous(size);
  if (format.has_value() && *format != c10::MemoryFormat::Preserve) {
    impl->empty_tensor_restride(*format);
  }
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
  c10::TensorImpl* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(source);
  impl->set_storage_offset(offset);
  if (stride.empty() && !size.empty()) {
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride);
  }
  grow_storage(impl, at::detail::computeStorageNbytes(size, self.strides(), self.dtype().itemsize(),
                                                      static_cast<size_t>(offset)));
  return self;
}

// ---- filling and reading -------------------------------------------------------------------------

at::Tensor& fill(at::Tensor& self, const at::Scalar& value) {
  if (self.numel() == 0) return self;
  submit(current_stream(self.device().index()), {"aten::fill_", {.bytes = bytes_of(self)}, {self}},
         [alias = host_alias(self), value] { alias.fill_(value); });
  return self;
}

at::Tensor& zero(at::Tensor& self) {
  return fill(self, 0);
}

at::Scalar local_scalar(const at::Tensor& self) {
  at::Scalar value;
  const c10::Stream stream = current_stream(self.device().index());
  submit(stream,
         {"aten::_local_scalar_dense", {.bytes = bytes_of(self), .path = Cost::Path::kHostLink}},
         [alias = host_alias(self), &value] { value = alias.item(); });
  synchronize(stream);
  return value;
}

// ---- copying -------------------------------------------------------------------------------------

/// Between two devices: on the source's stream, after what the target's stream has, and before what it gets.
void copy_between(const at::Tensor& from, const at::Tensor& to) {
  const c10::Stream source = current_stream(from.device().index());
  const c10::Stream target = current_stream(to.device().index());
  c10::Event ready(kType);
  ready.record(target);
  ready.block(source);
  submit(source, {"copy.peer", {.bytes = bytes_of(from), .path = Cost::Path::kPeerLink}, {to}},
         [a = host_alias(from), b = host_alias(to)] { b.copy_(a); });
  c10::Event done(kType);
  done.record(source);
  done.block(target);
}

/// Between host and device. A pinned host tensor is kept until the copy is done; another one may be gone or changed once
/// this returns, so it blocks.
void copy_host(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const bool from_host = from.is_cpu();
  const at::Tensor& host = from_host ? from : to;
  const c10::Stream stream = current_stream((from_host ? to : from).device().index());
  Kernel kernel{from_host ? "copy.to_device" : "copy.to_host",
                {.bytes = bytes_of(from), .path = Cost::Path::kHostLink}};
  if (from_host) kernel.outputs = {to};
  submit(stream, std::move(kernel), [a = host_alias(from), b = host_alias(to)] { b.copy_(a); });
  if (!non_blocking || !is_pinned(host.const_data_ptr())) synchronize(stream);
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  if (to.numel() == 0) return to;
  // copy_ takes a source that can be expanded.
  const at::Tensor from = self.sizes() == to.sizes() ? self : self.expand(to.sizes());
  TORCH_CHECK((from.is_cpu() || from.device().type() == kType) &&
                  (to.is_cpu() || to.device().type() == kType),
              "a copy from ", from.device(), " to ", to.device());
  if (from.is_cpu() || to.is_cpu()) {
    copy_host(from, to, non_blocking);
  } else if (from.device() != to.device()) {
    copy_between(from, to);
  } else if (!from.is_same(to)) {
    submit(current_stream(to.device().index()),
           {"aten::copy_", {.bytes = bytes_of(from) + bytes_of(to)}, {to}},
           [a = host_alias(from), b = host_alias(to)] { b.copy_(a); });
  }
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  c10::impl::VirtualGuardImpl(kType).recordDataPtrOnStream(self.storage().data_ptr(), stream);
}

bool is_set_to(const at::Tensor& self, const at::Tensor& other) {
  return self.storage().is_alias_of(other.storage()) &&
         self.storage_offset() == other.storage_offset() && self.sizes() == other.sizes() &&
         self.strides() == other.strides();
}

}  // namespace

void resize_storage(const c10::Storage& storage, size_t bytes) {
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  const c10::DeviceGuard guard(impl->device());
  c10::DataPtr block = c10::GetAllocator(kType)->allocate(bytes);
  const size_t kept = std::min(bytes, impl->nbytes());
  if (kept > 0) {
    const c10::Stream stream = current_stream(impl->device().index());
    void* to = host_address(block.get());
    const void* from = host_address(impl->data_ptr().get());
    submit(stream, {"aten::resize_", {.bytes = 2.0 * static_cast<double>(kept)}},
           [to, from, kept] { std::memcpy(to, from, kept); });
    c10::impl::VirtualGuardImpl(kType).recordDataPtrOnStream(impl->data_ptr(), stream);
  }
  impl->set_data_ptr_noswap(std::move(block));
  impl->set_nbytes(bytes);
}

void register_operators() {
  // Lives as long as the process: what it registered would be taken away with it.
  static auto* aten = new torch::Library(torch::Library::IMPL, "aten",
                                         c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  aten->impl("empty.memory_format", &empty);
  aten->impl("empty_strided", &empty_strided);
  aten->impl("as_strided", &at::native::as_strided_tensorimpl);
  aten->impl("view", &at::native::view);
  aten->impl("_reshape_alias", &at::native::_reshape_alias);
  aten->impl("unfold", &at::native::unfold);
  aten->impl("resize_", &resize);
  aten->impl("set_.source_Storage_storage_offset", &set_storage);
  aten->impl("fill_.Scalar", &fill);
  aten->impl("zero_", &zero);
  aten->impl("_local_scalar_dense", &local_scalar);
  aten->impl("_copy_from", &copy_from);
  aten->impl("_copy_from_and_resize", &copy_from_and_resize);
  aten->impl("record_stream", &record_stream);
  aten->impl("is_set_to", &is_set_to);
  static auto* all = new torch::Library(torch::Library::IMPL, "_", c10::DispatchKey::PrivateUse1,
                                        __FILE__, __LINE__);
  all->fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

}  // namespace trireme::device::sim
