#include "trireme/device/machine.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/thread_pool.h"
#include "trireme/base/torch_compat.h"

namespace trireme::device {

namespace fs = std::filesystem;

namespace {

/// The file's text, or "" where there is none: what is not known stays unknown.
std::string read_or_empty(const fs::path& path) {
  try {
    return read_file(path);
  } catch (const Error&) {
    return "";
  }
}

/// The value behind the first line that starts with `key`, up to the end of the line.
std::string field(const std::string& text, std::string_view key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!std::string_view(line).starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t:=\"", key.size());
    if (begin == std::string::npos) return "";
    const size_t end = line.find_last_not_of(" \"");
    return line.substr(begin, end - begin + 1);
  }
  return "";
}

std::vector<std::string> interesting_features(const std::string& flags) {
  static constexpr std::array kInteresting = {
      "avx2",     "fma",      "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
      "amx_tile", "amx_bf16", "asimd",   "sve",         "bf16",        "i8mm"};
  std::vector<std::string> found;
  std::istringstream words(flags);
  for (std::string word; words >> word;) {
    if (std::find(kInteresting.begin(), kInteresting.end(), word) != kInteresting.end())
      found.push_back(word);
  }
  return found;
}

/// CPUs that the control group (version 2, then 1) lets this process use; 0 without a limit.
double read_cpu_quota() {
  double quota = 0;
  double period = 0;
  std::istringstream unified(read_or_empty("/sys/fs/cgroup/cpu.max"));
  if (unified >> quota >> period && period > 0) return quota / period;
  std::istringstream quota_text(read_or_empty("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"));
  std::istringstream period_text(read_or_empty("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
  if (quota_text >> quota && period_text >> period && quota > 0 && period > 0)
    return quota / period;
  return 0;
}

int64_t kilobytes(const std::string& meminfo, std::string_view key) {
  return std::strtoll(field(meminfo, key).c_str(), nullptr, 10) * 1024;
}

/// The BLAS that at::show_config() names, e.g. "mkl".
std::string blas_of(const std::string& configuration) {
  const size_t begin = configuration.find("BLAS_INFO=");
  if (begin == std::string::npos) return "unknown";
  const size_t start = begin + std::string_view("BLAS_INFO=").size();
  return configuration.substr(start, configuration.find_first_of(", \n", start) - start);
}

std::vector<Machine::Device> find_devices(const std::string& processor) {
  std::vector<Machine::Device> devices{{"cpu", processor, true}};
  // Seen through the driver's own listing: no vendor's library is loaded for it.
  std::error_code error;
  int index = 0;
  for (const auto& entry : fs::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    devices.push_back({fmt::format("cuda:{}", index++),
                       field(read_or_empty(entry.path() / "information"), "Model"), false});
  }
  return devices;
}

}  // namespace

Machine read_machine() {
  Machine machine;
  utsname names{};
  if (::uname(&names) == 0) {
    machine.host = names.nodename;
    const std::string distribution = field(read_or_empty("/etc/os-release"), "PRETTY_NAME");
    machine.system = fmt::format("{}{}Linux {} {}", distribution, distribution.empty() ? "" : ", ",
                                 names.release, names.machine);
  }
  const std::string cpuinfo = read_or_empty("/proc/cpuinfo");
  machine.processor = field(cpuinfo, "model name");
  if (machine.processor.empty()) machine.processor = "unknown processor";
  std::string flags = field(cpuinfo, "flags");
  if (flags.empty()) flags = field(cpuinfo, "Features");  // AArch64's name for them
  machine.features = interesting_features(flags);
  machine.cpus = available_cpus();
  machine.cpu_quota = read_cpu_quota();
  machine.torch_threads = at::get_num_threads();
  machine.load = std::strtod(read_or_empty("/proc/loadavg").c_str(), nullptr);
  const std::string meminfo = read_or_empty("/proc/meminfo");
  machine.memory_bytes = kilobytes(meminfo, "MemTotal");
  machine.available_memory_bytes = kilobytes(meminfo, "MemAvailable");
  machine.torch_version =
      fmt::format("{}.{}.{}", TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH);
  machine.torch_configuration = at::show_config();
  machine.blas = blas_of(machine.torch_configuration);
  machine.cpu_capability = at::get_cpu_capability();
  machine.devices = find_devices(machine.processor);
  return machine;
}

OrderedJson to_json(const Machine& machine) {
  OrderedJson devices = OrderedJson::array();
  for (const Machine::Device& device : machine.devices) {
    devices.push_back({{"name", device.name}, {"model", device.model}, {"usable", device.usable}});
  }
  return {{"host", machine.host},
          {"system", machine.system},
          {"processor", machine.processor},
          {"features", machine.features},
          {"cpus", machine.cpus},
          {"cpu_quota", machine.cpu_quota},
          {"threads", machine.torch_threads},
          {"load", machine.load},
          {"memory_bytes", machine.memory_bytes},
          {"available_memory_bytes", machine.available_memory_bytes},
          {"torch", machine.torch_version},
          {"blas", machine.blas},
          {"cpu_capability", machine.cpu_capability},
          {"devices", std::move(devices)}};
}

MachineRates measure_machine(const fs::path& folder, double budget_s, const Product& product) {
  MachineRates rates;
  rates.gemm_fp32 = measure_gemm(c10::kFloat, 1024, 1024, 1024, budget_s * 0.25);
  rates.gemm_bf16 = measure_gemm(c10::kBFloat16, 1024, 1024, 1024, budget_s * 0.25);
  rates.memory_bandwidth = measure_memory_bandwidth(int64_t{256} << 20, budget_s * 0.15);
  try {
    rates.disk_write = measure_disk_write(folder, int64_t{64} << 20, budget_s * 0.2);
  } catch (const Error& error) {
    rates.disk_error = error.what();
  }
  rates.rows_fp32 = find_row_dependence(c10::kFloat, product);
  rates.rows_bf16 = find_row_dependence(c10::kBFloat16, product);
  return rates;
}

namespace {

bool has(const Machine& machine, std::string_view feature) {
  return std::find(machine.features.begin(), machine.features.end(), feature) !=
         machine.features.end();
}

void diagnose_processor(const Machine& machine, std::vector<Finding>& findings) {
  const bool x86 = machine.system.find("x86_64") != std::string::npos;
  if (x86 && !has(machine, "avx2")) {
    findings.push_back(
        {Finding::Level::kProblem,
         "the processor has no AVX2, so products and kernels are several times slower",
         "use a processor made after 2015, or let the virtual machine show the host's instruction "
         "sets"});
  }
  if (machine.cpu_quota > 0 && machine.torch_threads > machine.cpu_quota + 0.5) {
    findings.push_back(
        {Finding::Level::kWarning,
         fmt::format("{} threads share {:.1f} CPUs that the control group allows, and will wait "
                     "for each other",
                     machine.torch_threads, machine.cpu_quota),
         fmt::format("set OMP_NUM_THREADS={}", std::max(1, static_cast<int>(machine.cpu_quota)))});
  } else if (machine.torch_threads > machine.cpus) {
    findings.push_back({Finding::Level::kWarning,
                        fmt::format("{} threads on {} CPUs will wait for each other",
                                    machine.torch_threads, machine.cpus),
                        fmt::format("set OMP_NUM_THREADS={} or leave it unset", machine.cpus)});
  } else if (machine.torch_threads * 2 < machine.cpus) {
    // Half is right where the CPUs are pairs of hardware threads.
    findings.push_back(
        {Finding::Level::kWarning,
         fmt::format("torch uses {} of {} CPUs", machine.torch_threads, machine.cpus),
         "unset OMP_NUM_THREADS and MKL_NUM_THREADS"});
  }
  if (machine.load > machine.cpus * 0.5 + 0.5) {
    findings.push_back(
        {Finding::Level::kWarning,
         fmt::format("other programs keep {:.1f} CPUs busy: the rates below are too low",
                     machine.load),
         "stop them, or run this again later"});
  }
}

void diagnose_memory(const Machine& machine, std::vector<Finding>& findings) {
  constexpr int64_t kEnough = int64_t{3} << 30;
  if (machine.available_memory_bytes > 0 && machine.available_memory_bytes < kEnough) {
    findings.push_back({Finding::Level::kWarning,
                        fmt::format("{:.1f} GB of memory are free",
                                    static_cast<double>(machine.available_memory_bytes) * 1e-9),
                        "close other programs, or lower batch.micro; `trireme train RUN.toml "
                        "--dry-run` says what a run needs"});
  }
}

void diagnose_products(const Machine& machine, const MachineRates& rates,
                       std::vector<Finding>& findings) {
  // A vector unit of 256 bits at 2 GHz makes 64 GFLOP/s; a BLAS without vector code stays below 5.
  const double fp32_per_thread = rates.gemm_fp32.median / std::max(1, machine.torch_threads);
  if (fp32_per_thread < 8) {
    findings.push_back(
        {Finding::Level::kProblem,
         fmt::format("float32 products run at {:.1f} GFLOP/s a thread: the BLAS behind torch ({}) "
                     "has no fast path here",
                     fp32_per_thread, machine.blas),
         "use the torch wheel that scripts/setup installs, or a torch built with MKL or OpenBLAS"});
  }
  const double ratio =
      rates.gemm_fp32.median > 0 ? rates.gemm_bf16.median / rates.gemm_fp32.median : 0;
  findings.push_back(
      {Finding::Level::kNote,
       fmt::format("bfloat16 products run at {:.2f} times the rate of float32", ratio),
       ratio >= 1
           ? "precision.recipe = \"auto\" takes bf16 where this holds for a whole step"
           : "keep precision.recipe at \"auto\" or \"fp32\": bf16 saves memory here, not time"});
}

void diagnose_rows(const char* name, const std::vector<RowDependence>& rows,
                   std::vector<Finding>& findings) {
  const int64_t from = independent_from(rows);
  if (from == 1) {
    findings.push_back({Finding::Level::kNote,
                        fmt::format("rows of {} products do not depend on their number", name),
                        ""});
  } else {
    findings.push_back(
        {Finding::Level::kNote,
         fmt::format("rows of {} products depend in their last bits on their number below {} rows",
                     name, from),
         "a training run is not affected: its products always have the same number of rows; "
         "generation may differ in "
         "the last bits of a logit from the forward pass of training"});
  }
}

void diagnose_disk(const MachineRates& rates, std::vector<Finding>& findings) {
  if (!rates.disk_write) {
    findings.push_back(
        {Finding::Level::kProblem, rates.disk_error, "run this in a folder that you may write to"});
  } else if (rates.disk_write->median < 50) {
    findings.push_back(
        {Finding::Level::kWarning,
         fmt::format("the disk writes {:.0f} MB/s: checkpoints of large models will take minutes",
                     rates.disk_write->median),
         "put `out` on a faster disk, or raise checkpoint.every"});
  }
}

}  // namespace

std::vector<Finding> diagnose(const Machine& machine, const MachineRates& rates) {
  std::vector<Finding> findings;
  diagnose_processor(machine, findings);
  diagnose_memory(machine, findings);
  diagnose_products(machine, rates, findings);
  diagnose_rows("float32", rates.rows_fp32, findings);
  diagnose_rows("bfloat16", rates.rows_bf16, findings);
  diagnose_disk(rates, findings);
  for (const Machine::Device& device : machine.devices) {
    if (!device.usable) {
      findings.push_back({Finding::Level::kNote,
                          fmt::format("{} ({}) is present, but this build trains on the CPU only",
                                      device.name, device.model),
                          ""});
    }
  }
  return findings;
}

}  // namespace trireme::device
