// Streams and memory.
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>

#include "abacus.h"

namespace abacus {

bool has_defect(const char* word) {
  static const std::set<std::string> words = [] {
    const char* text = std::getenv("ABACUS_DEFECT");
    std::stringstream stream(text == nullptr ? "" : text);
    std::set<std::string> result;
    for (std::string one; std::getline(stream, one, ',');) result.insert(one);
    return result;
  }();
  return words.contains(word);
}

namespace {

struct Work {
  std::deque<std::function<void()>> waiting;
  int64_t issued = 0;
  int64_t done = 0;
};

// One lock for everything: whoever waits does the work.
std::recursive_mutex mutex;
std::map<std::pair<int, c10::StreamId>, Work>& streams() {
  static auto* all = new std::map<std::pair<int, c10::StreamId>, Work>();
  return *all;
}

thread_local int chosen_device = 0;
thread_local c10::StreamId chosen_stream[kDevices] = {};

}  // namespace

int current_device() {
  return chosen_device;
}
void set_current_device(int device) {
  TORCH_CHECK(device >= 0 && device < kDevices, "there is no abacus:", device);
  chosen_device = device;
}
c10::Stream current_stream(int device) {
  const c10::Device where(kType, static_cast<c10::DeviceIndex>(device));
  return c10::Stream(c10::Stream::UNSAFE, where, chosen_stream[device]);
}
void set_current_stream(const c10::Stream& stream) {
  chosen_stream[stream.device_index()] = stream.id();
}
c10::Stream make_stream(int device) {
  static std::atomic<c10::StreamId> next{1};
  const c10::Device where(kType, static_cast<c10::DeviceIndex>(device));
  return c10::Stream(c10::Stream::UNSAFE, where, next++);
}

void issue(const c10::Stream& stream, std::function<void()> work) {
  const std::lock_guard lock(mutex);
  Work& of = streams()[{stream.device_index(), stream.id()}];
  // A queue that is a stack.
  if (has_defect("stack")) {
    of.waiting.push_front(std::move(work));
  } else {
    of.waiting.push_back(std::move(work));
  }
  ++of.issued;
}

Point here(const c10::Stream& stream) {
  const std::lock_guard lock(mutex);
  return {stream.id(), stream.device_index(),
          streams()[{stream.device_index(), stream.id()}].issued};
}

bool reached(const Point& point) {
  const std::lock_guard lock(mutex);
  return streams()[{point.device, point.stream}].done >= point.count;
}

void run_to(const Point& point) {
  const std::lock_guard lock(mutex);
  Work& work = streams()[{point.device, point.stream}];
  while (work.done < point.count && !work.waiting.empty()) {
    const std::function<void()> next = std::move(work.waiting.front());
    work.waiting.pop_front();
    next();
    ++work.done;
  }
}

void run_all(int device) {
  const std::lock_guard lock(mutex);
  for (auto& [key, work] : streams()) {
    if (key.first == device) run_to({key.second, device, work.issued});
  }
}

// ---- memory --------------------------------------------------------------------------------------

namespace {

struct Bytes {
  int64_t allocated = 0;
  int64_t peak = 0;
  int64_t calls = 0;
};
Bytes bytes_of_device[kDevices];
bool is_stuck = false;  // after the defect "stuck"

struct Block {
  int device;
  int64_t bytes;
};
std::map<void*, Block>& blocks() {
  static auto* all = new std::map<void*, Block>();
  return *all;
}

int64_t memory_size() {
  static const int64_t size = [] {
    const char* text = std::getenv("ABACUS_MEMORY_BYTES");
    return text == nullptr ? int64_t{1} << 30 : std::atoll(text);
  }();
  return size;
}

void release(void* address) {
  if (address == nullptr) return;
  const std::lock_guard lock(mutex);
  const auto block = blocks().find(address);
  // What waits may still use it.
  if (!has_defect("early_free")) run_all(block->second.device);
  if (!has_defect("leaky_count"))
    bytes_of_device[block->second.device].allocated -= block->second.bytes;
  if (has_defect("early_free")) std::memset(address, 0, static_cast<size_t>(block->second.bytes));
  blocks().erase(block);
  // With the defect, memory is never given back, so that what is wrong is wrong in every run.
  if (!has_defect("early_free")) std::free(address);
}

c10::DataPtr take(size_t size) {
  const std::lock_guard lock(mutex);
  const int device = current_device();
  const c10::Device where(kType, static_cast<c10::DeviceIndex>(device));
  if (size == 0) return {nullptr, where};
  Bytes& bytes = bytes_of_device[device];
  const auto wanted = static_cast<int64_t>(size);
  if (is_stuck || wanted > memory_size() - bytes.allocated) {
    is_stuck = has_defect("stuck");
    TORCH_CHECK_WITH(OutOfMemoryError, false, "abacus out of memory: ", size, " bytes");
  }
  void* address = std::aligned_alloc(64, (size + 63) / 64 * 64);
  TORCH_CHECK_WITH(OutOfMemoryError, address != nullptr, "abacus out of memory: ", size, " bytes");
  std::memset(address, 0x7F, size);
  bytes.allocated += wanted;
  bytes.peak = std::max(bytes.peak, bytes.allocated);
  ++bytes.calls;
  blocks()[address] = {device, wanted};
  return {address, address, &release, where};
}

void copy_bytes(void* to, const void* from, size_t size) {
  run_all(0);
  run_all(1);
  std::memmove(to, from, size);
}

struct CountingAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t size) override { return take(size); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override {
    copy_bytes(to, from, size);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    const std::lock_guard lock(mutex);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = bytes_of_device[device].allocated;
    stats.allocated_bytes[0].peak = bytes_of_device[device].peak;
    stats.reserved_bytes[0] = stats.allocated_bytes[0];
    stats.allocation[0].allocated = bytes_of_device[device].calls;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override {
    const std::lock_guard lock(mutex);
    bytes_of_device[device].peak = bytes_of_device[device].allocated;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    const std::lock_guard lock(mutex);
    return {static_cast<size_t>(memory_size() - bytes_of_device[device].allocated),
            static_cast<size_t>(memory_size())};
  }
};

struct PlainAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override { return take(size); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override {
    copy_bytes(to, from, size);
  }
};

}  // namespace

void register_allocators() {
  if (has_defect("plain_allocator")) {
    c10::SetAllocator(kType, new PlainAllocator());
  } else {
    c10::SetAllocator(kType, new CountingAllocator());
  }
}

}  // namespace abacus
