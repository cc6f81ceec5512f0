// PyTorch's NCCL back end as a library of collectives; with the names exchanged (CMakeLists.txt), its port to MCCL.
#include <cstdlib>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "trireme/comm/plugin/collectives.h"

TRIREME_COLLECTIVES(request) {
  // What fails ends its communicators; the process goes on, to say why and end by itself. A user's own setting stays.
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", 0);
  auto options = c10d::ProcessGroupNCCL::Options::create(true);
  options->timeout = request.timeout;
  auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(request.store, request.rank,
                                                             request.size, options);
  backend->setBoundDeviceId(request.device);
  return backend;
}
