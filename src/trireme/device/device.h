// What the rest of the program knows of a device: its name, its memory, its queues, its random state and what it can do.
//
// Rooms above ask a Device and never a vendor's API; a back end is a folder that implements these interfaces: cpu/, sim/ and
// cuda/ (a library of its own: library.h) on accelerator/, which is all of it that PyTorch's generic hooks suffice for.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/device/graph.h"
#include "trireme/device/memory.h"

namespace trireme::device {

/// A point in a queue. Thread-safe.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool done() const = 0;
  /// Blocks the calling thread until the work before the event is done. Throws Error{kDevice} if the device failed.
  virtual void wait() = 0;
  /// Seconds on the device's clock at which the event was reached; only differences mean something. After done().
  virtual double seconds() const = 0;
};

/// Work in issue order. One thread issues to a queue at a time.
class Queue {
 public:
  virtual ~Queue() = default;
  virtual std::unique_ptr<Event> record() = 0;
  /// Work issued later waits for the event, which is of a device of the same type; does not block the calling thread.
  virtual void wait_for(const Event& event) = 0;
  /// Blocks until everything issued to the queue is done. Throws Error{kDevice} if the device failed.
  virtual void synchronize() = 0;
  /// What ATen calls the queue.
  virtual c10::Stream torch_stream() const = 0;
};

/// While it lives, ATen's calls of this thread for the queue's device go to the queue, and the device is the current one.
class QueueGuard {
 public:
  explicit QueueGuard(const Queue& queue) : guard_(queue.torch_stream()) {}

 private:
  c10::StreamGuard guard_;
};

/// What a device can do.
struct Capabilities {
  std::vector<c10::ScalarType> dtypes;     ///< that tensors can have
  std::vector<c10::ScalarType> fp8_kinds;  ///< those of `dtypes` that have 8 bits and an exponent
  bool asynchronous = false;               ///< calls return before the work is done
  bool graph_capture = false;              ///< issued work can be recorded and issued again
  bool records_aten = false;  ///< so can ATen's operators, as far as they read nothing back
  bool peer_access = false;  ///< copies between two devices of this type do not go through the host
  /// What the vendor's libraries take of the device's memory with the first matrix product and keep, in bytes.
  int64_t library_bytes = 0;
};

/// One device of this process; lives as long as it. Thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  ///< the product, e.g. the processor's model name
  virtual std::string type() const = 0;  ///< "cpu", "sim" ...
  virtual c10::Device torch_device() const = 0;
  virtual Capabilities capabilities() const = 0;

  virtual int64_t total_memory_bytes() const = 0;
  virtual MemoryStatistics memory() const = 0;
  /// The peaks start again from what is held now.
  virtual void reset_peak_memory() = 0;
  /// No more than this is given out from now on: a tensor above it throws c10::OutOfMemoryError, or Error{kDevice} on the
  /// CPU. 0: what the device has. Throws Error{kConfig} for more than that, and where the back end has no cap.
  virtual void set_memory_cap(int64_t bytes) = 0;

  /// Blocks until everything issued to this device is done. Throws Error{kDevice} if it failed.
  virtual void synchronize() = 0;
  /// The queue that ATen's calls of the calling thread go to. Lives as long as the process.
  virtual Queue& compute_queue() = 0;
  /// A further queue, beside the others.
  virtual std::unique_ptr<Queue> new_queue() = 0;

  /// A host tensor, not filled, that copies to and from this device need not wait for.
  virtual at::Tensor empty_pinned(c10::IntArrayRef sizes, c10::ScalarType dtype) = 0;
  /// Issues `to` = `from` to the queue and returns before it is done, where a host tensor in it is pinned (another is
  /// waited for). One of the two is on this device; sizes are equal, strides and dtypes need not be. The host keeps its
  /// hands off a pinned tensor until the work is done.
  virtual void copy(const at::Tensor& to, const at::Tensor& from, Queue& queue) = 0;

  /// What this device's random numbers follow from, as bytes on the CPU. Setting takes what the same type of device gave.
  virtual at::Tensor random_state() const = 0;
  virtual void set_random_state(const at::Tensor& state) = 0;
  virtual void seed(uint64_t seed) = 0;

  /// Of Capabilities::graph_capture; the others throw Error{kDevice}.
  virtual std::shared_ptr<GraphMemory> new_graph_memory() {
    throw Error(ErrorCode::kDevice, type() + " records no work", "run it without graphs");
  }
  /// Calls `work`, whose calls of this thread to compute_queue() are recorded and not done. Tensors that it makes are of `memory`. It
  /// may not wait for the device, nor for another queue's work, nor read anything back: that throws Error{kDevice} that names the
  /// last work recorded, or what the vendor's library says.
  virtual std::unique_ptr<Graph> record(const std::function<void()>& /*work*/,
                                        const std::shared_ptr<GraphMemory>& /*memory*/) {
    throw Error(ErrorCode::kDevice, type() + " records no work", "run it without graphs");
  }

  /// Whether the vendor's profiler shows ranges; they cost nothing elsewhere.
  virtual bool has_ranges() const { return false; }
  /// What the calling thread does from here to the end of the range has this name there. Ranges nest.
  virtual void begin_range(const std::string& /*name*/) {}
  virtual void end_range() {}
};

/// A range of a device for as long as it lives; `name` is called where the device has ranges.
class Range {
 public:
  template <class Name>
  Range(Device& device, Name&& name) : device_(device.has_ranges() ? &device : nullptr) {
    if (device_ != nullptr) device_->begin_range(name());
  }
  ~Range() {
    if (device_ != nullptr) device_->end_range();
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  Device* device_;
};

/// The device that a name stands for: "cpu", "sim", "sim:1", or that of a library ("cuda:1": libtrireme_cuda.so, see
/// library.h). Lives as long as the process. The first use of a type installs its allocator and, of sim, takes PyTorch's
/// place for another device. Throws Error{kConfig} for an unknown name, Error{kDevice} where there is no such device.
Device& get_device(const std::string& name);
/// The same if it is here already: no library is opened for it. Null: it is not, or nothing is called so.
Device* find_open_device(const std::string& name);

}  // namespace trireme::device
