#include "trireme/plan/explain_layout.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "trireme/plan/held_memory.h"
#include "trireme/plan/pipeline_writer.h"
#include "trireme/plan/simulate_world.h"

namespace trireme::plan {

namespace {

struct Traffic {
  double bytes = 0.0;
  int transfers = 0;
};

struct Stage {
  int number = 0;
  std::vector<int> ranks;
  int first_part = 0;
  int last_part = 0;
  int64_t parameters = 0;
  int64_t resident_bytes = 0;  ///< of one of its ranks, with its other stages
};

struct Layout {
  std::vector<Stage> stages;
  std::vector<std::pair<cluster::Dimension, std::vector<std::vector<int>>>> groups;
  std::map<OpKind, Traffic> sent;  ///< the most of a rank
};

Layout layout_of(const model::ModelSpec& spec, const Strategy& strategy) {
  Layout layout;
  const cluster::Mesh mesh(mesh_shape(strategy.parallel));
  const auto lanes = static_cast<int64_t>(lanes_of(strategy, 0, strategy.parallel.dp).size());
  const PipelineLayout pipeline =
      pipeline_layout(spec, strategy, lanes * strategy.micro_batches_per_lane());
  std::vector<int64_t> resident;
  for (int pp = 0; pp < mesh.shape().pp; ++pp) {
    const Program program =
        build_program(spec, strategy, mesh.rank(cluster::Coordinates{.pp = pp}));
    resident.push_back(program.resident_bytes);
    std::map<OpKind, Traffic> sent;
    for (const Instruction& instruction : program.instructions) {
      if (instruction.resource != Resource::kCommunication) continue;
      const double bytes = transfer_bytes(spec, program, instruction).sent;
      if (bytes == 0.0) continue;
      sent[instruction.kind].bytes += bytes;
      ++sent[instruction.kind].transfers;
    }
    for (const auto& [kind, traffic] : sent) {
      if (traffic.bytes > layout.sent[kind].bytes) layout.sent[kind] = traffic;
    }
  }
  for (int number = 0; number < pipeline.stages.count(); ++number) {
    Stage stage;
    stage.number = number;
    const int pp = pipeline.schedule.rank_of_stage[static_cast<size_t>(number)];
    stage.ranks = mesh.group(cluster::Dimension::kStage, mesh.rank(cluster::Coordinates{.pp = pp}));
    stage.first_part = pipeline.stages.begin[static_cast<size_t>(number)];
    stage.last_part = pipeline.stages.begin[static_cast<size_t>(number) + 1] - 1;
    for (const model::ParameterSpec& parameter : spec.parameters) {
      if (pipeline.stages.of_part(parameter.part) == number) stage.parameters += parameter.numel();
    }
    stage.resident_bytes = resident[static_cast<size_t>(pp)];
    layout.stages.push_back(stage);
  }
  for (const cluster::Dimension dimension :
       {cluster::Dimension::kTensor, cluster::Dimension::kContext, cluster::Dimension::kData,
        cluster::Dimension::kPipeline, cluster::Dimension::kExpert,
        cluster::Dimension::kExpertTensor}) {
    if (mesh.group_size(dimension) > 1)
      layout.groups.emplace_back(dimension, mesh.groups(dimension));
  }
  for (const cluster::Dimension dimension :
       {cluster::Dimension::kShard, cluster::Dimension::kReplicate}) {
    if (strategy.parallel.shard > 0 && mesh.group_size(dimension) > 1)
      layout.groups.emplace_back(dimension, mesh.groups(dimension));
  }
  return layout;
}

const std::string& part_name(const model::ModelSpec& spec, int part) {
  return spec.parts[static_cast<size_t>(part)].name;
}

// "0-3", or "0, 2, 4".
std::string ranks_text(const std::vector<int>& ranks) {
  if (ranks.size() > 2 && ranks.back() - ranks.front() + 1 == static_cast<int>(ranks.size()))
    return fmt::format("{}-{}", ranks.front(), ranks.back());
  return fmt::format("{}", fmt::join(ranks, ", "));
}

}  // namespace

std::string explain_layout(const model::ModelSpec& spec, const Strategy& strategy) {
  if (strategy.parallel.world() == 1) return "";
  const Layout layout = layout_of(spec, strategy);
  std::string text =
      fmt::format("layout: {} ranks, {}\n", strategy.parallel.world(), describe(strategy.parallel));
  for (const Stage& stage : layout.stages) {
    const std::string parts = stage.first_part == stage.last_part
                                  ? part_name(spec, stage.first_part)
                                  : fmt::format("{} to {}", part_name(spec, stage.first_part),
                                                part_name(spec, stage.last_part));
    text += fmt::format("  stage {:>3}  ranks {:<12} {:<44}{:>14} parameters\n", stage.number,
                        ranks_text(stage.ranks), parts, stage.parameters);
  }
  int64_t least = layout.stages.front().resident_bytes;
  int64_t most = least;
  for (const Stage& stage : layout.stages) {
    least = std::min(least, stage.resident_bytes);
    most = std::max(most, stage.resident_bytes);
  }
  text += least == most ? fmt::format("  every rank holds {} between steps\n", memory_text(most))
                        : fmt::format("  a rank holds {} to {} between steps\n", memory_text(least),
                                      memory_text(most));
  constexpr size_t kShown = 8;
  for (const auto& [dimension, groups] : layout.groups) {
    std::vector<std::string> shown;
    for (size_t i = 0; i < std::min(groups.size(), kShown); ++i)
      shown.push_back(fmt::format("{{{}}}", ranks_text(groups[i])));
    if (groups.size() > kShown) shown.emplace_back("...");
    text += fmt::format("  {:<14}{} x {}: {}\n", cluster::to_string(dimension), groups.size(),
                        groups.front().size(), fmt::join(shown, " "));
  }
  for (const auto& [kind, traffic] : layout.sent)
    text += fmt::format("  a rank sends {:>10} a step in {:>5} x {}\n",
                        memory_text(static_cast<int64_t>(traffic.bytes)), traffic.transfers,
                        to_string(kind));
  return text;
}

OrderedJson layout_json(const model::ModelSpec& spec, const Strategy& strategy) {
  const Layout layout = layout_of(spec, strategy);
  OrderedJson json = {{"ranks", strategy.parallel.world()}};
  json["stages"] = OrderedJson::array();
  for (const Stage& stage : layout.stages) {
    OrderedJson parts = OrderedJson::array();
    for (int part = stage.first_part; part <= stage.last_part; ++part)
      parts.push_back(part_name(spec, part));
    json["stages"].push_back({{"stage", stage.number},
                              {"ranks", stage.ranks},
                              {"parts", parts},
                              {"parameters", stage.parameters}});
  }
  json["groups"] = OrderedJson::object();
  for (const auto& [dimension, groups] : layout.groups)
    json["groups"][cluster::to_string(dimension)] = groups;
  json["sent"] = OrderedJson::object();
  for (const auto& [kind, traffic] : layout.sent)
    json["sent"][to_string(kind)] = {{"bytes", traffic.bytes}, {"transfers", traffic.transfers}};
  return json;
}

}  // namespace trireme::plan
