// Builds the program of one step: pure, and the only place that decides its order.
#include "trireme/plan/program.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/model/flops.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/offload.h"

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
    case OpKind::kGradNorm:
      return "grad-norm";
    case OpKind::kOptimizerStep:
      return "optimizer-step";
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
    case BufferKind::kDelayed:
      return "delayed";
    case BufferKind::kOptimizerState:
      return "optimizer-state";
  }
  return "?";
}

namespace {

constexpr int kNone = -1;

// Who last wrote a buffer and who has read it since: from this come the dependencies.
struct Access {
  int last_write = kNone;
  std::vector<int> readers;
};

// What a micro-batch's instructions hand to one another.
struct MicroBatch {
  int64_t index = 0;
  int64_t lane = 0;
  bool first_of_lane = false;
  bool last_of_lane = false;
  int batch = kNone;
  std::vector<int> hidden;           // per part
  std::vector<int> hidden_gradient;  // per part
  std::vector<int> saved_input;
  std::vector<int> saved_weight;
  std::vector<int> delayed;
  std::vector<int> weight_gradient;  // of a router: of its weights
};

class Builder {
 public:
  Builder(const model::ModelSpec& spec, const Strategy& strategy)
      : spec_(spec),
        num_parts_(static_cast<int>(spec.parts.size())),
        gradients_(spec.parts.size(),
                   std::vector<int>(static_cast<size_t>(strategy.lanes), kNone)) {
    program_.strategy = strategy;
    has_parameters_.assign(spec.parts.size(), 0);
    for (const model::ParameterSpec& parameter : spec.parameters)
      has_parameters_[static_cast<size_t>(parameter.part)] = 1;
    Strategy& chosen = program_.strategy;
    if (chosen.loss_chunk_rows == 0) chosen.loss_chunk_rows = choose_loss_chunk_rows(spec, chosen);
    chosen.loss_chunk_rows = std::min(chosen.loss_chunk_rows, chosen.micro * chosen.seq_len);
    chosen.recompute.resize(spec.parts.size(), Recompute::kNone);
    for (int part = 0; part < num_parts_; ++part) {
      const model::PartKind kind = spec.parts[static_cast<size_t>(part)].kind;
      if (!recomputes(kind)) chosen.recompute[static_cast<size_t>(part)] = Recompute::kNone;
      flops_.push_back(model::part_flops(spec, part, chosen.seq_len));
      bytes_.push_back(part_bytes(spec, chosen, part, recompute(part)));
    }
    const ResidentBytes resident = resident_bytes(spec, chosen);
    program_.resident_bytes = resident.total();
    program_.host_resident_bytes = resident.host_optimizer_states;
    tokens_ = static_cast<double>(chosen.micro * chosen.seq_len);
  }

  Program build() {
    const Strategy& strategy = program_.strategy;
    const int64_t micro_batches = strategy.micro_batches();
    load(0);
    for (int64_t i = 0; i < micro_batches; ++i) {
      // The host runs one micro-batch ahead.
      if (i + 1 < micro_batches) load(i + 1);
      MicroBatch micro = begin_micro_batch(i);
      for (int part = 0; part + 1 < num_parts_; ++part) forward(micro, part);
      for (int part = num_parts_ - 1; part >= 1; --part) {
        if (spec_.is_head(part)) {
          loss(micro, part);
          continue;
        }
        if (recompute(part) == Recompute::kFull) recompute_forward(micro, part);
        backward_input(micro, part);
        if (has_parameters(part) && !delays(part)) backward_weight(micro, part);
      }
      for (int part = num_parts_ - 1; part >= 1; --part) {
        if (has_parameters(part) && delays(part)) backward_weight(micro, part);
      }
      embedding_backward(micro);
    }
    finish_step();
    free_after_last_use();
    insert_offload(spec_, program_);
    return std::move(program_);
  }

 private:
  /// Parts whose forward can run again from their input.
  static bool recomputes(model::PartKind kind) {
    return kind == model::PartKind::kAttention || kind == model::PartKind::kMlp ||
           kind == model::PartKind::kExperts || kind == model::PartKind::kCombine;
  }

  /// Heads and the input of multi-token prediction write to accumulators that they share (of the embedding, of the head):
  /// they keep their order among them.
  bool delays(int part) const {
    return program_.strategy.delay_weight_gradients && !spec_.is_head(part) &&
           kind(part) != model::PartKind::kMtpInput;
  }

  /// A head whose normed state a module of multi-token prediction reads: its norm runs on the way forward, its loss on the
  /// way back, when that module's gradient is there.
  bool goes_on(int head) const { return head + 1 < num_parts_; }

  model::PartKind kind(int part) const { return spec_.parts[static_cast<size_t>(part)].kind; }

  bool has_parameters(int part) const { return has_parameters_[static_cast<size_t>(part)] != 0; }

  /// The router of a MoE layer's part.
  int router_of(int part) const {
    while (kind(part) != model::PartKind::kRouter) --part;
    return part;
  }

  bool has_shared_expert(int part) const {
    const int layer = spec_.parts[static_cast<size_t>(part)].layer;
    return spec_.layers[static_cast<size_t>(layer)].moe.value().shared_hidden > 0;
  }

  /// What a part's products read for the gradients of its weights is its input, and not what a norm makes of it.
  bool reads_input_for_weights(int part) const {
    const model::PartSpec& where = spec_.parts[static_cast<size_t>(part)];
    if (where.layer < 0) return false;
    const model::LayerSpec& layer = spec_.layers[static_cast<size_t>(where.layer)];
    switch (where.kind) {
      case model::PartKind::kAttention:
        return !layer.attention_norm;
      case model::PartKind::kMlp:
        return !layer.mlp_norm;
      case model::PartKind::kExperts:
        return true;
      default:
        return false;
    }
  }

  Recompute recompute(int part) const {
    return program_.strategy.recompute[static_cast<size_t>(part)];
  }

  int new_buffer(BufferKind kind, int part, int64_t micro_batch, int64_t lane, int64_t bytes) {
    const int id = static_cast<int>(program_.buffers.size());
    program_.buffers.push_back({id, kind, part, micro_batch, lane, bytes, kNone, kNone});
    access_.emplace_back();
    return id;
  }

  Instruction& begin(OpKind kind, int part, int64_t micro_batch, int64_t lane) {
    Instruction instruction;
    instruction.id = static_cast<int>(program_.instructions.size());
    instruction.kind = kind;
    instruction.part = part;
    instruction.micro_batch = micro_batch;
    instruction.lane = lane;
    return program_.instructions.emplace_back(std::move(instruction));
  }

  int current() const { return static_cast<int>(program_.instructions.size()) - 1; }

  void depend(int on) {
    if (on != kNone && on != current()) program_.instructions.back().depends_on.push_back(on);
  }

  void make(int buffer) {
    program_.instructions.back().makes.push_back(buffer);
    program_.buffers[static_cast<size_t>(buffer)].made_by = current();
    access_[static_cast<size_t>(buffer)].last_write = current();
  }

  void read(int buffer) {
    program_.instructions.back().uses.push_back(buffer);
    depend(access_[static_cast<size_t>(buffer)].last_write);
    access_[static_cast<size_t>(buffer)].readers.push_back(current());
  }

  void after_everyone(int buffer) {
    Access& access = access_[static_cast<size_t>(buffer)];
    depend(access.last_write);
    for (const int reader : access.readers) depend(reader);
  }

  void write(int buffer) {
    program_.instructions.back().uses.push_back(buffer);
    after_everyone(buffer);
    access_[static_cast<size_t>(buffer)] = {current(), {}};
  }

  // A buffer is dead after the last instruction that touches it.
  void free_after_last_use() {
    std::vector<int> last(program_.buffers.size(), kNone);
    for (const Instruction& instruction : program_.instructions) {
      for (const auto* buffers : {&instruction.makes, &instruction.uses}) {
        for (const int buffer : *buffers) last[static_cast<size_t>(buffer)] = instruction.id;
      }
    }
    for (Buffer& buffer : program_.buffers) {
      buffer.freed_after = last[static_cast<size_t>(buffer.id)];
      Instruction& freeing = program_.instructions[static_cast<size_t>(buffer.freed_after)];
      freeing.frees.push_back(buffer.id);
      const Access& access = access_[static_cast<size_t>(buffer.id)];
      for (const int reader : access.readers) freeing.depends_on.push_back(reader);
      freeing.depends_on.push_back(access.last_write);
    }
    for (Instruction& instruction : program_.instructions) {
      auto& depends_on = instruction.depends_on;
      std::erase(depends_on, instruction.id);
      std::ranges::sort(depends_on);
      depends_on.erase(std::unique(depends_on.begin(), depends_on.end()), depends_on.end());
    }
  }

  void load(int64_t index) {
    const int64_t lane = index / program_.strategy.micro_batches_per_lane();
    const int buffer =
        new_buffer(BufferKind::kBatch, kNone, index, kNone, batch_bytes(spec_, program_.strategy));
    batches_.push_back(buffer);
    Instruction& instruction = begin(OpKind::kLoadBatch, kNone, index, lane);
    instruction.resource = Resource::kHost;
    // Two batches exist at most: this one takes the place of the one before the last.
    if (index >= 2) {
      after_everyone(batches_[static_cast<size_t>(index - 2)]);
    }
    make(buffer);
  }

  MicroBatch begin_micro_batch(int64_t index) {
    const int64_t per_lane = program_.strategy.micro_batches_per_lane();
    MicroBatch micro;
    micro.index = index;
    micro.lane = index / per_lane;
    micro.first_of_lane = index % per_lane == 0;
    micro.last_of_lane = index % per_lane == per_lane - 1;
    micro.batch = batches_[static_cast<size_t>(index)];
    for (auto* buffers : {&micro.hidden, &micro.hidden_gradient, &micro.saved_input,
                          &micro.saved_weight, &micro.delayed, &micro.weight_gradient}) {
      buffers->assign(spec_.parts.size(), kNone);
    }
    return micro;
  }

  void make_for(MicroBatch& micro, std::vector<int>& slot, int part, BufferKind kind,
                int64_t bytes) {
    slot[static_cast<size_t>(part)] = new_buffer(kind, part, micro.index, kNone, bytes);
    make(slot[static_cast<size_t>(part)]);
  }

  void make_saved(MicroBatch& micro, int part) {
    const PartBytes& bytes = bytes_[static_cast<size_t>(part)];
    if (bytes.saved_input > 0)
      make_for(micro, micro.saved_input, part, BufferKind::kSaved, bytes.saved_input);
    if (bytes.saved_weight > 0)
      make_for(micro, micro.saved_weight, part, BufferKind::kSaved, bytes.saved_weight);
  }

  void forward(MicroBatch& micro, int part) {
    Instruction& instruction = begin(OpKind::kForward, part, micro.index, micro.lane);
    instruction.recompute = recompute(part);
    // Of a head only its norm: the product comes with the loss.
    instruction.flops =
        spec_.is_head(part) ? 0.0 : flops_[static_cast<size_t>(part)].forward * tokens_;
    instruction.workspace_bytes = bytes_[static_cast<size_t>(part)].forward_workspace;
    read_inputs(micro, part);
    read_residual(micro, part);
    make_for(micro, micro.hidden, part, BufferKind::kHidden,
             hidden_bytes(spec_, program_.strategy, part));
    if (part > 0 && recompute(part) != Recompute::kFull) make_saved(micro, part);
  }

  void recompute_forward(MicroBatch& micro, int part) {
    Instruction& instruction = begin(OpKind::kRecompute, part, micro.index, micro.lane);
    instruction.recompute = Recompute::kFull;
    instruction.flops = flops_[static_cast<size_t>(part)].recompute * tokens_;
    instruction.workspace_bytes = bytes_[static_cast<size_t>(part)].recompute_workspace;
    read_inputs(micro, part);
    // The shared expert runs again from the normed state.
    if (kind(part) == model::PartKind::kCombine && has_shared_expert(part))
      read(micro.hidden[static_cast<size_t>(router_of(part))]);
    // Issued when the gradient is there: no earlier, or its memory would be held for nothing.
    depend(
        access_[static_cast<size_t>(micro.hidden_gradient[static_cast<size_t>(part)])].last_write);
    make_saved(micro, part);
  }

  void read_if_made(int buffer) {
    if (buffer != kNone) read(buffer);
  }

  void read_inputs(const MicroBatch& micro, int part) {
    if (part > 0) read(micro.hidden[static_cast<size_t>(part) - 1]);
    switch (kind(part)) {
      case model::PartKind::kEmbedding:  // tokens
      case model::PartKind::kMtpInput:   // tokens further ahead
      case model::PartKind::kAttention:  // positions and the documents' bounds
        read(micro.batch);
        break;
      case model::PartKind::kDispatch:
      case model::PartKind::kExperts:
      case model::PartKind::kCombine:
        read(micro.saved_input[static_cast<size_t>(router_of(part))]);  // the order of rows
        break;
      default:
        break;
    }
  }

  /// Beside what the experts made, combine reads the layer's input (the residual) and the shared expert its norm's
  /// result.
  void read_residual(const MicroBatch& micro, int part) {
    if (kind(part) != model::PartKind::kCombine) return;
    const auto router = static_cast<size_t>(router_of(part));
    read(micro.hidden[router - 1]);
    if (has_shared_expert(part)) read(micro.hidden[router]);
  }

  // The gradient buffer of a part in the micro-batch's lane: made by its first writer.
  void accumulate(const MicroBatch& micro, int part) {
    int& buffer = gradients_[static_cast<size_t>(part)][static_cast<size_t>(micro.lane)];
    if (buffer != kNone) {
      write(buffer);
      return;
    }
    buffer = new_buffer(BufferKind::kParameterGradient, part, kNone, micro.lane,
                        parameter_gradient_bytes(spec_, part));
    make(buffer);
  }

  void loss(MicroBatch& micro, int part) {
    const auto at = static_cast<size_t>(part);
    Instruction& instruction = begin(OpKind::kLoss, part, micro.index, micro.lane);
    instruction.flops = flops_[at].model() * tokens_;
    instruction.workspace_bytes = loss_workspace_bytes(spec_, program_.strategy, !goes_on(part));
    read(micro.hidden[at - 1]);
    read(micro.batch);
    if (goes_on(part)) {
      read(micro.hidden[at]);
      read(micro.saved_input[at]);
      read(micro.hidden_gradient[at]);
    }
    make_for(micro, micro.hidden_gradient, part - 1, BufferKind::kHiddenGradient,
             hidden_bytes(spec_, program_.strategy, part - 1));
    accumulate(micro, part);
    // The weight that all heads share.
    const int owner = spec_.tied_embeddings ? 0 : spec_.head_part();
    if (owner != part) accumulate(micro, owner);
    combine(micro, part);
  }

  void backward_input(MicroBatch& micro, int part) {
    const auto at = static_cast<size_t>(part);
    Instruction& instruction = begin(OpKind::kBackwardInput, part, micro.index, micro.lane);
    instruction.recompute = recompute(part);
    instruction.flops = flops_[at].backward_input * tokens_;
    instruction.workspace_bytes = bytes_[at].backward_input_workspace;
    read(micro.hidden_gradient[at]);
    read_backward_inputs(micro, part);
    read_if_made(micro.saved_input[at]);
    read_if_made(micro.saved_weight[at]);
    make_input_gradients(micro, part);
    if (bytes_[at].delayed > 0)
      make_for(micro, micro.delayed, part, BufferKind::kDelayed, bytes_[at].delayed);
  }

  void read_backward_inputs(const MicroBatch& micro, int part) {
    const auto at = static_cast<size_t>(part);
    switch (kind(part)) {
      case model::PartKind::kDispatch:  // only the order of rows
        read(micro.saved_input[at - 1]);
        break;
      case model::PartKind::kCombine:
        read(micro.saved_input[static_cast<size_t>(router_of(part))]);
        break;
      case model::PartKind::kRouter:
        read_inputs(micro, part);
        read(micro.hidden_gradient[at + 3]);  // of the layer's output: the residual branch
        read(micro.weight_gradient[at]);
        break;
      default:
        read_inputs(micro, part);
    }
  }

  void make_input_gradients(MicroBatch& micro, int part) {
    const auto at = static_cast<size_t>(part);
    const int64_t bytes = hidden_bytes(spec_, program_.strategy, part - 1);
    if (kind(part) == model::PartKind::kDispatch && micro.hidden_gradient[at - 1] != kNone) {
      write(micro.hidden_gradient[at - 1]);  // adds to what the shared expert left
    } else {
      make_for(micro, micro.hidden_gradient, part - 1, BufferKind::kHiddenGradient, bytes);
    }
    const int64_t choices = routed_choices_bytes(spec_, program_.strategy, part);
    if (kind(part) == model::PartKind::kExperts)
      make_for(micro, micro.weight_gradient, router_of(part), BufferKind::kDelayed, choices);
    if (kind(part) == model::PartKind::kCombine && has_shared_expert(part)) {
      const int router = router_of(part);
      make_for(micro, micro.hidden_gradient, router, BufferKind::kHiddenGradient,
               hidden_bytes(spec_, program_.strategy, router));
    }
  }

  void backward_weight(MicroBatch& micro, int part) {
    const auto at = static_cast<size_t>(part);
    Instruction& instruction = begin(OpKind::kBackwardWeight, part, micro.index, micro.lane);
    instruction.recompute = recompute(part);
    instruction.flops = flops_[at].backward_weight * tokens_;
    instruction.workspace_bytes = bytes_[at].backward_weight_workspace;
    // A router's own gradient has become its input's by then.
    if (kind(part) != model::PartKind::kRouter) read(micro.hidden_gradient[at]);
    read_if_made(micro.saved_weight[at]);
    read_if_made(micro.delayed[at]);
    if (reads_input_for_weights(part)) read(micro.hidden[at - 1]);
    if (kind(part) == model::PartKind::kRouter) read(micro.hidden[at]);
    if (kind(part) == model::PartKind::kCombine)
      read(micro.hidden[static_cast<size_t>(router_of(part))]);
    accumulate(micro, part);
    if (kind(part) == model::PartKind::kMtpInput) {
      read(micro.batch);
      accumulate(micro, 0);  // the token table's
    }
    combine(micro, part);
  }

  void embedding_backward(MicroBatch& micro) {
    Instruction& instruction = begin(OpKind::kBackwardWeight, 0, micro.index, micro.lane);
    instruction.flops = flops_[0].backward_weight * tokens_;
    instruction.workspace_bytes = bytes_[0].backward_weight_workspace;
    read(micro.hidden_gradient[0]);
    read(micro.batch);
    accumulate(micro, 0);
    combine(micro, 0);
  }

  // Carries like a binary counter: after lane 0 b...b 1...1 with k trailing ones, k pairs of groups
  // meet.
  void combine(const MicroBatch& micro, int part) {
    if (!micro.last_of_lane) return;
    const int64_t finished = micro.lane + 1;
    for (int64_t size = 1; finished % (2 * size) == 0; size *= 2) {
      const int64_t left = finished - 2 * size;
      const int64_t right = finished - size;
      Instruction& instruction = begin(OpKind::kCombineLanes, part, kNone, left);
      instruction.right_lane = right;
      std::vector<int>& buffers = gradients_[static_cast<size_t>(part)];
      write(buffers[static_cast<size_t>(left)]);
      read(buffers[static_cast<size_t>(right)]);
    }
  }

  void finish_step() {
    begin(OpKind::kGradNorm, kNone, kNone, kNone);
    const int norm = current();
    for (int part = 0; part < num_parts_; ++part) {
      if (has_parameters(part)) read(gradients_[static_cast<size_t>(part)][0]);
    }
    std::vector<int> steps;
    for (int part = 0; part < num_parts_; ++part) {
      if (!has_parameters(part)) continue;
      Instruction& step = begin(OpKind::kOptimizerStep, part, kNone, kNone);
      const std::vector<int64_t>& workspace = program_.strategy.optimizer_workspace_bytes;
      if (!workspace.empty()) step.workspace_bytes = workspace[static_cast<size_t>(part)];
      depend(norm);
      read(gradients_[static_cast<size_t>(part)][0]);
      steps.push_back(current());
    }
    begin(OpKind::kCommit, kNone, kNone, kNone).resource = Resource::kHost;
    for (const int step : steps) depend(step);
  }

  const model::ModelSpec& spec_;
  const int num_parts_;
  std::vector<char> has_parameters_;
  std::vector<std::vector<int>> gradients_;  // [part][lane]: buffer of the lane, then of its group
  std::vector<model::TokenFlops> flops_;
  std::vector<PartBytes> bytes_;
  double tokens_ = 0.0;
  std::vector<int> batches_;
  std::vector<Access> access_;
  Program program_;
};

}  // namespace

Program build_program(const model::ModelSpec& spec, const Strategy& strategy) {
  const std::vector<std::string> reasons = validate(spec, strategy);
  TRIREME_USER_CHECK(reasons.empty(), kConfig, "change the run file as the message says", "{}",
                     reasons.front());
  return Builder(spec, strategy).build();
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

std::string describe(const model::ModelSpec& spec, const Instruction& instruction) {
  std::string text = to_string(instruction.kind);
  if (instruction.part >= 0) text += " " + spec.parts[static_cast<size_t>(instruction.part)].name;
  if (instruction.kind == OpKind::kCombineLanes) {
    text += fmt::format(" lane {} += lane {}", instruction.lane, instruction.right_lane);
  } else if (instruction.micro_batch >= 0) {
    text += fmt::format(" micro-batch {} (lane {})", instruction.micro_batch, instruction.lane);
  }
  return text;
}

}  // namespace trireme::plan
