#include "trireme/execute/device_copies.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::execute {
namespace {

/// The whole storage as bytes.
at::Tensor bytes_of(const c10::Storage& storage) {
  at::Tensor bytes = at::empty({0}, at::TensorOptions().dtype(at::kByte).device(storage.device()));
  bytes.set_(storage, 0, {static_cast<int64_t>(storage.nbytes())}, {1});
  return bytes;
}

}  // namespace

DeviceCopies::DeviceCopies(device::Device& device)
    : device_(device), out_(device.new_queue()), in_(device.new_queue()) {}

at::Tensor DeviceCopies::take(int64_t bytes) {
  // A step asks for the same sizes each time.
  const auto found = spare_.find(bytes);
  if (found == spare_.end()) return device_.empty_pinned({bytes}, at::kByte);
  at::Tensor host = std::move(found->second);
  spare_.erase(found);
  return host;
}

OffloadedMemory DeviceCopies::copy_out(const std::vector<at::Tensor>& tensors) {
  OffloadedMemory memory;
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.defined() || tensor.storage().nbytes() == 0) continue;
    const c10::Storage& storage = tensor.storage();
    const bool known = std::ranges::any_of(
        memory.storages, [&](const c10::Storage& other) { return other.is_alias_of(storage); });
    if (known) continue;
    TRIREME_CHECK(storage.device() == device_.torch_device(), "a tensor on {} among those on {}",
                  storage.device().str(), device_.torch_device().str());
    TRIREME_CHECK(storage.data() != nullptr, "a tensor is offloaded twice");
    memory.storages.push_back(storage);
    memory.host.push_back(take(static_cast<int64_t>(storage.nbytes())));
    device_.copy(memory.host.back(), bytes_of(storage), *out_);
  }
  return memory;
}

void DeviceCopies::release(OffloadedMemory& memory) {
  for (const c10::Storage& storage : memory.storages) {
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(c10::DataPtr(nullptr, storage.device()));
  }
}

void DeviceCopies::copy_in(OffloadedMemory& memory) {
  for (const c10::Storage& storage : memory.storages) {
    const at::Tensor fresh =
        at::empty({static_cast<int64_t>(storage.nbytes())},
                  at::TensorOptions().dtype(at::kByte).device(storage.device()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(
        fresh.storage().unsafeGetStorageImpl()->set_data_ptr(
            c10::DataPtr(nullptr, storage.device())));
  }
  in_after_compute();
  for (size_t i = 0; i < memory.storages.size(); ++i)
    device_.copy(bytes_of(memory.storages[i]), memory.host[i], *in_);
}

void DeviceCopies::give_back(OffloadedMemory memory) {
  for (at::Tensor& host : memory.host) {
    const int64_t bytes = host.numel();
    spare_.emplace(bytes, std::move(host));
  }
}

void DeviceCopies::in_after_compute() {
  in_->wait_for(*device_.compute_queue().record());
}

}  // namespace trireme::execute
