#include "trireme/cli/ranks.h"

#include <exception>

#include "trireme/base/error.h"
#include "trireme/comm/local/local_world.h"
#include "trireme/comm/process_world.h"

namespace trireme::cli {

int64_t num_ranks(int threads) {
  return threads > 1 ? threads : comm::read_placement({}, comm::process_environment()).size;
}

void run_as_ranks(int threads, double timeout_s, const std::function<void(comm::World*)>& body) {
  if (threads > 1) {
    comm::LocalOptions options;
    options.timeout_s = timeout_s;
    comm::run_ranks(threads, [&](comm::World& world) { body(&world); }, options);
    return;
  }
  const comm::Environment environment = comm::process_environment();
  const auto world =
      comm::make_process_world(comm::read_placement({}, environment), environment, timeout_s);
  try {
    body(world.get());
  } catch (const std::exception& error) {
    // All ranks are interrupted together; of anything else the others are told at once, and why.
    const auto* ours = dynamic_cast<const Error*>(&error);
    const bool together = ours != nullptr && ours->code() == ErrorCode::kInterrupted;
    if (world != nullptr && !together) world->abort(error.what());
    throw;
  }
}

}  // namespace trireme::cli
