#include "trireme/plan/fold.h"

#include <algorithm>
#include <map>

#include "trireme/base/error.h"
#include "trireme/plan/insertions.h"
#include "trireme/plan/pipeline_writer.h"
#include "trireme/plan/stages.h"

namespace trireme::plan {

namespace {

bool is_backward(OpKind kind) {
  return kind == OpKind::kBackwardInput || kind == OpKind::kBackwardWeight || kind == OpKind::kLoss;
}

// Of the replica's ranks, as they are numbered in the folded world.
void keep_members(Program& program, int dp) {
  for (std::vector<int>& group : program.groups) {
    std::vector<int> kept;
    for (const int rank : group) {
      if (rank % dp == 0) kept.push_back(rank / dp);
    }
    group = std::move(kept);
  }
  program.rank /= dp;
}

// In the order of `order`, old ids.
void reorder(Program& program, const std::vector<int>& order) {
  std::vector<int> id_of(order.size());
  std::vector<Instruction> all;
  all.reserve(order.size());
  for (const int id : order) {
    id_of[static_cast<size_t>(id)] = static_cast<int>(all.size());
    all.push_back(std::move(program.instructions[static_cast<size_t>(id)]));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].id = static_cast<int>(i);
    for (int& id : all[i].depends_on) id = id_of[static_cast<size_t>(id)];
    std::ranges::sort(all[i].depends_on);
  }
  for (Buffer& buffer : program.buffers) {
    for (int* id : {&buffer.made_by, &buffer.freed_after}) {
      if (*id >= 0) *id = id_of[static_cast<size_t>(*id)];
    }
  }
  program.instructions = std::move(all);
}

// The balanced cut as numbers of layers: found once, and not by every rank.
std::vector<int64_t> cut_layers(const model::ModelSpec& spec, const Strategy& strategy) {
  if (strategy.parallel.stages() + 1 > static_cast<int64_t>(stage_units(spec).size()))
    return {};  // build_program() says so
  return layers_of_stages(spec, cut_stages(spec, static_cast<int>(strategy.parallel.stages()),
                                           strategy.seq_len, recomputed_parts(spec, strategy)));
}

}  // namespace

int64_t rank_micro_batches(const Strategy& strategy) {
  const int64_t a_step = strategy.micro * strategy.parallel.dp;
  TRIREME_USER_CHECK(a_step > 0 && strategy.sequences % a_step == 0 && strategy.sequences > 0,
                     kConfig, "change one of them",
                     "a global batch of {} sequences is not a multiple of micro x dp = {} x {}",
                     strategy.sequences, strategy.micro, strategy.parallel.dp);
  return strategy.sequences / a_step;
}

std::vector<int64_t> sample_micro_batches(const Strategy& strategy) {
  const int64_t all = rank_micro_batches(strategy);
  const int64_t pp = strategy.parallel.pp;
  // A pipeline is in its rhythm after it has been filled; an interleaved one goes round in groups of pp.
  const bool rounds = strategy.parallel.chunks > 1;
  const int64_t first = rounds ? 2 * pp + all % pp : pp + 1;
  const int64_t second = rounds ? first + pp : pp + 2;
  if (all <= second) return {all};
  return {first, second};
}

FoldedWorld fold(const model::ModelSpec& spec, const Strategy& strategy, int64_t micro_batches) {
  FoldedWorld world;
  world.micro_batches = micro_batches;
  Strategy folded = strategy;
  Parallel& parallel = folded.parallel;
  const int64_t sharing = parallel.dp * parallel.cp;
  parallel = {};
  parallel.dp = sharing > 1 ? 2 : 1;
  parallel.zero = sharing > 1 ? std::min<int64_t>(strategy.parallel.zero, 2) : 0;
  parallel.pp = strategy.parallel.pp;
  parallel.schedule = strategy.parallel.schedule;
  parallel.schedule_file = strategy.parallel.schedule_file;
  parallel.schedule_text = strategy.parallel.schedule_text;
  parallel.chunks = strategy.parallel.chunks;
  folded.lanes = parallel.dp;
  folded.sequences = strategy.micro * micro_batches * parallel.dp;
  folded.loss_chunk_rows = 0;
  if (parallel.pp > 1 && folded.stage_layers.empty())
    folded.stage_layers = cut_layers(spec, folded);
  const auto dp = static_cast<int>(parallel.dp);
  const std::vector<std::string> reasons = validate(spec, folded);
  TRIREME_USER_CHECK(reasons.empty(), kConfig, "change the run file as the message says", "{}",
                     reasons.front());
  const PipelineLayout layout = pipeline_layout(spec, folded, micro_batches);
  for (int stage = 0; stage < static_cast<int>(parallel.pp); ++stage) {
    world.programs.push_back(build_program(spec, folded, stage * dp, layout));
    keep_members(world.programs.back(), dp);
  }
  return world;
}

void wait_for_gathers(Program& program) {
  int last = -1;
  for (Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kGatherParameters) last = instruction.id;
    if (instruction.resource != Resource::kCompute) continue;
    if (last >= 0) instruction.depends_on.push_back(last);
    std::ranges::sort(instruction.depends_on);
    return;
  }
}

void postpone_reductions(Program& program) {
  int last = -1;
  for (const Instruction& instruction : program.instructions) {
    if (is_backward(instruction.kind)) last = instruction.id;
  }
  const auto postponed = [&](const Instruction& instruction) {
    return instruction.id < last && (instruction.kind == OpKind::kReduceGradients ||
                                     instruction.kind == OpKind::kCombinePieces ||
                                     instruction.kind == OpKind::kGatherGradients);
  };
  std::vector<int> order;
  std::vector<int> later;
  for (const Instruction& instruction : program.instructions) {
    (postponed(instruction) ? later : order).push_back(instruction.id);
    if (instruction.id == last) order.insert(order.end(), later.begin(), later.end());
  }
  if (later.empty() && last < 0) return;
  // A message that is received once what is computed by then is done does not wait for sums that come later now.
  int before = -1;
  for (Instruction& instruction : program.instructions) {
    if (postponed(instruction)) continue;
    if (instruction.id < last) {
      for (int& id : instruction.depends_on) {
        if (postponed(program.instructions[static_cast<size_t>(id)])) id = before;
      }
      std::erase(instruction.depends_on, -1);
    }
    if (instruction.resource == Resource::kCompute) before = instruction.id;
  }
  reorder(program, order);
  // The first one waits for all computation, and so do the others, in their queue.
  int compute = -1;
  for (Instruction& instruction : program.instructions) {
    if (is_backward(instruction.kind)) compute = instruction.id;
    if (instruction.kind == OpKind::kReduceGradients && compute >= 0) {
      instruction.depends_on.push_back(compute);
      std::ranges::sort(instruction.depends_on);
    }
  }
}

void sum_in_transfers(Program& program) {
  for (Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kCombinePieces) instruction.resource = Resource::kHost;
  }
}

void gather_every_part(const model::ModelSpec& spec, Program& program) {
  int group = -1;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.kind == OpKind::kReduceGradients) group = instruction.group;
  }
  if (group < 0) return;
  // Parameters have a queue of their own: the same members once more, alike on every rank.
  const int gathers = group + static_cast<int>(program.groups.size());
  const std::vector<std::vector<int>> groups = program.groups;
  program.groups.insert(program.groups.end(), groups.begin(), groups.end());
  std::vector<char> has_parameters(spec.parts.size(), 0);
  for (const model::ParameterSpec& parameter : spec.parameters)
    has_parameters[static_cast<size_t>(parameter.part)] = 1;
  std::vector<Insertion> insertions;
  // Parameters of a part come while the part before it is computed, not earlier: they would take its place in memory.
  int before_last = -1;
  int last = -1;
  int gathered_part = -1;
  bool gathered_forward = false;
  const int64_t final_micro_batch = program.micro_batches().back();
  for (Instruction& instruction : program.instructions) {
    const bool forward = instruction.kind == OpKind::kForward;
    const bool uses_weights =
        forward || instruction.kind == OpKind::kRecompute || is_backward(instruction.kind);
    if (!uses_weights || instruction.part < 0 ||
        has_parameters[static_cast<size_t>(instruction.part)] == 0)
      continue;
    if (instruction.part != gathered_part || forward != gathered_forward) {
      Insertion insertion;
      insertion.before = instruction.id;
      insertion.instruction.kind = OpKind::kGatherParameters;
      insertion.instruction.resource = Resource::kCommunication;
      insertion.instruction.group = gathers;
      insertion.instruction.part = instruction.part;
      insertion.instruction.micro_batch = instruction.micro_batch;
      if (before_last >= 0) insertion.instruction.depends_on = {before_last};
      instruction.depends_on.push_back(id_of_insertion(insertions.size()));
      insertions.push_back(std::move(insertion));
      before_last = last;
      gathered_part = instruction.part;
      gathered_forward = forward;
    }
    last = instruction.id;
    const bool ends =
        instruction.kind == OpKind::kBackwardWeight || instruction.kind == OpKind::kLoss;
    if (!ends || instruction.micro_batch == final_micro_batch) continue;
    // Every micro-batch's gradients are reduced; the builder reduces those of the last one.
    Insertion insertion;
    insertion.before = instruction.id + 1;
    insertion.instruction.kind = OpKind::kReduceGradients;
    insertion.instruction.resource = Resource::kCommunication;
    insertion.instruction.group = group;
    insertion.instruction.part = instruction.part;
    insertion.instruction.depends_on = {instruction.id};
    insertions.push_back(std::move(insertion));
  }
  insert_all(program, std::move(insertions));
}

}  // namespace trireme::plan
