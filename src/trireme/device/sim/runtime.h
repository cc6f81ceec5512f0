// The simulated devices of this process: their memory, streams and random state, and what the calling thread has chosen
// of them. Internal to sim/. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "trireme/device/sim/device_memory.h"
#include "trireme/device/sim/scheduler.h"
#include "trireme/device/sim/sim.h"

namespace trireme::device::sim {

constexpr int kMaxDevices = 16;
constexpr int kPoolStreams = 8;  ///< of a device, given out in turn

class Runtime {
 public:
  /// Throws Error{kInternal} before register_backend().
  static Runtime& get();
  /// Once, by register_backend().
  static void start(const Options& options);
  static bool started();

  struct SimDevice {
    SimDevice(Runtime& runtime, int index);
    DeviceState& state;
    DeviceMemory memory;
    std::atomic<unsigned> next_pool_stream{0};
    std::mutex mutex;
    std::map<c10::StreamId, WorkQueue*> queues;
    c10::StreamId next_new_stream = kPoolStreams + 1;
    at::Generator generator;
  };

  const Options& options() const { return options_; }
  Scheduler& scheduler() { return scheduler_; }
  /// Made on first use. Throws Error{kDevice} if there is no such device.
  SimDevice& device(int index);
  bool device_made(int index) const;
  WorkQueue& queue(const c10::Stream& stream);
  c10::Stream default_stream(int device) const;
  c10::Stream pool_stream(int device);
  c10::Stream new_stream(int device);

  /// The device that an address lies in; null: none.
  SimDevice* owner(const void* address);
  c10::DataPtr allocate(size_t bytes);

 private:
  explicit Runtime(const Options& options) : options_(options) {}
  Options options_;
  Scheduler scheduler_;
  std::mutex mutex_;
  std::array<std::atomic<SimDevice*>, kMaxDevices> devices_{};
};

/// Of the calling thread.
int current_device();
void set_current_device(int device);
c10::Stream current_stream(int device);
void set_current_stream(const c10::Stream& stream);

/// The address through which kernels see a device address. Throws Error{kInternal} for another address.
void* host_address(const void* device_address);

c10::Allocator* pinned_allocator();
bool is_pinned(const void* address);

/// A generator of sim:index over one of the CPU, and the latter.
at::Generator make_generator(int index);
at::Generator cpu_generator_of(const at::Generator& generator);

/// As at::Storage is grown or shrunk: the bytes both have stay, ordered by the current stream.
void resize_storage(const c10::Storage& storage, size_t bytes);

void register_operators();
void register_guard_and_hooks();

}  // namespace trireme::device::sim
