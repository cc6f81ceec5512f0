// What the rest of the program knows of a device: its name, its memory, its queue.
//
// Rooms above ask a Device and never a vendor's API; a backend is a folder (cpu/ here) that
// implements these three interfaces.
#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <string>

#include "trireme/device/memory.h"

namespace trireme::device {

/// A point in a queue. Thread-safe.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool done() const = 0;
  /// Blocks the calling thread until the work before the event is done.
  virtual void wait() = 0;
  /// Seconds on the device's clock at which the event was reached. After done().
  virtual double seconds() const = 0;
};

/// Work in issue order. One thread issues to a queue at a time.
class Queue {
 public:
  virtual ~Queue() = default;
  virtual std::unique_ptr<Event> record() = 0;
  /// Work issued later waits for the event; does not block the calling thread.
  virtual void wait_for(const Event& event) = 0;
};

/// One device of this process. Thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  ///< the product, e.g. the processor's model name
  virtual std::string type() const = 0;  ///< "cpu"
  virtual c10::Device torch_device() const = 0;
  virtual int64_t total_memory_bytes() const = 0;
  virtual MemoryStatistics memory() const = 0;
  /// The peaks start again from what is held now.
  virtual void reset_peak_memory() = 0;
  /// Blocks until everything issued to this device is done.
  virtual void synchronize() = 0;
  /// The queue that ATen's calls of the calling thread go to.
  virtual Queue& compute_queue() = 0;
};

/// The device that a name like "cpu" stands for; lives as long as the process. Installs the
/// device's allocator on first use. Throws Error{kConfig} for an unknown name.
Device& get_device(const std::string& name);

}  // namespace trireme::device
