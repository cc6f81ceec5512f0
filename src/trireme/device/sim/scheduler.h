// Queues of the simulated device: closures in issue order, one thread a queue, and the rule by which
// the next piece of work is taken.
//
// Internal to sim/; sim.h is what other folders use. Everything here lives until the process ends.
// Host threads may call anything at any time; closures run on a queue's own thread and may not wait
// for a queue.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "trireme/device/sim/sim.h"

namespace trireme::device::sim {

class WorkQueue;

/// A point in a queue; shared by whoever waits for it. The times are set when it is reached.
struct Marker {
  WorkQueue* queue = nullptr;
  uint64_t sequence = 0;
  std::atomic<double> simulated_s{0};
  std::atomic<double> wall_s{0};
};
using MarkerRef = std::shared_ptr<Marker>;

/// What a fault switch does to one piece of work; decided when it is issued.
struct ArmedFault {
  bool fires = false;
  Fault fault;
};

/// A device's part of the scheduler's state: what failed, what hangs, its faults. Guarded by the scheduler's mutex.
struct DeviceState {
  int index = 0;
  std::string error;  ///< empty: none; names the kernel
  std::vector<Fault> faults;
  std::vector<int64_t> seen;  ///< kernels that matched, per fault
  int num_hung = 0;
  enum class Hang { kStays, kRelease, kAbort } hang = Hang::kStays;
  std::atomic<bool> failed{false};
};

/// One kernel as it is issued; what is recorded is issued again and again.
struct Work {
  Kernel kernel;  ///< without its outputs
  std::function<void()> run;
  void* output = nullptr;  ///< host address of the first output, for a flipped bit
  int64_t output_bytes = 0;
  int num_threads = 0;
  bool internal = false;  ///< no kernel: faults and the clock do not see it
};

/// One queue. Made by the scheduler; its thread starts with the first piece of work.
class WorkQueue {
 public:
  WorkQueue(DeviceState& device, int64_t stream_id) : device_(device), stream_id_(stream_id) {}
  int device_index() const { return device_.index; }
  int64_t stream_id() const { return stream_id_; }
  /// The number of the last item issued, and of the last one that is done.
  uint64_t issued() const { return issued_.load(std::memory_order_acquire); }
  uint64_t done() const { return done_.load(std::memory_order_acquire); }

 private:
  friend class Scheduler;
  struct Item {
    enum class Kind { kWork, kRecord, kWait } kind = Kind::kWork;
    uint64_t sequence = 0;
    double issued_s = 0;  ///< simulated time at which the host issued it
    Work work;
    bool launched = true;  ///< by a call of its own; false: it goes with the one before it
    MarkerRef marker;
    ArmedFault fault;
    std::shared_ptr<const DeviceProfile> profile;  ///< when it was issued
  };

  DeviceState& device_;
  int64_t stream_id_;
  std::deque<Item> pending_;
  std::atomic<uint64_t> issued_{0};
  std::atomic<uint64_t> done_{0};
  uint64_t demanded_ = 0;
  double simulated_s_ = 0;
  int num_holds_ = 0;
  bool started_ = false;
  bool running_ = false;
  std::vector<Work>* recording_ = nullptr;  ///< where work goes instead; null: it is run
  std::condition_variable wake_;
};

/// All queues of all simulated devices of the process. Thread-safe.
class Scheduler {
 public:
  DeviceState& add_device(int index);
  WorkQueue& add_queue(DeviceState& device, int64_t stream_id);

  /// Returns before the work is done. `internal` work (poison) is no kernel: faults and the clock do not see it. Throws
  /// Error{kDevice} if the device has failed.
  void submit(WorkQueue& queue, Kernel kernel, std::function<void()> work, bool internal = false);
  MarkerRef record(WorkQueue& queue);
  /// Until end_recording(), what is submitted to the queue goes to `works` and nothing else may be asked of it: that throws
  /// Error{kDevice}. Returns false if it is recording already.
  bool begin_recording(WorkQueue& queue, std::vector<Work>& works);
  void end_recording(WorkQueue& queue);
  /// Submits them as one launch.
  void replay(WorkQueue& queue, const std::vector<Work>& works);
  /// Work issued to `queue` from now on runs after the marker is reached. Does not block.
  void wait_in_queue(WorkQueue& queue, const MarkerRef& marker);

  /// True once the item is done; asks for it to be run otherwise.
  bool query(WorkQueue& queue, uint64_t sequence);
  /// Blocks until item `sequence` of the queue is done. Does not throw.
  void wait(WorkQueue& queue, uint64_t sequence);
  void wait(const Marker& marker);
  /// Blocks until all queues of the device have run what was issued. Does not throw.
  void wait_device(const DeviceState& device);
  void throw_if_failed(const DeviceState& device);

  void set_schedule(Schedule schedule, uint64_t seed);
  void hold(WorkQueue& queue);
  void release(WorkQueue& queue);

  void arm(DeviceState& device, Fault fault);
  void clear_failure(DeviceState& device);
  void wait_until_hung(DeviceState& device);
  void end_hang(DeviceState& device, bool abort);

  void set_profile(std::shared_ptr<const DeviceProfile> profile);
  bool has_profile();
  /// The latest simulated time of the device's queues; restart_clock sets all back to 0.
  double simulated_seconds(const DeviceState& device);
  void restart_clock();
  /// Of the calling host thread.
  static double host_clock();
  static void set_host_clock(double seconds);
  /// Adds to the cost of the work that the calling queue thread runs.
  static void add_cost(const Cost& cost);

 private:
  using Lock = std::unique_lock<std::mutex>;
  using Item = WorkQueue::Item;
  uint64_t push(WorkQueue& queue, Item item);
  void issue(WorkQueue& queue, Work work, bool launched);
  void check_not_recording(const WorkQueue& queue, const char* what) const;
  void loop(WorkQueue& queue);
  void run_work(WorkQueue& queue, Item& item, Lock& lock);
  bool wait_while_hung(DeviceState& device, Lock& lock);
  void fail(DeviceState& device, const Kernel& kernel, const std::string& reason);
  bool head_is_ready(const WorkQueue& queue) const;
  bool may_run(const WorkQueue& queue) const;
  bool demand(WorkQueue& queue, uint64_t sequence);
  void pick();
  void progress();
  void wait_locked(WorkQueue& queue, uint64_t sequence, Lock& lock);
  std::vector<DeviceState*> all_devices();

  std::mutex mutex_;
  std::condition_variable host_wake_;
  std::vector<std::unique_ptr<DeviceState>> devices_;
  std::vector<std::unique_ptr<WorkQueue>> queues_;
  Schedule schedule_ = Schedule::kLate;
  std::mt19937_64 random_;
  WorkQueue* picked_ = nullptr;  ///< whose turn it is when shuffled
  std::shared_ptr<const DeviceProfile> profile_;
};

}  // namespace trireme::device::sim
