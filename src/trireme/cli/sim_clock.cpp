#include "trireme/cli/sim_clock.h"

#include <cstdlib>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/plan/profile.h"

namespace trireme::cli {

namespace {

constexpr const char* kVariable = "TRIREME_SIM_CLOCK";

double product_rate(const plan::DeviceProfile& device, plan::ComputeType type) {
  const auto peak = device.peak_flops.find(type);
  if (peak == device.peak_flops.end()) return 0.0;
  const auto share = device.gemm_efficiency.find(type);
  return peak->second * (share == device.gemm_efficiency.end() ? 1.0 : share->second);
}

}  // namespace

void resolve_sim_clock() {
  const char* text = std::getenv(kVariable);
  if (text == nullptr || *text == '\0') return;
  const std::string name = text;
  if (name.find('=') != std::string::npos) return;
  const auto& devices = plan::shipped_profiles().devices;
  const auto found = devices.find(name);
  if (found == devices.end()) {
    std::vector<std::string> known;
    for (const auto& [each, device] : devices) known.push_back(each);
    throw Error(ErrorCode::kConfig, fmt::format("{}={}: no profile has this name", kVariable, name),
                suggestion(name, known) + "; or write rates, as fp32=1e11,memory=2e10,launch=5e-6");
  }
  const plan::DeviceProfile& device = found->second;
  std::string rates;
  const auto add = [&](const char* what, double value) {
    if (value > 0.0) rates += fmt::format("{}{}={:.6e}", rates.empty() ? "" : ",", what, value);
  };
  add("fp32", product_rate(device, plan::ComputeType::kFp32));
  add("bf16", product_rate(device, plan::ComputeType::kBf16));
  add("memory", device.memory_bytes_per_s * device.memory_efficiency);
  add("host", device.host_link_bytes_per_s);
  add("launch", device.kernel_gap_s);
  ::setenv(kVariable, rates.c_str(), 1);
}

}  // namespace trireme::cli
