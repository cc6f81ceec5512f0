// What this machine is and what is wrong with it for training: the facts and advice of `trireme
// doctor`.
//
// Reading (read_machine, measure_machine) and judging (diagnose) are apart, so that the advice is
// tested on machines that nobody has.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/device/probe.h"

namespace trireme::device {

/// Facts that are read, not measured.
struct Machine {
  std::string host;
  std::string system;     ///< distribution and kernel
  std::string processor;  ///< the CPU's model name
  std::vector<std::string>
      features;           ///< instruction sets that matter here: avx2, avx512_bf16, amx_bf16 ...
  int cpus = 0;           ///< this process may run on (affinity)
  double cpu_quota = 0;   ///< CPUs that the control group allows; 0: no limit
  int torch_threads = 0;  ///< ATen's threads
  double load = 0;        ///< runnable tasks, mean of the last minute
  int64_t memory_bytes = 0;
  int64_t available_memory_bytes = 0;
  std::string torch_version;
  std::string torch_configuration;  ///< at::show_config()
  std::string blas;                 ///< the library behind float32 products, as torch names it
  std::string cpu_capability;       ///< the instruction set that ATen's own kernels took
  struct Device {
    std::string name;  ///< "cpu", "cuda:0" ...
    std::string model;
    bool usable = false;  ///< by this build
  };
  std::vector<Device> devices;
};

Machine read_machine();

/// The facts as the "machine" of `--json` documents.
OrderedJson to_json(const Machine& machine);

struct MachineRates {
  Rate gemm_fp32;                  ///< GFLOP/s
  Rate gemm_bf16;                  ///< GFLOP/s
  Rate memory_bandwidth;           ///< GB/s
  std::optional<Rate> disk_write;  ///< MB/s; none: the folder cannot be written
  std::string disk_error;
  std::vector<RowDependence> rows_fp32;
  std::vector<RowDependence> rows_bf16;
};

/// Measures for about `budget_s` seconds in all; writes a probe file into `folder`. `product` is the one whose rows are
/// compared: the one that training uses, where the caller knows it.
MachineRates measure_machine(const std::filesystem::path& folder, double budget_s = 5.0,
                             const Product& product = aten_product);

struct Finding {
  enum class Level { kNote, kWarning, kProblem };
  Level level = Level::kNote;
  std::string what;    ///< what is the matter
  std::string advice;  ///< what to do; may be empty for a note
};

/// What of this a person should know. Pure.
std::vector<Finding> diagnose(const Machine& machine, const MachineRates& rates);

}  // namespace trireme::device
