// The processor and the simulated accelerator keep every behaviour; what is broken on purpose is found. Plug-ins:
// tests/device_conformance_test.py.
#include "trireme/device/conformance/device_conformance.h"

#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/device/sim/sim.h"

namespace trireme::device::conformance {
namespace {

void expect_all_kept(Device& device, Device* peer) {
  for (const Behaviour& behaviour : check_behaviours(device, peer)) {
    EXPECT_TRUE(behaviour.problems.empty()) << behaviour.name << ": " << behaviour.problems.front();
    EXPECT_EQ(behaviour.trials == 0, !behaviour.skipped.empty()) << behaviour.name;
  }
}

TEST(DeviceConformanceTest, TheProcessorKeepsEveryBehaviour) {
  expect_all_kept(get_device("cpu"), nullptr);
}

TEST(DeviceConformanceTest, TheSimulatedAcceleratorDoesUnderEverySchedule) {
  Device& device = get_device("sim");
  for (const auto schedule :
       {sim::Schedule::kLate, sim::Schedule::kShuffled, sim::Schedule::kEager}) {
    sim::set_schedule(schedule, 3);
    expect_all_kept(device, &get_device("sim:1"));
  }
  sim::set_schedule(sim::Schedule::kLate);
}

TEST(DeviceConformanceTest, AWrongBitIsAProblem) {
  Device& device = get_device("sim");
  for (const char* name : {"queue-order", "copies", "views"}) {
    sim::inject_fault(0, {.kind = sim::Fault::Kind::kFlipBit, .nth = 5, .bit = 3});
    const Behaviour behaviour = check_behaviour(name, device, nullptr);
    EXPECT_FALSE(behaviour.problems.empty()) << name;
    sim::recover(0);
    EXPECT_TRUE(check_behaviour(name, device, nullptr).problems.empty()) << name;
  }
}

TEST(DeviceConformanceTest, ADeviceThatFailsIsAProblemAndNotTheEnd) {
  Device& device = get_device("sim");
  sim::inject_fault(0, {.kind = sim::Fault::Kind::kFail});
  EXPECT_FALSE(check_behaviour("events", device, nullptr).problems.empty());
  sim::recover(0);
  EXPECT_TRUE(check_behaviour("events", device, nullptr).problems.empty());
}

TEST(DeviceConformanceTest, NamesAreKnown) {
  EXPECT_THROW(check_behaviour("event", get_device("cpu"), nullptr), Error);
  EXPECT_EQ(behaviour_names().size(), check_behaviours(get_device("cpu"), nullptr).size());
}

}  // namespace
}  // namespace trireme::device::conformance
