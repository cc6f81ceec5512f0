// Queues, events and memory of the simulated device, below ATen's operators.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/device/sim/testing/sim_fixture.h"

namespace trireme::device::sim {
namespace {

using ::testing::HasSubstr;

using QueueTest = SimTest;

TEST_F(QueueTest, AStrayAccessOfTheHostDies) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        prepare();
        const at::Tensor x = at::zeros({4}, on_sim());
        synchronize();
        static_cast<volatile float*>(x.data_ptr())[0] = 1;
      },
      "");
}

TEST_F(QueueTest, WorkThatIsNotWaitedForIsNotDone) {
  std::atomic<int> value{0};
  submit({"set"}, [&] { value = 7; });
  EXPECT_EQ(value, 0);  // nobody has asked for it
  synchronize();
  EXPECT_EQ(value, 7);
}

TEST_F(QueueTest, AHeldQueueIsAsIfTheDeviceWereBusy) {
  set_schedule(Schedule::kEager);
  std::atomic<int> value{0};
  {
    const QueueHold hold(stream(0));
    submit(stream(0), {"set"}, [&] { value = 7; });
    EXPECT_FALSE(guard().queryStream(stream(0)));
    EXPECT_EQ(value, 0);
  }
  synchronize(stream(0));
  EXPECT_EQ(value, 7);
  EXPECT_TRUE(guard().queryStream(stream(0)));
}

TEST_F(QueueTest, ReadingWithoutAnEventGivesWhatIsThereBefore) {
  const at::Tensor x = at::zeros({8}, on_sim());
  synchronize();
  const c10::Stream writer = stream(1);
  submit(writer, {"write"}, [a = host_alias(x)] { a.fill_(5); });
  // The default stream does not wait for the writer.
  EXPECT_EQ(x.cpu().sum().item<float>(), 0);
  synchronize(writer);
  EXPECT_EQ(x.cpu().sum().item<float>(), 40);
}

TEST_F(QueueTest, AnEventOrdersTwoQueues) {
  const at::Tensor x = at::zeros({8}, on_sim());
  synchronize();
  const c10::Stream writer = stream(1);
  submit(writer, {"write"}, [a = host_alias(x)] { a.fill_(5); });
  c10::Event written(c10::DeviceType::PrivateUse1);
  written.record(writer);
  EXPECT_FALSE(written.query());
  written.block(stream(0));
  EXPECT_EQ(x.cpu().sum().item<float>(), 40);
  EXPECT_TRUE(written.query());
}

TEST_F(QueueTest, AnEventIsThePointWhereItWasRecordedLast) {
  std::vector<int> order;
  c10::Event event(c10::DeviceType::PrivateUse1);
  submit({"first"}, [&] { order.push_back(1); });
  event.record(stream(0));
  submit({"second"}, [&] { order.push_back(2); });
  event.synchronize();
  EXPECT_THAT(order, ::testing::ElementsAre(1));
  event.record(stream(0));
  submit({"third"}, [&] { order.push_back(3); });
  event.synchronize();
  EXPECT_THAT(order, ::testing::ElementsAre(1, 2));
  synchronize();
  EXPECT_THAT(order, ::testing::ElementsAre(1, 2, 3));
}

TEST_F(QueueTest, AskingAgainAndAgainGetsTheWorkDone) {
  submit({"work"}, [] {});
  while (!guard().queryStream(stream(0))) std::this_thread::yield();
}

/// The order in which three queues of three pieces each ran.
std::string shuffled_order(uint64_t seed) {
  set_schedule(Schedule::kShuffled, seed);
  std::string order;
  c10::Event first(c10::DeviceType::PrivateUse1);
  for (int piece = 0; piece < 3; ++piece) {
    for (int queue = 0; queue < 3; ++queue) {
      submit(SimTest::stream(queue), {"piece"},
             [&order, queue, piece] { order += static_cast<char>('a' + 3 * queue + piece); });
    }
    if (piece == 0) {
      first.record(SimTest::stream(0));
      first.block(SimTest::stream(1));
    }
  }
  synchronize_device(0);
  return order;
}

TEST_F(QueueTest, ShufflingKeepsTheOrderOfQueuesAndEventsOnly) {
  std::set<std::string> orders;
  bool second_queue_before_first_end = false;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::string order = shuffled_order(seed);
    EXPECT_EQ(order, shuffled_order(seed)) << seed;  // the same in every run
    ASSERT_EQ(order.size(), 9u);
    const auto at = [&](char piece) { return order.find(piece); };
    for (const char begin : {'a', 'd', 'g'}) {
      EXPECT_LT(at(begin), at(static_cast<char>(begin + 1)));
      EXPECT_LT(at(static_cast<char>(begin + 1)), at(static_cast<char>(begin + 2)));
    }
    EXPECT_LT(at('a'), at('e'));  // e was issued after queue 1 was told to wait for a
    second_queue_before_first_end = second_queue_before_first_end || at('f') < at('c');
    orders.insert(order);
  }
  EXPECT_TRUE(second_queue_before_first_end);
  EXPECT_GT(orders.size(), 10u);
}

TEST_F(QueueTest, EachQueueRunsParallelLoopsOnAsManyThreadsAsTheCaller) {
  const int before = at::get_num_threads();
  for (const int threads : {2, 1}) {
    at::set_num_threads(threads);
    std::mutex mutex;
    std::set<std::thread::id> seen;
    submit({"threads"}, [&] {
      at::parallel_for(0, 2, 1, [&](int64_t, int64_t) {
        const std::lock_guard lock(mutex);
        seen.insert(std::this_thread::get_id());
      });
    });
    synchronize();
    EXPECT_EQ(seen.size(), static_cast<size_t>(std::min(threads, omp_get_thread_limit())));
    EXPECT_EQ(seen.count(std::this_thread::get_id()), 0u);
  }
  at::set_num_threads(before);
}

// ---- memory --------------------------------------------------------------------------------------

TEST_F(QueueTest, FreshMemoryIsNotANumber) {
  const at::Tensor x = at::empty({100}, on_sim());
  EXPECT_TRUE(x.cpu().isnan().all().item<bool>());
  EXPECT_EQ(at::empty({3}, on_sim().dtype(at::kLong)).cpu().sum().item<int64_t>(), -3);
}

TEST_F(QueueTest, StatisticsCountWhatTensorsHold) {
  const DeviceUnderTest device;
  const MemoryStatistics before = device.memory();
  device.reset_peak();
  {
    const at::Tensor a = at::empty({1024}, on_sim());  // 4096 bytes
    const at::Tensor b = at::empty({1}, on_sim());     // blocks are multiples of 512 bytes
    EXPECT_EQ(device.memory().allocated_bytes - before.allocated_bytes, 4096 + 512);
    EXPECT_EQ(device.memory().num_allocations - before.num_allocations, 2);
  }
  EXPECT_EQ(device.memory().allocated_bytes, before.allocated_bytes);
  EXPECT_EQ(device.memory().peak_allocated_bytes, before.allocated_bytes + 4096 + 512);
  device.reset_peak();
  EXPECT_EQ(device.memory().peak_allocated_bytes, before.allocated_bytes);
}

TEST_F(QueueTest, TheCapIsRealAndOneRecoversFromIt) {
  const DeviceUnderTest device;
  const int64_t held = device.memory().allocated_bytes;
  device.set_cap(held + (1 << 20));
  at::Tensor kept = at::zeros({128 * 1024}, on_sim());  // half of it
  try {
    const at::Tensor x = at::zeros({200 * 1024}, on_sim());
    FAIL() << "more than the cap was given out";
  } catch (const c10::OutOfMemoryError& error) {
    EXPECT_THAT(error.what(), HasSubstr("819200 bytes were asked for"));
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(held + (1 << 19)) + " are held"));
    EXPECT_THAT(error.what(), HasSubstr("the cap is " + std::to_string(held + (1 << 20))));
  }
  kept = at::Tensor();
  EXPECT_EQ(at::zeros({200 * 1024}, on_sim()).sum().item<float>(), 0);
  EXPECT_EQ(device.memory().cap_bytes, held + (1 << 20));
}

/// A new block of 4096 bytes has memory of the one that began there. (It may begin below, with a free neighbour.)
bool comes_again(const void* address) {
  const at::Tensor x = at::empty({1024}, SimTest::on_sim());
  const auto distance =
      reinterpret_cast<intptr_t>(x.const_data_ptr()) - reinterpret_cast<intptr_t>(address);
  return std::abs(distance) < 4096;
}

TEST_F(QueueTest, ABlockComesBackAtOnceToItsOwnQueue) {
  const void* address = nullptr;
  {
    const at::Tensor x = at::empty({1024}, on_sim());
    address = x.const_data_ptr();
    submit({"use"}, [a = host_alias(x)] { a.fill_(1); });
  }
  EXPECT_TRUE(comes_again(address));
}

TEST_F(QueueTest, ABlockComesToAnotherQueueOnlyWhenItsWorkIsDone) {
  const void* address = nullptr;
  {
    const at::Tensor x = at::empty({1024}, on_sim());
    address = x.const_data_ptr();
    submit({"use"}, [a = host_alias(x)] { a.fill_(1); });
  }
  const c10::StreamGuard other(stream(1));
  EXPECT_FALSE(comes_again(address));
  synchronize(stream(0));
  EXPECT_TRUE(comes_again(address));
}

TEST_F(QueueTest, ARecordedUseKeepsABlockFromItsOwnQueue) {
  const auto address_after = [&](bool recorded) {
    const void* address = nullptr;
    {
      at::Tensor x = at::empty({1024}, on_sim());
      synchronize(stream(0));
      address = x.const_data_ptr();
      submit(stream(1), {"use"}, [a = host_alias(x)] { a.fill_(1); });
      if (recorded) x.record_stream(stream(1));
    }
    const bool same = comes_again(address);
    synchronize_device(0);
    return same;
  };
  EXPECT_TRUE(address_after(false));  // which is the bug that record_stream is for
  EXPECT_FALSE(address_after(true));
}

TEST_F(QueueTest, AllocationWaitsForOtherQueuesRatherThanFail) {
  const DeviceUnderTest device;
  synchronize_device(0);
  device.set_cap(device.memory().allocated_bytes + (1 << 20));
  std::atomic<bool> used{false};
  {
    const at::Tensor x = at::empty({200 * 1024}, on_sim());
    submit({"use"}, [&] { used = true; });
  }
  const c10::StreamGuard other(stream(1));
  const at::Tensor y = at::empty({200 * 1024}, on_sim());
  EXPECT_TRUE(used);
}

// ---- several devices -----------------------------------------------------------------------------

TEST_F(QueueTest, DevicesHaveQueuesAndMemoryOfTheirOwn) {
  const at::Tensor x = at::full({4}, 3.0f, on_sim(1));
  EXPECT_EQ(x.device().index(), 1);
  EXPECT_EQ(at::zeros({1}, on_sim()).device().index(), 0);
  const c10::Device before = guard().exchangeDevice(c10::Device(c10::DeviceType::PrivateUse1, 1));
  EXPECT_EQ(before.index(), 0);
  EXPECT_EQ(
      at::zeros({1}, at::TensorOptions().device(c10::DeviceType::PrivateUse1)).device().index(), 1);
  guard().setDevice(before);
  EXPECT_THROW(guard().setDevice(c10::Device(c10::DeviceType::PrivateUse1, 9)), Error);
}

// ---- registration --------------------------------------------------------------------------------

TEST(RegistrationTest, APlaceThatIsTakenIsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // another process, where nothing is registered
  EXPECT_EXIT(
      {
        c10::register_privateuse1_backend("abacus");
        try {
          register_backend({});
        } catch (const Error& error) {
          std::fputs(error.what(), stderr);
          std::_Exit(error.code() == ErrorCode::kDevice ? 3 : 4);
        }
      },
      ::testing::ExitedWithCode(3), "belongs to \"abacus\"");
}

TEST(RegistrationTest, OptionsComeFromTheEnvironment) {
  const auto with = [](const char* variable, const char* value) {
    ::setenv(variable, value, 1);
    struct Unset {
      const char* variable;
      ~Unset() { ::unsetenv(variable); }
    } unset{variable};
    return options_from_environment();
  };
  EXPECT_EQ(options_from_environment().schedule, Schedule::kLate);
  EXPECT_EQ(with("TRIREME_SIM_SCHEDULE", "shuffled").schedule, Schedule::kShuffled);
  EXPECT_EQ(with("TRIREME_SIM_SCHEDULE", "eager").schedule, Schedule::kEager);
  EXPECT_EQ(with("TRIREME_SIM_SEED", "12").seed, 12u);
  EXPECT_EQ(with("TRIREME_SIM_DEVICES", "2").num_devices, 2);
  EXPECT_EQ(with("TRIREME_SIM_MEMORY_BYTES", "4096").memory_cap_bytes, 4096);
  for (const char* devices : {"0", "17", "two", "2x", "-1"}) {
    EXPECT_THROW(with("TRIREME_SIM_DEVICES", devices), Error) << devices;
  }
  EXPECT_THROW(with("TRIREME_SIM_SCHEDULE", "shuffle"), Error);
  EXPECT_FALSE(options_from_environment().fault);
  const Options flips = with("TRIREME_SIM_FAULT", "flip:3:linear");
  EXPECT_EQ(flips.fault->kind, Fault::Kind::kFlipBit);
  EXPECT_EQ(flips.fault->nth, 3);
  EXPECT_EQ(flips.fault->kernel, "linear");
  EXPECT_FALSE(options_from_environment().clock);
  const DeviceProfile clock = *with("TRIREME_SIM_CLOCK", "fp32=1e11,memory=2e10,launch=5e-6").clock;
  EXPECT_EQ(clock.flops_per_s.at(c10::kFloat), 1e11);
  EXPECT_FALSE(clock.flops_per_s.contains(c10::kBFloat16));
  EXPECT_EQ(clock.bytes_per_s, 2e10);
  EXPECT_EQ(clock.launch_latency_s, 5e-6);
  EXPECT_EQ(clock.host_link_bytes_per_s, 0.0);
  for (const char* text :
       {"fp32", "fp32=", "fp32=-1", "fp64=1", "fp32=1e11,", "fp32=1x", "=1", "fp32=nan"})
    EXPECT_THROW(with("TRIREME_SIM_CLOCK", text), Error) << text;
  EXPECT_EQ(with("TRIREME_SIM_FAULT", "hang:12").fault->nth, 12);
  for (const char* fault : {"fail", "fail:", "fail:0", "fail:x", "break:1", ":1"}) {
    EXPECT_THROW(with("TRIREME_SIM_FAULT", fault), Error) << fault;
  }
}

}  // namespace
}  // namespace trireme::device::sim
