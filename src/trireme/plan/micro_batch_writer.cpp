#include "trireme/plan/micro_batch_writer.h"

#include <algorithm>

namespace trireme::plan {

namespace {

/// Parts whose forward can run again from their input.
bool recomputes(model::PartKind kind) {
  return kind == model::PartKind::kAttention || kind == model::PartKind::kMlp ||
         kind == model::PartKind::kExperts || kind == model::PartKind::kCombine;
}

}  // namespace

MicroBatchWriter::MicroBatchWriter(const model::ModelSpec& spec, ProgramWriter& writer,
                                   GradientSums& sums)
    : spec_(spec),
      writer_(writer),
      sums_(sums),
      strategy_(writer.program().strategy),
      num_parts_(static_cast<int>(spec.parts.size())) {
  if (strategy_.loss_chunk_rows == 0)
    strategy_.loss_chunk_rows = choose_loss_chunk_rows(spec, strategy_);
  strategy_.loss_chunk_rows = std::min(strategy_.loss_chunk_rows, strategy_.tokens());
  strategy_.recompute.resize(spec.parts.size(), Recompute::kNone);
  for (int part = 0; part < num_parts_; ++part) {
    if (!recomputes(kind(part))) strategy_.recompute[static_cast<size_t>(part)] = Recompute::kNone;
    const bool mine = writer.program().has(part);
    flops_.push_back(mine ? model::part_flops(spec, part, strategy_.seq_len) : model::TokenFlops{});
    bytes_.push_back(mine ? part_bytes(spec, strategy_, part, recompute(part)) : PartBytes{});
  }
  tokens_ = static_cast<double>(strategy_.tokens());
  at_once_ = writer.program().exchanged_micro_batches();
  if (spec.tensor.is_cut()) {
    tensor_ = std::make_unique<TensorWriter>(spec, writer, sums);
  } else if (strategy_.parallel.cp > 1) {
    context_ = std::make_unique<ContextWriter>(spec, writer, sums);
  }
}

bool MicroBatchWriter::delays(int part) const {
  return strategy_.delay_weight_gradients && !spec_.is_head(part) && part > 0 &&
         kind(part) != model::PartKind::kMtpInput;
}

/// A head whose normed state a module of multi-token prediction reads: its norm runs on the way forward, its loss on the
/// way back, when that module's gradient is there.
bool MicroBatchWriter::goes_on(int head) const {
  return head + 1 < num_parts_;
}

/// The router of a MoE layer's part.
int MicroBatchWriter::router_of(int part) const {
  while (kind(part) != model::PartKind::kRouter) --part;
  return part;
}

bool MicroBatchWriter::has_shared_expert(int part) const {
  const int layer = spec_.parts[static_cast<size_t>(part)].layer;
  return spec_.layers[static_cast<size_t>(layer)].moe.value().shared_hidden > 0;
}

/// What a part's products read for the gradients of its weights is its input, and not what a norm makes of it.
bool MicroBatchWriter::reads_input_for_weights(int part) const {
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

void MicroBatchWriter::backward_input(MicroBatch& micro, int part, bool with_weight) {
  if (tensor_) {
    if (spec_.is_head(part)) {
      tensor_->loss(micro, part, counted_);
    } else {
      tensor_->backward_input(micro, part, with_weight);
    }
    return;
  }
  if (spec_.is_head(part)) {
    loss(micro, part);
    return;
  }
  if (spreads(part)) {
    backward_input_experts(micro, part);
    return;
  }
  if (context_) context_->bring_keys_ahead(micro, part - 1);
  if (shares_sequences(part)) {
    context_->backward_input(micro, part, context_edges(micro, part));
    return;
  }
  if (recompute(part) == Recompute::kFull) recompute_forward(micro, part);
  gradient_of_input(micro, part);
  if (follows_spread(part)) exchange_rows(micro, part - 1, 1, true);
}

bool MicroBatchWriter::parts_take_turns() const {
  const Parallel& parallel = strategy_.parallel;
  return strategy_.in_turn > 1 && tensor_ != nullptr && parallel.pp == 1;
}

void MicroBatchWriter::forward_in_turn(Pair pair, std::optional<Pair> backward) {
  if (backward) {
    tensor_->both_in_turn(*pair.first, *pair.second, *backward->first, *backward->second);
  } else {
    tensor_->forward_in_turn(*pair.first, *pair.second);
  }
  tensor_->loss(*pair.first, num_parts_ - 1, counted_);
  tensor_->loss(*pair.second, num_parts_ - 1, counted_);
}

void MicroBatchWriter::backward_in_turn(Pair pair) {
  tensor_->backward_in_turn(*pair.first, *pair.second);
}

void MicroBatchWriter::load(int64_t index) {
  const int64_t lane = writer_.program().leaf_of(index);
  const int buffer =
      writer_.new_buffer(BufferKind::kBatch, kNone, index, kNone, batch_bytes(spec_, strategy_));
  batches_[index] = buffer;
  order_.push_back(index);
  Instruction& instruction = writer_.begin(OpKind::kLoadBatch, kNone, index, lane);
  instruction.resource = Resource::kHost;
  // Two batches exist at most: this one takes the place of the one before the last.
  if (order_.size() > 2) writer_.after_everyone(batches_.at(order_[order_.size() - 3]));
  writer_.make(buffer);
}

MicroBatch MicroBatchWriter::begin(int64_t index) const {
  const int64_t per_lane = strategy_.micro_batches_per_lane();
  const auto numbered = [&](int64_t number, int64_t leaf) {
    MicroBatch micro;
    micro.index = number;
    micro.lane = leaf;
    micro.last_of_lane = number % per_lane == per_lane - 1;
    for (auto* buffers : {&micro.hidden, &micro.hidden_gradient, &micro.saved_input,
                          &micro.saved_weight, &micro.delayed, &micro.weight_gradient}) {
      buffers->assign(spec_.parts.size(), kNone);
    }
    return micro;
  };
  MicroBatch micro = numbered(index, writer_.program().leaf_of(index));
  micro.batch = batches_.at(index);
  const size_t source = writer_.program().expert_source();
  for (const std::vector<ExpertSource>& sources : at_once_) {
    if (sources.at(source).micro_batch != index) continue;
    for (const ExpertSource& one : sources)
      micro.sources.push_back(numbered(one.micro_batch, one.leaf));
  }
  return micro;
}

void MicroBatchWriter::make_for(MicroBatch& micro, std::vector<int>& slot, int part,
                                BufferKind kind, int64_t bytes) {
  slot[static_cast<size_t>(part)] = writer_.new_buffer(kind, part, micro.index, kNone, bytes);
  writer_.make(slot[static_cast<size_t>(part)]);
}

void MicroBatchWriter::make_saved(MicroBatch& micro, int part) {
  const PartBytes& bytes = bytes_[static_cast<size_t>(part)];
  if (bytes.saved_input > 0)
    make_for(micro, micro.saved_input, part, BufferKind::kSaved, bytes.saved_input);
  if (bytes.saved_weight > 0)
    make_for(micro, micro.saved_weight, part, BufferKind::kSaved, bytes.saved_weight);
}

void MicroBatchWriter::forward(MicroBatch& micro, int part) {
  if (tensor_) {
    tensor_->forward(micro, part);
    return;
  }
  if (spreads(part)) {
    forward_experts(micro, part);
    return;
  }
  if (shares_sequences(part)) {
    context_->forward(micro, part, context_edges(micro, part));
    return;
  }
  Instruction& instruction = writer_.begin(OpKind::kForward, part, micro.index, micro.lane);
  writer_.depend(sums_.take_gather(part));
  instruction.recompute = recompute(part);
  // Of a head only its norm: the product comes with the loss.
  instruction.flops =
      spec_.is_head(part) ? 0.0 : flops_[static_cast<size_t>(part)].forward * tokens_;
  instruction.workspace_bytes = bytes_[static_cast<size_t>(part)].forward_workspace;
  read_inputs(micro, part);
  read_residual(micro, part);
  const int64_t weights = precedes_spread(part) ? row_weights_bytes(spec_, strategy_, part) : 0;
  make_for(micro, micro.hidden, part, BufferKind::kHidden,
           hidden_bytes(spec_, strategy_, part) + weights);
  if (part > 0 && recompute(part) != Recompute::kFull) make_saved(micro, part);
  if (kind(part) == model::PartKind::kRouter && spreads(part + 2)) exchange_counts(micro, part);
  if (precedes_spread(part)) exchange_rows(micro, part + 1, 1, false);
}

ContextEdges MicroBatchWriter::context_edges(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  ContextEdges edges;
  edges.begin_forward = [this, &micro, part] { read_inputs(micro, part); };
  edges.end_forward = [this, &micro, part] {
    read_inputs(micro, part);  // the residual
    make_for(micro, micro.hidden, part, BufferKind::kHidden, hidden_bytes(spec_, strategy_, part));
  };
  edges.begin_recompute = [this, &micro, part, at] {
    read_inputs(micro, part);
    // Issued when the gradient is there: no earlier, or its memory would be held for nothing.
    writer_.depend(writer_.last_write(micro.hidden_gradient[at]));
  };
  edges.begin_backward = [this, &micro, at] { writer_.read(micro.hidden_gradient[at]); };
  edges.end_backward = [this, &micro, part, at] {
    writer_.read(micro.hidden_gradient[at]);  // the residual branch
    read_inputs(micro, part);
    make_input_gradients(micro, part);
  };
  return edges;
}

void MicroBatchWriter::recompute_forward(MicroBatch& micro, int part) {
  Instruction& instruction = writer_.begin(OpKind::kRecompute, part, micro.index, micro.lane);
  instruction.recompute = Recompute::kFull;
  instruction.flops = flops_[static_cast<size_t>(part)].recompute * tokens_;
  instruction.workspace_bytes = bytes_[static_cast<size_t>(part)].recompute_workspace;
  read_inputs(micro, part);
  // The shared expert runs again from the normed state.
  if (kind(part) == model::PartKind::kCombine && has_shared_expert(part))
    writer_.read(micro.hidden[static_cast<size_t>(router_of(part))]);
  // Issued when the gradient is there: no earlier, or its memory would be held for nothing.
  writer_.depend(writer_.last_write(micro.hidden_gradient[static_cast<size_t>(part)]));
  make_saved(micro, part);
}

void MicroBatchWriter::read_inputs(const MicroBatch& micro, int part) {
  if (part > 0) read_exchanged(micro.hidden[static_cast<size_t>(part) - 1]);
  switch (kind(part)) {
    case model::PartKind::kEmbedding:  // tokens
    case model::PartKind::kMtpInput:   // tokens further ahead
    case model::PartKind::kAttention:  // positions and the documents' bounds
      writer_.read(micro.batch);
      break;
    case model::PartKind::kDispatch:
    case model::PartKind::kExperts:
    case model::PartKind::kCombine:
      writer_.read(micro.saved_input[static_cast<size_t>(router_of(part))]);  // the order of rows
      break;
    default:
      break;
  }
}

/// Beside what the experts made, combine reads the layer's input (the residual) and the shared expert its norm's
/// result.
void MicroBatchWriter::read_residual(const MicroBatch& micro, int part) {
  if (kind(part) != model::PartKind::kCombine) return;
  const auto router = static_cast<size_t>(router_of(part));
  writer_.read(micro.hidden[router - 1]);
  if (has_shared_expert(part)) writer_.read(micro.hidden[router]);
}

void MicroBatchWriter::loss(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  Instruction& instruction = writer_.begin(OpKind::kLoss, part, micro.index, micro.lane);
  writer_.depend(counted_);
  writer_.depend(sums_.take_gather(part));
  instruction.flops = flops_[at].model() * tokens_;
  instruction.workspace_bytes = loss_workspace_bytes(spec_, strategy_, !goes_on(part));
  writer_.read(micro.hidden[at - 1]);
  writer_.read(micro.batch);
  if (goes_on(part)) {
    writer_.read(micro.hidden[at]);
    writer_.read(micro.saved_input[at]);
    writer_.read(micro.hidden_gradient[at]);
  }
  make_for(micro, micro.hidden_gradient, part - 1, BufferKind::kHiddenGradient,
           hidden_bytes(spec_, strategy_, part - 1));
  sums_.accumulate(micro.lane, part);
  // The weight that all heads share.
  const int owner = spec_.tied_embeddings ? 0 : spec_.head_part();
  if (owner != part) sums_.accumulate(micro.lane, owner);
  if (micro.last_of_lane) sums_.lane_done(part, micro.lane);
}

void MicroBatchWriter::gradient_of_input(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  Instruction& instruction = writer_.begin(OpKind::kBackwardInput, part, micro.index, micro.lane);
  instruction.recompute = recompute(part);
  instruction.flops = flops_[at].backward_input * tokens_;
  instruction.workspace_bytes = bytes_[at].backward_input_workspace;
  read_exchanged(micro.hidden_gradient[at]);
  read_backward_inputs(micro, part);
  writer_.read_if_made(micro.saved_input[at]);
  writer_.read_if_made(micro.saved_weight[at]);
  make_input_gradients(micro, part);
  if (bytes_[at].delayed > 0)
    make_for(micro, micro.delayed, part, BufferKind::kDelayed, bytes_[at].delayed);
}

void MicroBatchWriter::read_backward_inputs(const MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  switch (kind(part)) {
    case model::PartKind::kDispatch:  // only the order of rows
      writer_.read(micro.saved_input[at - 1]);
      break;
    case model::PartKind::kCombine:
      writer_.read(micro.saved_input[static_cast<size_t>(router_of(part))]);
      break;
    case model::PartKind::kRouter:
      read_inputs(micro, part);
      writer_.read(micro.hidden_gradient[at + 3]);  // of the layer's output: the residual branch
      writer_.read(micro.weight_gradient[at]);
      break;
    default:
      read_inputs(micro, part);
  }
}

void MicroBatchWriter::make_input_gradients(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const int64_t bytes = hidden_bytes(spec_, strategy_, part - 1);
  if (kind(part) == model::PartKind::kDispatch && micro.hidden_gradient[at - 1] != kNone) {
    writer_.write(micro.hidden_gradient[at - 1]);  // adds to what the shared expert left
  } else {
    make_for(micro, micro.hidden_gradient, part - 1, BufferKind::kHiddenGradient, bytes);
  }
  const int64_t choices = routed_choices_bytes(spec_, strategy_, part);
  // Where experts are spread, their weights' gradients come back with the rows'.
  if (kind(part) == model::PartKind::kExperts || precedes_spread(part))
    make_for(micro, micro.weight_gradient, router_of(part), BufferKind::kDelayed, choices);
  if (kind(part) == model::PartKind::kCombine && has_shared_expert(part)) {
    const int router = router_of(part);
    make_for(micro, micro.hidden_gradient, router, BufferKind::kHiddenGradient,
             hidden_bytes(spec_, strategy_, router));
  }
}

void MicroBatchWriter::backward_weight(MicroBatch& micro, int part) {
  if (tensor_) {
    tensor_->backward_weight(micro, part);
    return;
  }
  if (spreads(part)) {
    backward_weight_experts(micro, part);
    return;
  }
  if (part == 0) {
    embedding_backward(micro);
    return;
  }
  const auto at = static_cast<size_t>(part);
  Instruction& instruction = writer_.begin(OpKind::kBackwardWeight, part, micro.index, micro.lane);
  instruction.recompute = recompute(part);
  instruction.flops = flops_[at].backward_weight * tokens_;
  instruction.workspace_bytes = bytes_[at].backward_weight_workspace;
  // A router's own gradient has become its input's by then.
  if (kind(part) != model::PartKind::kRouter) writer_.read(micro.hidden_gradient[at]);
  writer_.read_if_made(micro.saved_weight[at]);
  writer_.read_if_made(micro.delayed[at]);
  if (reads_input_for_weights(part)) writer_.read(micro.hidden[at - 1]);
  if (shares_sequences(part)) context_->read_for_weights(micro, part);
  if (kind(part) == model::PartKind::kRouter) writer_.read(micro.hidden[at]);
  if (kind(part) == model::PartKind::kCombine)
    writer_.read(micro.hidden[static_cast<size_t>(router_of(part))]);
  sums_.accumulate(micro.lane, part);
  if (kind(part) == model::PartKind::kMtpInput) {
    writer_.read(micro.batch);
    sums_.accumulate(micro.lane, 0);  // the token table's
  }
  if (micro.last_of_lane) sums_.lane_done(part, micro.lane);
}

void MicroBatchWriter::embedding_backward(MicroBatch& micro) {
  Instruction& instruction = writer_.begin(OpKind::kBackwardWeight, 0, micro.index, micro.lane);
  instruction.flops = flops_[0].backward_weight * tokens_;
  instruction.workspace_bytes = bytes_[0].backward_weight_workspace;
  writer_.read(micro.hidden_gradient[0]);
  writer_.read(micro.batch);
  sums_.accumulate(micro.lane, 0);
  if (micro.last_of_lane) sums_.lane_done(0, micro.lane);
}

}  // namespace trireme::plan
