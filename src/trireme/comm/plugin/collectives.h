// A device's own collectives, as a library: it makes c10d back ends for groups of ranks.
//
//   #include <trireme/comm/plugin/collectives.h>
//   TRIREME_COLLECTIVES(request) {
//     return c10::make_intrusive<MyBackend>(request.store, request.rank, request.size);   // a c10d::Backend
//   }
//
// It is built against PyTorch's headers and this file, and links nothing of Trireme; it and the program share torch. PyTorch
// registers its back ends by name in Python alone: this is the same registration for a program without it.
//
// What is called: broadcast, alltoall_base on bytes in uneven pieces, _allgather_base, send, recv; for `reduction = "fast"`
// allreduce, reduce, _reduce_scatter_base. Where the back end supports coalescing, broadcasts of one gather are coalesced.
// Tensors are flat, contiguous, on `device`; calls come from one thread and are issued while the stream that has written the
// tensors is the current one; Work::wait() makes the current stream wait, or blocks. abort() may come from another thread, and
// ends what is under way.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "trireme/base/torch_compat.h"

namespace trireme::comm {

/// One group of ranks, or one direction of its sends and receives.
struct CollectivesRequest {
  c10::intrusive_ptr<c10d::Store> store;  ///< of nobody else; goes to all members
  int rank = 0;                           ///< of the caller, among the members
  int size = 1;
  c10::Device device;                 ///< of the caller's tensors
  std::chrono::milliseconds timeout;  ///< for a transfer
};

/// What a library and the program must have in common.
struct CollectivesAbi {
  int contract;          ///< of this file; raised with every change of CollectivesRequest
  int torch_version[3];  ///< major, minor, patch
};
constexpr CollectivesAbi kCollectivesAbi = {
    1, {TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH}};

using MakeCollectives = void (*)(const CollectivesRequest& request,
                                 c10::intrusive_ptr<c10d::Backend>& backend);

}  // namespace trireme::comm

/// Defines what a library of collectives exports; the body that follows returns the back end of one group. It may throw.
#define TRIREME_COLLECTIVES(request)                                                        \
  static c10::intrusive_ptr<c10d::Backend> trireme_collectives_of(                          \
      const ::trireme::comm::CollectivesRequest& request);                                  \
  extern "C" __attribute__((visibility("default"))) const void* trireme_collectives_abi() { \
    return &::trireme::comm::kCollectivesAbi;                                               \
  }                                                                                         \
  extern "C" __attribute__((visibility("default"))) void trireme_make_collectives(          \
      const ::trireme::comm::CollectivesRequest& asked,                                     \
      c10::intrusive_ptr<c10d::Backend>& backend) {                                         \
    backend = trireme_collectives_of(asked);                                                \
  }                                                                                         \
  static c10::intrusive_ptr<c10d::Backend> trireme_collectives_of(                          \
      const ::trireme::comm::CollectivesRequest& request)
