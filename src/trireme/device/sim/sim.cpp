#include "trireme/device/sim/sim.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceType.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/device/sim/runtime.h"

namespace trireme::device::sim {
namespace {

void read_number(const char* variable, int64_t least, int64_t most, int64_t* value) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return;
  const std::string_view view(text);
  int64_t number = 0;
  const auto [end, error] = std::from_chars(view.begin(), view.end(), number);
  TRIREME_USER_CHECK(error == std::errc() && end == view.end() && number >= least && number <= most,
                     kConfig, fmt::format("give a whole number from {} to {}", least, most),
                     "{}={}", variable, text);
  *value = number;
}

constexpr int64_t kHighestOfMantissa =
    22;  ///< of the first float32: the lowest would be rounded away soon

/// "fail:120", "flip:3:linear".
std::optional<Fault> fault_from_environment() {
  const char* variable = std::getenv("TRIREME_SIM_FAULT");
  if (variable == nullptr || *variable == '\0') return std::nullopt;
  const std::string text = variable;
  const std::vector<std::pair<std::string, Fault::Kind>> kinds = {
      {"fail", Fault::Kind::kFail}, {"hang", Fault::Kind::kHang}, {"flip", Fault::Kind::kFlipBit}};
  const size_t first = text.find(':');
  const size_t second = first == std::string::npos ? first : text.find(':', first + 1);
  Fault fault;
  fault.bit = kHighestOfMantissa;
  bool is_known = false;
  for (const auto& [name, kind] : kinds) {
    if (text.substr(0, first) != name) continue;
    fault.kind = kind;
    is_known = true;
  }
  bool is_number = false;
  if (first != std::string::npos) {
    const std::string number = text.substr(first + 1, second - first - 1);
    const auto [end, error] =
        std::from_chars(number.data(), number.data() + number.size(), fault.nth);
    is_number = error == std::errc() && end == number.data() + number.size() && fault.nth >= 1;
  }
  TRIREME_USER_CHECK(
      is_known && is_number, kConfig,
      "write fail, hang or flip, the number of the kernel from 1, and perhaps a part of "
      "its name: flip:3:linear",
      "TRIREME_SIM_FAULT={}", text);
  if (second != std::string::npos) fault.kernel = text.substr(second + 1);
  return fault;
}

/// "fp32=1e11,bf16=2e11,memory=2e10,host=1e10,peer=1e10,launch=5e-6": rates a second, and seconds.
std::optional<DeviceProfile> clock_from_environment() {
  const char* variable = std::getenv("TRIREME_SIM_CLOCK");
  if (variable == nullptr || *variable == '\0') return std::nullopt;
  DeviceProfile profile;
  double bf16 = 0.0;
  double fp32 = 0.0;
  const std::vector<std::pair<std::string, double*>> names = {
      {"fp32", &fp32},
      {"bf16", &bf16},
      {"memory", &profile.bytes_per_s},
      {"host", &profile.host_link_bytes_per_s},
      {"peer", &profile.peer_link_bytes_per_s},
      {"launch", &profile.launch_latency_s}};
  const std::string text = variable;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const size_t equals = std::min(text.find('=', begin), end);
    const std::string name = text.substr(begin, equals - begin);
    double* value = nullptr;
    for (const auto& [known, place] : names) {
      if (known == name) value = place;
    }
    const char* const first = text.data() + std::min(equals + 1, end);
    const char* const last = text.data() + end;
    const bool is_number = value != nullptr && first < last &&
                           std::from_chars(first, last, *value).ptr == last && *value >= 0.0 &&
                           *value < 1e30;
    TRIREME_USER_CHECK(is_number, kConfig,
                       "write some of fp32, bf16, memory, host, peer and launch as "
                       "fp32=1e11,memory=2e10,launch=5e-6",
                       "TRIREME_SIM_CLOCK={}", text);
    begin = end + 1;
  }
  if (fp32 > 0.0) profile.flops_per_s[c10::kFloat] = fp32;
  if (bf16 > 0.0) profile.flops_per_s[c10::kBFloat16] = bf16;
  return profile;
}

WorkQueue& queue_of(const c10::Stream& stream) {
  return Runtime::get().queue(stream);
}

DeviceState& state_of(int device) {
  return Runtime::get().device(device).state;
}

Scheduler& scheduler() {
  return Runtime::get().scheduler();
}

// A function of its own, so that tests/sanitizers can name it.
[[gnu::noinline]] void claim_place() {
  c10::register_privateuse1_backend("sim");
}

}  // namespace

Options options_from_environment() {
  Options options;
  int64_t devices = options.num_devices;
  int64_t seed = 0;
  read_number("TRIREME_SIM_DEVICES", 1, kMaxDevices, &devices);
  read_number("TRIREME_SIM_SEED", 0, INT64_MAX, &seed);
  read_number("TRIREME_SIM_MEMORY_BYTES", 1, options.address_space_bytes,
              &options.memory_cap_bytes);
  options.num_devices = static_cast<int>(devices);
  options.seed = static_cast<uint64_t>(seed);
  options.fault = fault_from_environment();
  options.clock = clock_from_environment();
  const char* text = std::getenv("TRIREME_SIM_SCHEDULE");
  const std::string schedule = text == nullptr || *text == '\0' ? "late" : text;
  const std::vector<std::string> known = {"eager", "late", "shuffled"};
  if (schedule == "eager") {
    options.schedule = Schedule::kEager;
  } else if (schedule == "shuffled") {
    options.schedule = Schedule::kShuffled;
  } else {
    TRIREME_USER_CHECK(schedule == "late", kConfig, suggestion(schedule, known),
                       "TRIREME_SIM_SCHEDULE={}", schedule);
  }
  return options;
}

bool backend_registered() {
  return Runtime::started();
}

void register_backend(const Options& options) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (Runtime::started()) return;
  TRIREME_USER_CHECK(options.num_devices >= 1 && options.num_devices <= kMaxDevices, kConfig,
                     fmt::format("give 1 to {}", kMaxDevices), "{} simulated devices",
                     options.num_devices);
  if (c10::is_privateuse1_backend_registered()) {
    const std::string owner = c10::get_privateuse1_backend();
    TRIREME_USER_CHECK(owner == "sim", kDevice,
                       "a process has one such place: do not load the plug-in where sim is used",
                       "PyTorch's place for another device belongs to \"{}\" in this process",
                       owner);
  }
  claim_place();
  Runtime::start(options);
  register_guard_and_hooks();
  register_operators();
  for (int i = 0; options.fault && i < options.num_devices; ++i) inject_fault(i, *options.fault);
  if (options.clock) set_profile(std::make_shared<const DeviceProfile>(*options.clock));
}

// ---- work ----------------------------------------------------------------------------------------

void submit(Kernel kernel, std::function<void()> work) {
  submit(current_stream(current_device()), std::move(kernel), std::move(work));
}

void submit(c10::Stream stream, Kernel kernel, std::function<void()> work) {
  scheduler().submit(queue_of(stream), std::move(kernel), std::move(work));
}

at::Tensor host_alias(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cpu()) return tensor;
  TRIREME_CHECK(tensor.is_privateuseone(), "a tensor on {} among those of sim",
                tensor.device().str());
  TRIREME_CHECK(!tensor.is_conj() && !tensor.is_neg(), "lazily negated or conjugated tensors");
  const auto options = at::TensorOptions().dtype(tensor.dtype()).device(c10::DeviceType::CPU);
  // A view of memory that was given back has an address, its offset: only its shape counts.
  if (tensor.numel() == 0 || tensor.storage().data() == nullptr) {
    return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  }
  return at::for_blob(host_address(tensor.const_data_ptr()), tensor.sizes())
      .strides(tensor.strides())
      .options(options)
      .make_tensor();
}

void synchronize() {
  synchronize(current_stream(current_device()));
}

void synchronize(c10::Stream stream) {
  WorkQueue& queue = queue_of(stream);
  scheduler().wait(queue, queue.issued());
  scheduler().throw_if_failed(state_of(stream.device_index()));
}

void synchronize_device(int device) {
  scheduler().wait_device(state_of(device));
  scheduler().throw_if_failed(state_of(device));
}

QueueHold::QueueHold(c10::Stream stream) : stream_(stream) {
  scheduler().hold(queue_of(stream_));
}

QueueHold::~QueueHold() {
  scheduler().release(queue_of(stream_));
}

void set_schedule(Schedule schedule, uint64_t seed) {
  scheduler().set_schedule(schedule, seed);
}

// ---- faults --------------------------------------------------------------------------------------

void inject_fault(int device, const Fault& fault) {
  scheduler().arm(state_of(device), fault);
}

void fail_allocation(int device, int64_t nth) {
  Runtime::get().device(device).memory.fail_allocation(nth);
}

void wait_until_hung(int device) {
  scheduler().wait_until_hung(state_of(device));
}

void release_hung(int device) {
  scheduler().end_hang(state_of(device), /*abort=*/false);
}

void abort_hung(int device) {
  scheduler().end_hang(state_of(device), /*abort=*/true);
}

void recover(int device) {
  scheduler().clear_failure(state_of(device));
  Runtime::get().device(device).memory.fail_allocation(0);
}

// ---- clock ---------------------------------------------------------------------------------------

void set_profile(std::shared_ptr<const DeviceProfile> profile) {
  scheduler().set_profile(std::move(profile));
}

double simulated_seconds(int device) {
  return scheduler().simulated_seconds(state_of(device));
}

void restart_clock() {
  scheduler().restart_clock();
}

double host_clock() {
  return Scheduler::host_clock();
}

void set_host_clock(double seconds) {
  Scheduler::set_host_clock(seconds);
}

void add_cost(const Cost& cost) {
  Scheduler::add_cost(cost);
}

}  // namespace trireme::device::sim
