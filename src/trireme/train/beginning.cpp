#include "trireme/train/beginning.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <span>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/hash.h"
#include "trireme/base/json.h"
#include "trireme/comm/agreement.h"
#include "trireme/train/run_setup.h"

namespace trireme::train {

namespace {

std::string to_text(const Beginning& beginning) {
  return Json{{"done", beginning.done},
              {"precision", beginning.precision},
              {"checkpoint", beginning.checkpoint}}
      .dump();
}

Beginning beginning_from(const std::string& text) {
  const Json json = parse_json(text, "rank 0's message");
  return {json.at("done"), json.at("precision"), json.at("checkpoint")};
}

}  // namespace

void check_ranks(const RunFile& run, int64_t here) {
  const plan::Parallel parallel = parallel_of(run.config);
  const int64_t wanted = parallel.world();
  // Those that differ in nothing but their sequences.
  const int64_t one = wanted / parallel.dp;
  std::string other = fmt::format("parallel.dp = {}", here % one == 0 ? here / one : here);
  if (here % one != 0) {
    if (parallel.cp > 1) other = "parallel.cp = 1 and " + other;
    if (parallel.pp > 1) other = "parallel.pp = 1 and " + other;
  }
  TRIREME_USER_CHECK(
      wanted == here, kConfig,
      fmt::format("start it with trireme launch --nproc {} (or --threads {}), or set {}", wanted,
                  wanted, other),
      "[parallel] asks for {} rank{}, and {} {} here", wanted, wanted == 1 ? "" : "s", here,
      here == 1 ? "is" : "are");
}

RunFile on_own_device(const RunFile& run, const comm::World* world) {
  RunFile own = run;
  std::string& name = own.config.device.name;
  if (world != nullptr && world->size() > 1 && name != "cpu" && name.find(':') == std::string::npos)
    name += fmt::format(":{}", world->rank_on_host());
  return own;
}

void tell_ranks(comm::World* world, const Beginning& beginning) {
  if (world != nullptr) world->exchange(to_text(beginning));
}

Beginning hear_first_rank(comm::World& world) {
  return beginning_from(world.exchange("").front());
}

void agree_on_run(const Preflight& p, const TrainState& state, const std::string& version,
                  comm::World& world) {
  std::string program;
  const plan::Strategy strategy = strategy_of(p.run.config, p.model.spec, p.precision.precision);
  for (const plan::Instruction& one : plan::build_program(p.model.spec, strategy, 0).instructions)
    program += plan::describe(p.model.spec, one) + "\n";
  program += strategy.parallel.schedule_text;
  const std::vector<std::string> keys = differing_keys(RunConfig{}, p.run.config);
  const auto digest = [](const std::string& text) {
    return hash_text(xxh3(std::as_bytes(std::span(text))));
  };
  comm::agree(world, {{"code", version},
                      {"model", digest(p.model.spec.config_json)},
                      {"program", digest(program)},
                      {"run file", digest(fmt::format("{}", fmt::join(keys, "\n")))},
                      {"data", state.data},
                      {"arithmetic", state.arithmetic}});
}

}  // namespace trireme::train
