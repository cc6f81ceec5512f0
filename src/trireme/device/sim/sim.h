// The simulated device "sim": an accelerator in host memory, for tests on any machine.
//
// It takes PyTorch's PrivateUse1 place under the name "sim". What a test leans on:
//   * the addresses that tensors carry cannot be touched by the host (a stray access faults); kernels see the same pages
//     through host_alias();
//   * work runs later and on another thread: as late as possible by default, so that what is not waited for is not
//     done, in every run; fresh memory is filled with 0xFF (NaN in every float format, -1 in integers);
//   * memory has a cap and a real out-of-memory error, and a freed block comes back only to work that is ordered after
//     its last use;
//   * a fault switch fails, hangs or corrupts the n-th kernel;
//   * given a DeviceProfile, every piece of work takes the time that the profile says, on the clock that events read.
//
// Thread-safe unless a line says otherwise. Everything lives until the process ends.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace trireme::device::sim {

/// The order in which queues run what was issued to them. With kLate and kShuffled, and one issuing thread, it is the same
/// in every run.
enum class Schedule {
  kEager,    ///< at once, queues in parallel
  kLate,     ///< only what somebody waits for, when they wait
  kShuffled  ///< when somebody waits: one piece at a time from a queue chosen at random, in any order that events allow
};

struct Fault {
  enum class Kind {
    kFail,    ///< the kernel fails; so does everything of the device from then on
    kHang,    ///< the kernel does not end before release_hung() or abort_hung()
    kFlipBit  ///< the kernel's first output has one bit wrong; counts kernels that name an output
  } kind = Kind::kFail;
  int64_t nth = 1;          ///< 1: the next one that matches, in issue order
  std::string kernel = {};  ///< only kernels whose name contains it; empty: any
  int64_t bit = 0;          ///< of the first output's memory, little end first
};

/// What an accelerator can do. A piece of work takes launch_latency_s plus the larger of flops / rate and bytes / rate.
/// Queues of a device do not slow each other down, and the host's own time is not counted.
struct DeviceProfile {
  std::map<c10::ScalarType, double> flops_per_s;  ///< a type that is not named counts as Float
  double bytes_per_s = 0;  ///< of the device's memory; 0: takes no time (so for all rates)
  double host_link_bytes_per_s = 0;
  double peer_link_bytes_per_s = 0;
  double launch_latency_s = 0;
};

struct Options {
  int num_devices = 4;
  int64_t memory_cap_bytes = int64_t{8}
                             << 30;  ///< of each device; Device::set_memory_cap changes it
  int64_t address_space_bytes = int64_t{128} << 30;  ///< of each device; no cap can be larger
  Schedule schedule = Schedule::kLate;
  uint64_t seed = 0;                        ///< of kShuffled
  bool poison = true;                       ///< fill fresh memory with 0xFF
  std::optional<Fault> fault = {};          ///< of each device
  std::optional<DeviceProfile> clock = {};  ///< set_profile() of all devices, from the start
};

/// Defaults, changed by TRIREME_SIM_DEVICES, TRIREME_SIM_MEMORY_BYTES, TRIREME_SIM_SCHEDULE (eager, late, shuffled),
/// TRIREME_SIM_SEED, TRIREME_SIM_FAULT ("fail:120", "flip:3:linear", "hang:1:attention": what happens, to which kernel, of
/// those whose name has this in it) and TRIREME_SIM_CLOCK ("fp32=1e11,memory=2e10,launch=5e-6": see docs/devices.md). Throws Error{kConfig} for a value that is none.
Options options_from_environment();

/// Takes the PrivateUse1 place of this process: allocator, guard, hooks, operators. The first call decides; get_device("sim")
/// makes it with options_from_environment(). Throws Error{kDevice} where the place belongs to another back end.
void register_backend(const Options& options);
bool backend_registered();

// ---- work ------------------------------------------------------------------------------------------------------------

/// What a piece of work costs a device: arithmetic of a type, and bytes read and written.
struct Cost {
  double flops = 0;
  double bytes = 0;
  c10::ScalarType dtype = c10::ScalarType::Float;
  enum class Path {
    kMemory,
    kHostLink,
    kPeerLink
  } path = Path::kMemory;  ///< what the bytes go through
};

/// A piece of work's name (faults and errors speak of it), cost, and the sim tensors it writes (a bit is flipped in the
/// first). The tensors are looked at by submit() and not kept.
struct Kernel {
  std::string name;
  Cost cost = {};
  std::vector<at::Tensor> outputs = {};
};

/// Issues `work` to the current stream of the current device (or to `stream`) and returns before it is done. It runs once,
/// on the queue's thread, without autograd, with ATen's parallel loops on as many threads as the caller has. What it
/// captures is destroyed on that thread. It may not wait for queues nor issue to them. An exception in it makes the device
/// fail. Throws Error{kDevice} if the device has failed already.
void submit(Kernel kernel, std::function<void()> work);
void submit(c10::Stream stream, Kernel kernel, std::function<void()> work);

/// The tensor's elements as a CPU tensor, for use inside work only: same sizes, strides and dtype, over the mapping that
/// kernels use. Does not keep the memory: as on any accelerator, a block that is freed after work was issued is not given
/// to others before that work is done, provided that the work is on the stream that the block was allocated on or on one
/// named to record_stream(). A CPU or undefined tensor is returned as it is. Error if it is on another device.
at::Tensor host_alias(const at::Tensor& tensor);

/// Blocks until the current stream of the current device (a stream; a device) is done. Throws Error{kDevice} if it failed.
void synchronize();
void synchronize(c10::Stream stream);
void synchronize_device(int device);

/// Work of the stream waits, as if the device were busy, while the object lives. Waiting for it meanwhile blocks.
class QueueHold {
 public:
  explicit QueueHold(c10::Stream stream);
  ~QueueHold();
  QueueHold(const QueueHold&) = delete;
  QueueHold& operator=(const QueueHold&) = delete;

 private:
  c10::Stream stream_;
};

/// Waits for all devices, then runs by another rule.
void set_schedule(Schedule schedule, uint64_t seed = 0);

// ---- faults ----------------------------------------------------------------------------------------------------------

/// Fires once.
void inject_fault(int device, const Fault& fault);
/// The n-th allocation from now on (1: the next) fails as if the cap were reached.
void fail_allocation(int device, int64_t nth);
/// Blocks until a kernel of the device hangs.
void wait_until_hung(int device);
void release_hung(int device);
/// The kernel that hangs fails instead.
void abort_hung(int device);
/// Forgets what failed and the faults that have not fired, after what was issued has passed. Memory keeps its contents.
void recover(int device);

// ---- clock -----------------------------------------------------------------------------------------------------------

/// For all devices, from the next piece of work on; null: events read the wall clock again.
void set_profile(std::shared_ptr<const DeviceProfile> profile);
/// Simulated time of the device after everything issued (which this waits for), since the start or restart_clock().
double simulated_seconds(int device);
/// Waits for all devices and sets their clocks, and the calling thread's, to 0.
void restart_clock();
/// The simulated time of the calling host thread: what it issues starts no earlier. Waiting for work moves it on; a thread that
/// speaks for something else, such as a link, sets it.
double host_clock();
void set_host_clock(double seconds);
/// Inside work: adds to the cost that was given to submit(), where it was not known yet.
void add_cost(const Cost& cost);

// ---- what ran on the CPU ---------------------------------------------------------------------------------------------

/// Calls by operator ("aten::mm.out") that had no sim kernel, drained the queue and ran ATen's CPU kernel.
std::map<std::string, int64_t> fallback_counts();
void reset_fallback_counts();

}  // namespace trireme::device::sim
