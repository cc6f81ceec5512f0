// What the tests of sim/ share: a registered device that is idle, without faults, late and without a profile before each
// test.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <thread>

#include "trireme/device/sim/runtime.h"
#include "trireme/device/sim/sim.h"

namespace trireme::device::sim {

class SimTest : public ::testing::Test {
 public:
  static void prepare() {
    Options options;
    options.num_devices = 3;
    options.memory_cap_bytes = int64_t{1} << 30;
    register_backend(options);
    for (int device = 0; device < 3; ++device) {
      recover(device);
      Runtime::get().device(device).memory.set_cap(options.memory_cap_bytes);
    }
    set_profile(nullptr);
    set_schedule(Schedule::kLate);
    reset_fallback_counts();
  }
  /// Stream 0 is the default one.
  static c10::Stream stream(int id, int device = 0) {
    return c10::Stream(
        c10::Stream::UNSAFE,
        c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device)), id);
  }
  static at::TensorOptions on_sim(int device = 0) {
    return at::TensorOptions().device(
        c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device)));
  }
  static c10::impl::VirtualGuardImpl guard() {
    return c10::impl::VirtualGuardImpl(c10::DeviceType::PrivateUse1);
  }

 protected:
  void SetUp() override { prepare(); }
  void TearDown() override { prepare(); }
};

struct DeviceUnderTest {
  DeviceMemory& of() const { return Runtime::get().device(0).memory; }
  MemoryStatistics memory() const { return of().statistics(); }
  void reset_peak() const { of().reset_peak(); }
  void set_cap(int64_t bytes) const { of().set_cap(bytes); }
};

}  // namespace trireme::device::sim
