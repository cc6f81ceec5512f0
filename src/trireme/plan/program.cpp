// Builds the program of one step: pure, and the only place that decides its order.
#include "trireme/plan/program.h"

#include <algorithm>
#include <optional>

#include "trireme/base/error.h"
#include "trireme/plan/absent_lanes.h"
#include "trireme/plan/gradient_sums.h"
#include "trireme/plan/local_spec.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/micro_batch_writer.h"
#include "trireme/plan/offload.h"
#include "trireme/plan/pipeline_writer.h"
#include "trireme/plan/program_limits.h"
#include "trireme/plan/program_writer.h"
#include "trireme/plan/recorded_work.h"
#include "trireme/plan/weight_gathers.h"

namespace trireme::plan {

const char* to_string(OpKind kind) {
  switch (kind) {
    case OpKind::kLoadBatch:
      return "load-batch";
    case OpKind::kForward:
      return "forward";
    case OpKind::kRecompute:
      return "recompute";
    case OpKind::kLoss:
      return "loss";
    case OpKind::kBackwardInput:
      return "backward-input";
    case OpKind::kBackwardWeight:
      return "backward-weight";
    case OpKind::kCombineLanes:
      return "combine-lanes";
    case OpKind::kCountTargets:
      return "count-targets";
    case OpKind::kReduceGradients:
      return "reduce-gradients";
    case OpKind::kCombinePieces:
      return "combine-pieces";
    case OpKind::kGatherGradients:
      return "gather-gradients";
    case OpKind::kSumSquares:
      return "sum-squares";
    case OpKind::kReduceFigures:
      return "reduce-figures";
    case OpKind::kGradNorm:
      return "grad-norm";
    case OpKind::kOptimizerStep:
      return "optimizer-step";
    case OpKind::kGatherParameters:
      return "gather-parameters";
    case OpKind::kReleaseParameters:
      return "release-parameters";
    case OpKind::kExchangeCounts:
      return "exchange-counts";
    case OpKind::kExchangeRows:
      return "exchange-rows";
    case OpKind::kGatherTokens:
      return "gather-tokens";
    case OpKind::kScatterSums:
      return "scatter-sums";
    case OpKind::kGatherRows:
      return "gather-rows";
    case OpKind::kShareGradients:
      return "share-gradients";
    case OpKind::kAddShares:
      return "add-shares";
    case OpKind::kSend:
      return "send";
    case OpKind::kReceive:
      return "receive";
    case OpKind::kExchangeContext:
      return "exchange-context";
    case OpKind::kOffload:
      return "offload";
    case OpKind::kReload:
      return "reload";
    case OpKind::kCommit:
      return "commit";
  }
  return "?";
}

const char* to_string(Resource resource) {
  switch (resource) {
    case Resource::kHost:
      return "host";
    case Resource::kCompute:
      return "compute";
    case Resource::kCopyOut:
      return "copy-out";
    case Resource::kCopyIn:
      return "copy-in";
    case Resource::kCommunication:
      return "communication";
  }
  return "?";
}

const char* to_string(BufferKind kind) {
  switch (kind) {
    case BufferKind::kBatch:
      return "batch";
    case BufferKind::kHidden:
      return "hidden";
    case BufferKind::kSaved:
      return "saved";
    case BufferKind::kHiddenGradient:
      return "hidden-gradient";
    case BufferKind::kParameterGradient:
      return "parameter-gradient";
    case BufferKind::kGradientPieces:
      return "gradient-pieces";
    case BufferKind::kGradientSlice:
      return "gradient-slice";
    case BufferKind::kDelayed:
      return "delayed";
    case BufferKind::kOptimizerState:
      return "optimizer-state";
    case BufferKind::kTokens:
      return "tokens";
    case BufferKind::kSharedGradients:
      return "shared-gradients";
    case BufferKind::kReplicaSlice:
      return "replica-slice";
    case BufferKind::kGatheredWeights:
      return "gathered-weights";
    case BufferKind::kExchangedRows:
      return "exchanged-rows";
    case BufferKind::kExchangedGradient:
      return "exchanged-gradient";
    case BufferKind::kContextKeys:
      return "context-keys";
    case BufferKind::kContextGradients:
      return "context-gradients";
  }
  return "?";
}

Program build_program(const model::ModelSpec& spec, const Strategy& strategy, int rank) {
  const std::vector<std::string> reasons = validate(spec, strategy);
  TRIREME_USER_CHECK(reasons.empty(), kConfig, "change the run file as the message says", "{}",
                     reasons.front());
  const std::vector<std::string> limits = program_limits(spec, strategy);
  TRIREME_USER_CHECK(limits.empty(), kConfig, "change the run file as the message says", "{}",
                     limits.front());
  const cluster::Mesh mesh(mesh_shape(strategy.parallel));
  const auto lanes = lanes_with_absent(strategy, mesh.coordinates(rank).dp, strategy.parallel.dp);
  return build_program(
      spec, strategy, rank,
      pipeline_layout(spec, strategy,
                      static_cast<int64_t>(lanes.size()) * strategy.micro_batches_per_lane()));
}

Program build_program(const model::ModelSpec& whole, const Strategy& strategy, int rank,
                      const PipelineLayout& layout) {
  // A copy for those whose parameters are stretches alone: a search builds many programs.
  std::optional<model::ModelSpec> share;
  if (is_cut(strategy.parallel)) share = local_spec(whole, strategy.parallel, rank);
  const model::ModelSpec& spec = share ? *share : whole;
  ProgramWriter writer;
  Program& program = writer.program();
  program.strategy = strategy;
  const cluster::Mesh mesh(mesh_shape(strategy.parallel));
  const cluster::Coordinates where = mesh.coordinates(rank);
  program.has_part = layout.parts_of(where.pp);
  program.stages = layout.ranked_stages();
  GradientSums sums(spec, writer, rank);
  MicroBatchWriter micro_batches(spec, writer, sums);
  const ResidentBytes resident = resident_bytes(spec, program.strategy, program);
  program.resident_bytes = resident.total();
  program.host_resident_bytes = resident.host_optimizer_states;

  sums.gather_weights();
  micro_batches.load(program.micro_batches().front());
  micro_batches.count_first(sums.count_targets());
  PipelineWriter(spec, layout, where.pp, sums.pipeline_group(), writer, micro_batches, sums)
      .write();
  sums.finish_step();
  writer.free_after_last_use();
  insert_weight_gathers(spec, program, sums.owner_groups());
  remove_absent_lanes(program);
  insert_offload(spec, program);
  if (strategy.record) hold_recorded_work(spec, program);
  return std::move(program);
}

cluster::LaneRange Program::block_lanes() const {
  const int64_t count = strategy.leaves() * strategy.parallel.sharing() / strategy.parallel.dp;
  return {replica * count, (replica + 1) * count};
}

int Program::pipeline_rank_of(int part) const {
  for (const PipelineStage& stage : stages) {
    if (part >= stage.first_part && part < stage.end_part) return stage.rank;
  }
  return 0;
}

std::vector<int64_t> Program::micro_batches() const {
  const int64_t per_lane = strategy.micro_batches_per_lane();
  std::vector<int64_t> all;
  for (const int64_t leaf : lanes) {
    for (int64_t i = 0; i < per_lane; ++i)
      all.push_back(leaf / strategy.parallel.cp * per_lane + i);
  }
  return all;
}

std::vector<std::vector<ExpertSource>> Program::exchanged_micro_batches() const {
  const auto ranks = static_cast<size_t>(strategy.parallel.ep);
  const int64_t per_lane = strategy.micro_batches_per_lane();
  std::vector<std::vector<ExpertSource>> all;
  // Lanes of the ranks take turns.
  for (size_t round = 0; round < expert_lanes.size(); round += ranks) {
    for (int64_t i = 0; i < per_lane; ++i) {
      std::vector<ExpertSource>& at_once = all.emplace_back();
      for (size_t source = 0; source < ranks; ++source) {
        const int64_t leaf = expert_lanes[round + source];
        at_once.push_back({leaf, leaf / strategy.parallel.cp * per_lane + i});
      }
    }
  }
  return all;
}

size_t Program::expert_source() const {
  return static_cast<size_t>(std::ranges::find(expert_lanes, lanes.front()) - expert_lanes.begin());
}

bool runs_on(const Program& program, const Instruction& copy) {
  return copy.kind == OpKind::kOffload && !copy.moves.empty() &&
         std::ranges::all_of(copy.moves, [&](int id) {
           return program.buffers[static_cast<size_t>(id)].released_before < 0;
         });
}

std::vector<int> parts_carried_in(const Program& program) {
  std::vector<int> parts;
  for (const Buffer& buffer : program.buffers) {
    if (buffer.is_carried_in()) parts.push_back(buffer.part);
  }
  std::ranges::sort(parts);
  return parts;
}

int product_phases(const model::ModelSpec& spec, const Strategy& strategy, int part) {
  const Parallel& parallel = strategy.parallel;
  if (parallel.cp == 1 || spec.parts[static_cast<size_t>(part)].kind != model::PartKind::kAttention)
    return 1;
  return parallel.cp_kind == ContextKind::kRing ? static_cast<int>(parallel.cp) + 1 : 2;
}

std::string describe(const model::ModelSpec& spec, const Instruction& instruction) {
  std::string text = to_string(instruction.kind);
  if (instruction.part >= 0) text += " " + spec.parts[static_cast<size_t>(instruction.part)].name;
  if (instruction.kind == OpKind::kCombineLanes) {
    text += fmt::format(" lane {} += lane {}", instruction.lane, instruction.right_lane);
  } else if (instruction.micro_batch >= 0) {
    text += fmt::format(" micro-batch {} (lane {})", instruction.micro_batch, instruction.lane);
  }
  if (instruction.phase > 0) text += fmt::format(", phase {}", instruction.phase);
  if (instruction.of_gradient) text += ", gradient";
  return text;
}

}  // namespace trireme::plan
