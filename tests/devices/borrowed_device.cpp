// A device as a library, for the tests: the processor under another name, with ranges that can be read back.
#include <ATen/ops/empty.h>

#include <stdexcept>

#include "trireme/base/error.h"
#include "trireme/device/library.h"

namespace {

namespace device = trireme::device;

class BorrowedDevice final : public device::Device {
 public:
  std::string name() const override { return "borrowed" + ranges_; }
  std::string type() const override { return "borrowed"; }
  c10::Device torch_device() const override { return c10::Device(c10::kCPU); }
  device::Capabilities capabilities() const override { return {}; }
  int64_t total_memory_bytes() const override { return 1000; }
  device::MemoryStatistics memory() const override { return {}; }
  void reset_peak_memory() override {}
  void set_memory_cap(int64_t /*bytes*/) override {}
  void synchronize() override {}
  device::Queue& compute_queue() override { throw std::logic_error("no queues"); }
  std::unique_ptr<device::Queue> new_queue() override { throw std::logic_error("no queues"); }
  at::Tensor empty_pinned(c10::IntArrayRef sizes, c10::ScalarType dtype) override {
    return at::empty(sizes, dtype);
  }
  void copy(const at::Tensor& to, const at::Tensor& from, device::Queue& /*queue*/) override {
    to.copy_(from);
  }
  at::Tensor random_state() const override { return {}; }
  void set_random_state(const at::Tensor& /*state*/) override {}
  void seed(uint64_t /*seed*/) override {}
  bool has_ranges() const override { return true; }
  void begin_range(const std::string& name) override { ranges_ += " <" + name; }
  void end_range() override { ranges_ += ">"; }

 private:
  std::string ranges_;
};

device::Device& open(int index) {
  static BorrowedDevice& only = *new BorrowedDevice();
  TRIREME_USER_CHECK(index == 0, kDevice, "there is one", "no device \"borrowed:{}\"", index);
  return only;
}

}  // namespace

#ifdef STALE_DEVICE
extern "C" const void* trireme_device_abi() {
  static device::DeviceAbi abi = device::kDeviceAbi;
  ++abi.contract;
  return &abi;
}
extern "C" trireme::device::Device& trireme_open_device(int index) {
  return open(index);
}
#else
TRIREME_DEVICE(index) {
  return open(index);
}
#endif
