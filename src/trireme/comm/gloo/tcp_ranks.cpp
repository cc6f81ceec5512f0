#include "trireme/comm/gloo/tcp_ranks.h"

#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "trireme/comm/gloo/gloo_world.h"
#include "trireme/comm/rank_threads.h"

namespace trireme::comm {

void run_ranks_over_tcp(int size, const std::function<void(World&)>& body,
                        const GlooOptions& options) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  run_rank_threads(
      size, [&](int rank) { return make_gloo_world(store, rank, size, options); }, body);
}

}  // namespace trireme::comm
