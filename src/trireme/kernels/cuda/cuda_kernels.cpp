#include "trireme/kernels/cuda/cuda_kernels.h"

#include <atomic>

#include "trireme/base/error.h"
#include "trireme/kernels/cuda/launch.h"

namespace trireme::kernels::gpu {

namespace {
std::atomic<bool> grouped{false};
std::atomic<int64_t> score_bytes{int64_t{1} << 30};
}  // namespace

void set_grouped_products(bool available) {
  grouped = available;
}
bool grouped_products() {
  return grouped;
}

void set_attention_score_bytes(int64_t bytes) {
  score_bytes = bytes;
}
int64_t attention_score_bytes() {
  return score_bytes;
}

void launch_failed(const char* kernel, const char* reason) {
  throw Error(ErrorCode::kDevice,
              fmt::format("the kernel {} cannot be started: {}", kernel, reason),
              "this build's kernels may be for other devices; `trireme doctor` names this one");
}

void register_kernels(Registrar& registrar, const KernelInfo& info) {
  KernelInfo mine = info;
#define X(op)                         \
  mine.workspace = workspace_of(#op); \
  registrar.add<&kernels::op>(mine, &ops::op);
  TRIREME_GPU_OPS(X)
#undef X
}

}  // namespace trireme::kernels::gpu
