#include "trireme/device/sim/scheduler.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/device/sim/runtime.h"

namespace trireme::device::sim {
namespace {

// Accelerators' launch queues hold about as much; more would keep pinned buffers for too long.
constexpr size_t kMaxBacklog = 1024;

thread_local Cost* current_cost = nullptr;  // of the work this queue thread runs
thread_local bool is_queue_thread = false;
thread_local double host_simulated_s = 0;  // the latest simulated time this host thread knows of

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double time_of(double amount, double rate) {
  return rate > 0 ? amount / rate : 0;
}

double duration(const Cost& cost, const DeviceProfile& profile, bool launched) {
  auto flops = profile.flops_per_s.find(cost.dtype);
  if (flops == profile.flops_per_s.end()) {
    flops = profile.flops_per_s.find(c10::ScalarType::Float);
  }
  const double flops_per_s = flops == profile.flops_per_s.end() ? 0 : flops->second;
  const double bytes_per_s = cost.path == Cost::Path::kMemory     ? profile.bytes_per_s
                             : cost.path == Cost::Path::kHostLink ? profile.host_link_bytes_per_s
                                                                  : profile.peer_link_bytes_per_s;
  return (launched ? profile.launch_latency_s : 0.0) +
         std::max(time_of(cost.flops, flops_per_s), time_of(cost.bytes, bytes_per_s));
}

}  // namespace

DeviceState& Scheduler::add_device(int index) {
  const Lock lock(mutex_);
  devices_.push_back(std::make_unique<DeviceState>());
  devices_.back()->index = index;
  return *devices_.back();
}

WorkQueue& Scheduler::add_queue(DeviceState& device, int64_t stream_id) {
  const Lock lock(mutex_);
  queues_.push_back(std::make_unique<WorkQueue>(device, stream_id));
  return *queues_.back();
}

// ---- issuing -------------------------------------------------------------------------------------

uint64_t Scheduler::push(WorkQueue& queue, Item item) {
  item.sequence = queue.issued() + 1;
  item.issued_s = host_simulated_s;
  const uint64_t sequence = item.sequence;
  queue.pending_.push_back(std::move(item));
  queue.issued_.store(sequence, std::memory_order_release);
  if (!queue.started_) {
    queue.started_ = true;
    std::thread([this, &queue] { loop(queue); }).detach();
  }
  if (queue.pending_.size() > kMaxBacklog) demand(queue, sequence - kMaxBacklog / 2);
  progress();
  return sequence;
}

void Scheduler::submit(WorkQueue& queue, Kernel kernel, std::function<void()> run, bool internal) {
  TRIREME_CHECK(!is_queue_thread, "kernel '{}' is issued by work of a queue", kernel.name);
  Work work;
  work.num_threads = at::get_num_threads();
  work.internal = internal;
  if (!kernel.outputs.empty()) {
    const at::Tensor& output = kernel.outputs.front();
    work.output = output.numel() > 0 ? host_address(output.const_data_ptr()) : nullptr;
    work.output_bytes =
        static_cast<int64_t>(output.element_size()) * (output.is_contiguous() ? output.numel() : 1);
    kernel.outputs.clear();
  }
  work.kernel = std::move(kernel);
  work.run = std::move(run);
  const Lock lock(mutex_);
  if (queue.recording_ != nullptr) {
    queue.recording_->push_back(std::move(work));
    return;
  }
  issue(queue, std::move(work), true);
}

void Scheduler::issue(WorkQueue& queue, Work work, bool launched) {
  DeviceState& device = queue.device_;
  if (device.failed) {
    throw Error(ErrorCode::kDevice, device.error,
                "everything issued to this device since then is void");
  }
  Item item;
  item.launched = launched;
  if (!work.internal) {
    for (size_t i = 0; i < device.faults.size(); ++i) {
      const Fault& fault = device.faults[i];
      if (work.kernel.name.find(fault.kernel) == std::string::npos) continue;
      if (fault.kind == Fault::Kind::kFlipBit && work.output == nullptr) continue;
      if (++device.seen[i] == fault.nth && !item.fault.fires) item.fault = {true, fault};
    }
    item.profile = profile_;
  }
  item.work = std::move(work);
  push(queue, std::move(item));
}

bool Scheduler::begin_recording(WorkQueue& queue, std::vector<Work>& works) {
  const Lock lock(mutex_);
  if (queue.recording_ != nullptr) return false;
  queue.recording_ = &works;
  return true;
}

void Scheduler::end_recording(WorkQueue& queue) {
  const Lock lock(mutex_);
  queue.recording_ = nullptr;
}

void Scheduler::replay(WorkQueue& queue, const std::vector<Work>& works) {
  const Lock lock(mutex_);
  check_not_recording(queue, "other recorded work is issued");
  bool launched = true;
  for (const Work& work : works) {
    issue(queue, work, launched);
    if (!work.internal) launched = false;
  }
}

void Scheduler::check_not_recording(const WorkQueue& queue, const char* what) const {
  if (queue.recording_ == nullptr) return;
  const std::vector<Work>& works = *queue.recording_;
  throw Error(ErrorCode::kDevice,
              fmt::format("sim:{}: {} while work is recorded, after '{}'", queue.device_.index,
                          what, works.empty() ? "nothing" : works.back().kernel.name),
              "recorded work can neither be waited for nor read back");
}

MarkerRef Scheduler::record(WorkQueue& queue) {
  auto marker = std::make_shared<Marker>();
  const Lock lock(mutex_);
  check_not_recording(queue, "an event is recorded");
  marker->queue = &queue;
  marker->sequence = queue.issued() + 1;
  Item item;
  item.kind = Item::Kind::kRecord;
  item.marker = marker;
  push(queue, std::move(item));
  return marker;
}

void Scheduler::wait_in_queue(WorkQueue& queue, const MarkerRef& marker) {
  const Lock lock(mutex_);
  check_not_recording(queue, "another queue's event is waited for");
  Item item;
  item.kind = Item::Kind::kWait;
  item.marker = marker;
  push(queue, std::move(item));
}

// ---- choosing ------------------------------------------------------------------------------------

bool Scheduler::head_is_ready(const WorkQueue& queue) const {
  if (queue.pending_.empty() || queue.num_holds_ > 0) return false;
  const Item& head = queue.pending_.front();
  return head.kind != Item::Kind::kWait || head.marker->queue->done() >= head.marker->sequence;
}

bool Scheduler::may_run(const WorkQueue& queue) const {
  if (!head_is_ready(queue)) return false;
  switch (schedule_) {
    case Schedule::kEager:
      return true;
    case Schedule::kLate:
      return queue.pending_.front().sequence <= queue.demanded_;
    case Schedule::kShuffled:
      return picked_ == &queue;
  }
  return false;
}

/// Asks for everything up to an item and what that waits for. False if it was asked for before.
bool Scheduler::demand(WorkQueue& queue, uint64_t sequence) {
  if (queue.demanded_ >= sequence) return false;
  queue.demanded_ = sequence;
  for (const Item& item : queue.pending_) {
    if (item.sequence > sequence) break;
    if (item.kind == Item::Kind::kWait) demand(*item.marker->queue, item.marker->sequence);
  }
  return true;
}

void Scheduler::pick() {
  if (schedule_ != Schedule::kShuffled || picked_ != nullptr) return;
  std::vector<WorkQueue*> ready;
  bool wanted = false;
  for (const auto& queue : queues_) {
    wanted = wanted || queue->demanded_ > queue->done();
    if (head_is_ready(*queue)) ready.push_back(queue.get());
  }
  if (wanted && !ready.empty()) picked_ = ready[random_() % ready.size()];
}

/// After any change: turns, and whoever can go on because of it.
void Scheduler::progress() {
  pick();
  for (const auto& queue : queues_) {
    if (may_run(*queue)) queue->wake_.notify_one();
  }
  host_wake_.notify_all();
}

// ---- running -------------------------------------------------------------------------------------

void Scheduler::loop(WorkQueue& queue) {
  is_queue_thread = true;
  pthread_setname_np(pthread_self(),
                     fmt::format("sim{}.{}", queue.device_index(), queue.stream_id()).c_str());
  at::init_num_threads();
  const c10::AutoGradMode no_grad(false);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  Lock lock(mutex_);
  while (true) {
    queue.wake_.wait(lock, [&] { return may_run(queue); });
    Item item = std::move(queue.pending_.front());
    queue.pending_.pop_front();
    queue.running_ = true;
    queue.simulated_s_ = std::max(queue.simulated_s_, item.issued_s);
    switch (item.kind) {
      case Item::Kind::kWait:
        queue.simulated_s_ = std::max(queue.simulated_s_, item.marker->simulated_s.load());
        break;
      case Item::Kind::kRecord:
        item.marker->simulated_s = queue.simulated_s_;
        item.marker->wall_s = wall_seconds();
        break;
      case Item::Kind::kWork:
        run_work(queue, item, lock);
        if (item.profile != nullptr)
          queue.simulated_s_ += duration(item.work.kernel.cost, *item.profile, item.launched);
        break;
    }
    queue.running_ = false;
    queue.done_.store(item.sequence, std::memory_order_release);
    if (picked_ == &queue) picked_ = nullptr;
    progress();
  }
}

void Scheduler::run_work(WorkQueue& queue, Item& item, Lock& lock) {
  DeviceState& device = queue.device_;
  const bool fires = item.fault.fires && !device.failed;
  if (fires && item.fault.fault.kind == Fault::Kind::kHang) {
    if (picked_ == &queue) picked_ = nullptr;  // other queues go on
    if (!wait_while_hung(device, lock)) {
      fail(device, item.work.kernel, "it did not end and was aborted (an injected fault)");
    }
  }
  if (fires && item.fault.fault.kind == Fault::Kind::kFail) {
    fail(device, item.work.kernel, "an injected fault");
  }
  const bool skip = device.failed;
  lock.unlock();
  std::string reason;
  if (!skip) {
    if (item.work.num_threads != at::get_num_threads()) at::set_num_threads(item.work.num_threads);
    current_cost = &item.work.kernel.cost;
    try {
      item.work.run();
    } catch (const std::exception& error) {
      reason = error.what();
      if (reason.empty()) reason = "an exception without a text";
    } catch (...) {
      reason = "an unknown exception";
    }
    current_cost = nullptr;
    if (fires && item.fault.fault.kind == Fault::Kind::kFlipBit && item.work.output != nullptr) {
      const int64_t bit = item.fault.fault.bit;
      if (bit / 8 < item.work.output_bytes) {
        static_cast<unsigned char*>(item.work.output)[bit / 8] ^=
            static_cast<unsigned char>(1u << (bit % 8));
      } else {
        reason = fmt::format("bit {} to flip lies outside its first output of {} bytes", bit,
                             item.work.output_bytes);
      }
    }
  }
  item.work.run = nullptr;  // what it holds may take locks of its own
  lock.lock();
  if (!reason.empty()) fail(device, item.work.kernel, reason);
}

bool Scheduler::wait_while_hung(DeviceState& device, Lock& lock) {
  if (device.num_hung++ == 0) device.hang = DeviceState::Hang::kStays;
  progress();
  host_wake_.wait(lock, [&] { return device.hang != DeviceState::Hang::kStays; });
  --device.num_hung;
  return device.hang == DeviceState::Hang::kRelease;
}

void Scheduler::fail(DeviceState& device, const Kernel& kernel, const std::string& reason) {
  if (device.failed) return;  // the first failure is the cause of the others
  device.error = fmt::format("kernel '{}' failed on sim:{}: {}", kernel.name, device.index, reason);
  device.failed = true;
}

// ---- waiting -------------------------------------------------------------------------------------

bool Scheduler::query(WorkQueue& queue, uint64_t sequence) {
  if (queue.done() >= sequence) return true;
  const Lock lock(mutex_);
  check_not_recording(queue, "work is asked for");
  if (demand(queue, sequence)) progress();
  return false;
}

void Scheduler::wait_locked(WorkQueue& queue, uint64_t sequence, Lock& lock) {
  if (queue.done() >= sequence) return;
  TRIREME_CHECK(!is_queue_thread, "work of a queue waits for a queue");
  if (demand(queue, sequence)) progress();
  host_wake_.wait(lock, [&] { return queue.done() >= sequence; });
}

void Scheduler::wait(WorkQueue& queue, uint64_t sequence) {
  Lock lock(mutex_);
  check_not_recording(queue, "work is waited for");
  wait_locked(queue, sequence, lock);
  // Later than the item's own end only where another thread issues to the queue meanwhile.
  host_simulated_s = std::max(host_simulated_s, queue.simulated_s_);
}

void Scheduler::wait(const Marker& marker) {
  Lock lock(mutex_);
  wait_locked(*marker.queue, marker.sequence, lock);
  host_simulated_s = std::max(host_simulated_s, marker.simulated_s.load());
}

void Scheduler::wait_device(const DeviceState& device) {
  std::vector<std::pair<WorkQueue*, uint64_t>> ends;
  {
    const Lock lock(mutex_);
    for (const auto& queue : queues_) {
      if (&queue->device_ != &device) continue;
      check_not_recording(*queue, "the device is waited for");
      ends.emplace_back(queue.get(), queue->issued());
      demand(*queue, queue->issued());
    }
    progress();
  }
  for (const auto& [queue, sequence] : ends) wait(*queue, sequence);
}

void Scheduler::throw_if_failed(const DeviceState& device) {
  if (!device.failed) return;
  const Lock lock(mutex_);
  throw Error(ErrorCode::kDevice, device.error,
              "everything issued to this device since then is void");
}

// ---- switches ------------------------------------------------------------------------------------

std::vector<DeviceState*> Scheduler::all_devices() {
  const Lock lock(mutex_);
  std::vector<DeviceState*> devices;
  for (const auto& device : devices_) devices.push_back(device.get());
  return devices;
}

void Scheduler::set_schedule(Schedule schedule, uint64_t seed) {
  for (const DeviceState* device : all_devices()) wait_device(*device);
  const Lock lock(mutex_);
  schedule_ = schedule;
  random_.seed(seed);
  picked_ = nullptr;
  progress();
}

void Scheduler::hold(WorkQueue& queue) {
  const Lock lock(mutex_);
  ++queue.num_holds_;
  // Whose turn it was may be held before its thread woke up.
  if (picked_ == &queue && !queue.running_) picked_ = nullptr;
  progress();
}

void Scheduler::release(WorkQueue& queue) {
  const Lock lock(mutex_);
  --queue.num_holds_;
  progress();
}

void Scheduler::arm(DeviceState& device, Fault fault) {
  TRIREME_CHECK(fault.nth >= 1 && fault.bit >= 0, "fault {} of bit {}", fault.nth, fault.bit);
  const Lock lock(mutex_);
  device.faults.push_back(std::move(fault));
  device.seen.push_back(0);
}

void Scheduler::clear_failure(DeviceState& device) {
  wait_device(device);
  const Lock lock(mutex_);
  device.failed = false;
  device.error.clear();
  device.faults.clear();
  device.seen.clear();
}

void Scheduler::wait_until_hung(DeviceState& device) {
  Lock lock(mutex_);
  // A device runs what is issued to it whether or not somebody waits for its end.
  for (const auto& queue : queues_) {
    if (&queue->device_ == &device) demand(*queue, queue->issued());
  }
  progress();
  host_wake_.wait(lock, [&] { return device.num_hung > 0; });
}

void Scheduler::end_hang(DeviceState& device, bool abort) {
  const Lock lock(mutex_);
  device.hang = abort ? DeviceState::Hang::kAbort : DeviceState::Hang::kRelease;
  progress();
}

void Scheduler::set_profile(std::shared_ptr<const DeviceProfile> profile) {
  const Lock lock(mutex_);
  profile_ = std::move(profile);
}

bool Scheduler::has_profile() {
  const Lock lock(mutex_);
  return profile_ != nullptr;
}

double Scheduler::simulated_seconds(const DeviceState& device) {
  wait_device(device);
  const Lock lock(mutex_);
  double latest = 0;
  for (const auto& queue : queues_) {
    if (&queue->device_ == &device) latest = std::max(latest, queue->simulated_s_);
  }
  return latest;
}

void Scheduler::restart_clock() {
  for (const DeviceState* device : all_devices()) wait_device(*device);
  const Lock lock(mutex_);
  for (const auto& queue : queues_) queue->simulated_s_ = 0;
  host_simulated_s = 0;
}

double Scheduler::host_clock() {
  return host_simulated_s;
}

void Scheduler::set_host_clock(double seconds) {
  host_simulated_s = seconds;
}

void Scheduler::add_cost(const Cost& cost) {
  TRIREME_CHECK(current_cost != nullptr, "add_cost outside of work");
  current_cost->flops += cost.flops;
  current_cost->bytes += cost.bytes;
  if (cost.flops > 0) current_cost->dtype = cost.dtype;
}

}  // namespace trireme::device::sim
