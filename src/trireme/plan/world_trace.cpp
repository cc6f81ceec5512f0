#include "trireme/plan/world_trace.h"

#include "trireme/base/error.h"

namespace trireme::plan {

std::vector<Trace> world_traces(const PlannedRun& run, const PredictedWorld& world) {
  TRIREME_CHECK(world.programs.size() == world.simulation.ranks.size(),
                "{} programs, {} simulated ranks", world.programs.size(),
                world.simulation.ranks.size());
  std::vector<Trace> traces;
  for (size_t rank = 0; rank < world.programs.size(); ++rank) {
    traces.push_back(
        predicted_trace(run.spec, world.programs[rank], world.simulation.ranks[rank].simulation));
    traces.back().rank = static_cast<int>(rank);
  }
  return traces;
}

std::vector<std::string> rank_names(const PlannedRun& run, const PredictedWorld& world) {
  std::vector<std::string> names;
  names.reserve(world.programs.size());
  const auto stages = static_cast<int64_t>(world.programs.size());
  for (int64_t rank = 0; rank < stages; ++rank) {
    names.push_back(world.whole ? fmt::format("rank {}", rank)
                                : fmt::format("stage {}, {} ranks alike", rank,
                                              run.strategy.parallel.world() / stages));
  }
  return names;
}

std::map<std::string, double> critical_seconds(const PredictedWorld& world) {
  std::map<std::string, double> seconds;
  for (const WorldStep& step : world.simulation.critical_path) {
    const auto rank = static_cast<size_t>(step.rank);
    const auto id = static_cast<size_t>(step.instruction);
    const SimulatedInstruction& ran = world.simulation.ranks[rank].simulation.instructions[id];
    seconds[to_string(world.programs[rank].instructions[id].kind)] += ran.end_s - ran.start_s;
  }
  return seconds;
}

}  // namespace trireme::plan
