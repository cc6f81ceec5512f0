#include "trireme/plan/tensor_writer.h"

#include <algorithm>
#include <utility>

#include "trireme/plan/micro_batch_writer.h"

namespace trireme::plan {

TensorWriter::TensorWriter(const model::ModelSpec& spec, ProgramWriter& writer, GradientSums& sums)
    : spec_(spec),
      writer_(writer),
      sums_(sums),
      strategy_(writer.program().strategy),
      group_(sums.tensor_group()),
      tokens_(strategy_.tokens()) {
  const model::ModelSpec products = products_of(spec);
  if (strategy_.parallel.cp > 1) context_ = std::make_unique<ContextWriter>(products, writer, sums);
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
    const bool mine = writer.program().has(part);
    const model::PartKind kind = spec.parts[static_cast<size_t>(part)].kind;
    flops_.push_back(mine ? model::part_flops(spec, part, strategy_.seq_len) : model::TokenFlops{});
    if (!mine) {
      bytes_.emplace_back();
    } else if (kind == model::PartKind::kAttention || kind == model::PartKind::kMlp) {
      bytes_.push_back(split_bytes(spec, products, strategy_, part, recompute(part)));
    } else {
      bytes_.push_back(split_embedding_bytes(spec, strategy_));
    }
  }
}

const model::LayerSpec& TensorWriter::layer_of(int part) const {
  return spec_.layers[static_cast<size_t>(spec_.parts[static_cast<size_t>(part)].layer)];
}

bool TensorWriter::has_norm_before(int part) const {
  const bool attention = spec_.parts[static_cast<size_t>(part)].kind == model::PartKind::kAttention;
  return attention ? layer_of(part).attention_norm.has_value()
                   : layer_of(part).mlp_norm.has_value();
}

bool TensorWriter::has_norm_after(int part) const {
  const bool attention = spec_.parts[static_cast<size_t>(part)].kind == model::PartKind::kAttention;
  return attention ? layer_of(part).attention_post_norm.has_value()
                   : layer_of(part).mlp_post_norm.has_value();
}

Instruction& TensorWriter::compute(OpKind kind, MicroBatch& micro, int part, int phase,
                                   int64_t workspace_bytes) {
  Instruction& instruction = writer_.begin(kind, part, micro.index, micro.lane);
  instruction.phase = phase;
  instruction.recompute = recompute(part);
  instruction.workspace_bytes = workspace_bytes;
  return instruction;
}

int TensorWriter::new_tokens(const MicroBatch& micro, int part, int64_t bytes) {
  return writer_.new_buffer(BufferKind::kTokens, part, micro.index, kNone, bytes);
}

int TensorWriter::exchange(OpKind kind, const MicroBatch& micro, int part, int source,
                           int64_t bytes, bool of_gradient) {
  const int brought = new_tokens(micro, part, bytes);
  Instruction& instruction = writer_.begin(kind, part, micro.index, micro.lane);
  instruction.resource = Resource::kCommunication;
  instruction.group = group_;
  instruction.of_gradient = of_gradient;
  writer_.read(source);
  writer_.make(brought);
  return brought;
}

void TensorWriter::read_exchanged(int source, int brought) {
  writer_.read(brought);
  writer_.read(source);
}

void TensorWriter::read_input(const MicroBatch& micro, int part) {
  writer_.read(micro.hidden[static_cast<size_t>(part) - 1]);
}

void TensorWriter::forward(MicroBatch& micro, int part) {
  begin_forward(micro, part);
  forward_products(micro, part);
  finish_forward(micro, part);
}

// What the second sums up is exchanged while the first goes on, and the other way round.
void TensorWriter::forward_in_turn(MicroBatch& first, MicroBatch& second) {
  const int head = static_cast<int>(spec_.parts.size()) - 1;
  for (int part = 0; part < head; ++part) {
    for (MicroBatch* micro : {&first, &second}) {
      if (part > 0) finish_forward(*micro, part - 1);
      begin_forward(*micro, part);
    }
    for (MicroBatch* micro : {&first, &second}) forward_products(*micro, part);
  }
  for (MicroBatch* micro : {&first, &second}) finish_forward(*micro, head - 1);
}

// Every exchange has two products or more of others before it is waited for.
void TensorWriter::both_in_turn(MicroBatch& first, MicroBatch& second, MicroBatch& first_back,
                                MicroBatch& second_back) {
  const int head = static_cast<int>(spec_.parts.size()) - 1;
  for (MicroBatch* micro : {&first_back, &second_back}) {
    if (head > 1) begin_backward(*micro, head - 1);
  }
  for (int up = 0; up < head; ++up) {
    const int down = head - 1 - up;
    for (const auto& [forward, backward] :
         {std::pair{&first, &first_back}, {&second, &second_back}}) {
      forward_products(*forward, up);
      if (down > 0) backward_in_turn(*backward, down);
      finish_forward(*forward, up);
      if (up + 1 < head) begin_forward(*forward, up + 1);
    }
  }
  embedding_backward(first_back);
  embedding_backward(second_back);
}

void TensorWriter::backward_in_turn(MicroBatch& micro, int part) {
  backward_products(micro, part);
  weight_products(micro, part);
  finish_backward(micro, part, /*with_weight=*/true);
  if (part > 1) begin_backward(micro, part - 1);
}

// Products of weights lie behind a micro-batch's own exchange, those of inputs behind the other's.
void TensorWriter::backward_in_turn(MicroBatch& first, MicroBatch& second) {
  const int last = static_cast<int>(spec_.parts.size()) - 2;
  for (MicroBatch* micro : {&first, &second}) {
    if (last > 0) begin_backward(*micro, last);
  }
  for (int part = last; part > 0; --part) {
    for (MicroBatch* micro : {&first, &second}) backward_in_turn(*micro, part);
  }
  embedding_backward(first);
  embedding_backward(second);
}

void TensorWriter::begin_forward(MicroBatch& micro, int part) {
  if (part == 0) return;
  const auto at = static_cast<size_t>(part);
  const SplitBytes& bytes = bytes_[at];
  SplitBuffers& buffers = micro.split[part];
  buffers.source = micro.hidden[at - 1];
  if (has_norm_before(part)) {
    compute(OpKind::kForward, micro, part, 1, 0);
    writer_.depend(sums_.take_gather(part));
    read_input(micro, part);
    buffers.source = new_tokens(micro, part, bytes.rows);
    writer_.make(buffers.source);
    buffers.statistics =
        writer_.new_buffer(BufferKind::kSaved, part, micro.index, kNone, bytes.statistics);
    writer_.make(buffers.statistics);
  }
  buffers.brought = exchange(OpKind::kGatherTokens, micro, part, buffers.source, bytes.all,
                             /*of_gradient=*/false);
}

// Of an attention whose keys other ranks have too: the rest of the part is around it as of any other.
ContextEdges TensorWriter::context_edges(MicroBatch& micro, int part) {
  SplitBuffers& buffers = micro.split[part];
  const auto make_partial = [this, &micro, &buffers, part] {
    buffers.source = new_tokens(micro, part, bytes_[static_cast<size_t>(part)].all);
    writer_.make(buffers.source);
  };
  ContextEdges edges;
  edges.phases_before = 1;
  edges.begin_forward = [this, &micro, &buffers] {
    read_exchanged(buffers.source, buffers.brought);
    writer_.read(micro.batch);
  };
  edges.end_forward = make_partial;
  edges.begin_recompute = [this, &micro, &buffers] {
    read_exchanged(buffers.again, buffers.gathered);
    writer_.read(micro.batch);
  };
  edges.begin_backward = [this, &buffers] { read_exchanged(buffers.source, buffers.gradient); };
  edges.end_backward = [this, &micro, &buffers, make_partial] {
    read_exchanged(buffers.gradient, buffers.gathered);
    writer_.read_if_made(buffers.again);
    writer_.read(micro.batch);
    make_partial();
  };
  return edges;
}

void TensorWriter::forward_products(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const SplitBytes& bytes = bytes_[at];
  SplitBuffers& buffers = micro.split[part];
  if (shares_sequences(part)) {
    if (recompute(part) == Recompute::kNone) buffers.gathered = buffers.brought;
    context_->forward(micro, part, context_edges(micro, part));
    buffers.brought = exchange(OpKind::kScatterSums, micro, part, buffers.source, bytes.all,
                               /*of_gradient=*/false);
    return;
  }
  const model::PartKind kind = spec_.parts[at].kind;
  Instruction& instruction =
      compute(OpKind::kForward, micro, part, part == 0 ? 1 : 2, bytes.products.forward_workspace);
  if (part > 0) instruction.flops = flops_[at].forward * static_cast<double>(tokens_);
  writer_.depend(sums_.take_gather(part));
  if (part > 0) read_exchanged(buffers.source, buffers.brought);
  if (kind != model::PartKind::kMlp) writer_.read(micro.batch);
  const int partial = new_tokens(micro, part, bytes.all);
  writer_.make(partial);
  const auto save = [&](int64_t size) {
    if (size == 0) return kNone;
    const int buffer = writer_.new_buffer(BufferKind::kSaved, part, micro.index, kNone, size);
    writer_.make(buffer);
    return buffer;
  };
  if (part > 0 && recompute(part) != Recompute::kFull) {
    micro.saved_input[at] = save(bytes.products.saved_input);
    micro.saved_weight[at] = save(bytes.products.saved_weight);
  }
  if (part > 0 && recompute(part) == Recompute::kNone) buffers.gathered = buffers.brought;
  buffers.source = partial;
  buffers.brought =
      exchange(OpKind::kScatterSums, micro, part, partial, bytes.all, /*of_gradient=*/false);
}

void TensorWriter::finish_forward(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const SplitBytes& bytes = bytes_[at];
  SplitBuffers& buffers = micro.split[part];
  compute(OpKind::kForward, micro, part, last_phase(part), bytes.finish_workspace);
  read_exchanged(buffers.source, buffers.brought);
  if (part == 0) {
    writer_.read(micro.batch);
  } else {
    read_input(micro, part);
  }
  if (bytes.projected > 0) {
    buffers.projected =
        writer_.new_buffer(BufferKind::kSaved, part, micro.index, kNone, bytes.projected);
    writer_.make(buffers.projected);
  }
  micro.hidden[at] = writer_.new_buffer(BufferKind::kHidden, part, micro.index, kNone,
                                        hidden_bytes(spec_, strategy_, part));
  writer_.make(micro.hidden[at]);
}

void TensorWriter::embedding_backward(MicroBatch& micro) {
  const SplitBytes& bytes = bytes_[0];
  const int gathered = exchange(OpKind::kGatherTokens, micro, 0, micro.hidden_gradient[0],
                                bytes.all, /*of_gradient=*/true);
  compute(OpKind::kBackwardWeight, micro, 0, 0, bytes.products.backward_weight_workspace);
  read_exchanged(micro.hidden_gradient[0], gathered);
  writer_.read(micro.batch);
  sums_.accumulate(micro.lane, 0);
  if (micro.last_of_lane) sums_.lane_done(0, micro.lane);
}

// Chunk by chunk, the statistics of one under way while the logits of the next are made: two chunks of logits exist.
void TensorWriter::loss(MicroBatch& micro, int part, int counted) {
  const auto at = static_cast<size_t>(part);
  const int64_t chunk_rows = strategy_.loss_chunk_rows;
  const int64_t chunks = (tokens_ + chunk_rows - 1) / chunk_rows;
  const int64_t all = bytes_[at].all;
  const int owner = spec_.tied_embeddings ? 0 : part;
  const double products = 2.0 * static_cast<double>(spec_.hidden * spec_.vocab_size) /
                          static_cast<double>(spec_.tensor.ranks);
  const auto rows_of = [&](int64_t chunk) {
    return std::min(chunk_rows, tokens_ - chunk * chunk_rows);
  };
  const SplitLossBytes whole = split_loss_bytes(spec_, strategy_, rows_of(0));

  compute(OpKind::kLoss, micro, part, 1, 0);
  writer_.depend(counted);
  writer_.depend(sums_.take_gather(part));
  read_input(micro, part);
  const int normed = new_tokens(micro, part, bytes_[at].rows);
  writer_.make(normed);
  const int statistics =
      writer_.new_buffer(BufferKind::kSaved, part, micro.index, kNone, whole.norm_statistics);
  writer_.make(statistics);
  const int gathered = exchange(OpKind::kGatherTokens, micro, part, normed, all, false);

  struct Chunk {
    int logits;
    int statistics;
    int all_statistics;
  };
  std::vector<Chunk> measured;
  int d_normed = kNone;
  const auto measure = [&](int64_t chunk) {
    const SplitLossBytes bytes = split_loss_bytes(spec_, strategy_, rows_of(chunk));
    Instruction& instruction = compute(OpKind::kLoss, micro, part, static_cast<int>(2 + 2 * chunk),
                                       bytes.measure_workspace);
    instruction.flops = products * static_cast<double>(rows_of(chunk));
    read_exchanged(normed, gathered);
    writer_.read(micro.batch);
    Chunk made{new_tokens(micro, part, bytes.logits), new_tokens(micro, part, bytes.statistics),
               kNone};
    writer_.make(made.logits);
    writer_.make(made.statistics);
    made.all_statistics =
        exchange(OpKind::kGatherRows, micro, part, made.statistics, bytes.all_statistics, false);
    measured.push_back(made);
  };
  const auto spread = [&](int64_t chunk) {
    const SplitLossBytes bytes = split_loss_bytes(spec_, strategy_, rows_of(chunk));
    Instruction& instruction = compute(OpKind::kLoss, micro, part, static_cast<int>(3 + 2 * chunk),
                                       bytes.spread_workspace);
    instruction.flops = 2.0 * products * static_cast<double>(rows_of(chunk));
    const Chunk& of = measured[static_cast<size_t>(chunk)];
    read_exchanged(of.statistics, of.all_statistics);
    writer_.write(of.logits);
    writer_.read(gathered);
    writer_.read(micro.batch);
    if (d_normed == kNone) {
      d_normed = new_tokens(micro, part, all);
      writer_.make(d_normed);
    } else {
      writer_.write(d_normed);
    }
    sums_.accumulate(micro.lane, owner);
  };
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    measure(chunk);
    if (chunk > 0) spread(chunk - 1);
  }
  spread(chunks - 1);

  const int pieces = exchange(OpKind::kScatterSums, micro, part, d_normed, all, true);
  compute(OpKind::kLoss, micro, part, static_cast<int>(2 + 2 * chunks), whole.finish_workspace);
  read_exchanged(d_normed, pieces);
  read_input(micro, part);
  writer_.read(statistics);
  micro.hidden_gradient[at - 1] =
      writer_.new_buffer(BufferKind::kHiddenGradient, part - 1, micro.index, kNone,
                         hidden_bytes(spec_, strategy_, part - 1));
  writer_.make(micro.hidden_gradient[at - 1]);
  sums_.accumulate(micro.lane, part);
  if (micro.last_of_lane) sums_.lane_done(part, micro.lane);
}

/// The input of the products, where the forward did not keep it: gathered beside the output's gradient.
void TensorWriter::gather_input_again(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const SplitBytes& bytes = bytes_[at];
  SplitBuffers& buffers = micro.split[part];
  int source = micro.hidden[at - 1];
  if (has_norm_before(part)) {
    compute(OpKind::kRecompute, micro, part, 1, bytes.statistics);
    // Issued when the gradient is there: no earlier, or its memory would be held for nothing.
    writer_.depend(writer_.last_write(micro.hidden_gradient[at]));
    read_input(micro, part);
    writer_.read(buffers.statistics);
    source = new_tokens(micro, part, bytes.rows);
    writer_.make(source);
  }
  buffers.again = source;
  buffers.gathered = exchange(OpKind::kGatherTokens, micro, part, source, bytes.all, false);
  if (source == micro.hidden[at - 1]) writer_.depend(writer_.last_write(micro.hidden_gradient[at]));
}

void TensorWriter::backward_input(MicroBatch& micro, int part, bool with_weight) {
  begin_backward(micro, part);
  backward_products(micro, part);
  if (with_weight) weight_products(micro, part);
  finish_backward(micro, part, with_weight);
}

void TensorWriter::begin_backward(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const SplitBytes& bytes = bytes_[at];
  SplitBuffers& buffers = micro.split[part];
  int source = micro.hidden_gradient[at];
  if (has_norm_after(part)) {
    compute(OpKind::kBackwardInput, micro, part, 1, bytes.begin_backward_workspace);
    writer_.read(source);
    writer_.read(buffers.projected);
    source = new_tokens(micro, part, bytes.rows);
    writer_.make(source);
    sums_.accumulate(micro.lane, part);
  }
  buffers.source = source;
  buffers.gradient =
      exchange(OpKind::kGatherTokens, micro, part, source, bytes.all, /*of_gradient=*/true);
  if (recompute(part) != Recompute::kNone) gather_input_again(micro, part);
}

void TensorWriter::backward_products(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const SplitBytes& bytes = bytes_[at];
  SplitBuffers& buffers = micro.split[part];
  if (context_) context_->bring_keys_ahead(micro, part - 1);
  if (shares_sequences(part)) {
    context_->backward_input(micro, part, context_edges(micro, part));
    buffers.brought = exchange(OpKind::kScatterSums, micro, part, buffers.source, bytes.all, true);
    return;
  }
  const auto make = [&](int& slot, BufferKind kind, int64_t size) {
    if (size == 0) return;
    slot = writer_.new_buffer(kind, part, micro.index, kNone, size);
    writer_.make(slot);
  };
  if (recompute(part) == Recompute::kFull) {
    compute(OpKind::kRecompute, micro, part, 2, bytes.products.recompute_workspace).flops =
        flops_[at].recompute * static_cast<double>(tokens_);
    read_exchanged(buffers.again, buffers.gathered);
    writer_.read(micro.batch);
    make(micro.saved_input[at], BufferKind::kSaved, bytes.products.saved_input);
    make(micro.saved_weight[at], BufferKind::kSaved, bytes.products.saved_weight);
  }

  compute(OpKind::kBackwardInput, micro, part, 2, bytes.products.backward_input_workspace).flops =
      flops_[at].backward_input * static_cast<double>(tokens_);
  read_exchanged(buffers.source, buffers.gradient);
  writer_.read(buffers.gathered);
  writer_.read_if_made(buffers.again);
  writer_.read_if_made(micro.saved_input[at]);
  writer_.read_if_made(micro.saved_weight[at]);
  if (spec_.parts[at].kind == model::PartKind::kAttention) writer_.read(micro.batch);
  const int partial = new_tokens(micro, part, bytes.all);
  writer_.make(partial);
  make(micro.delayed[at], BufferKind::kDelayed, bytes.products.delayed);

  buffers.source = partial;
  buffers.brought = exchange(OpKind::kScatterSums, micro, part, partial, bytes.all, true);
}

void TensorWriter::finish_backward(MicroBatch& micro, int part, bool with_weight) {
  const auto at = static_cast<size_t>(part);
  const SplitBytes& bytes = bytes_[at];
  SplitBuffers& buffers = micro.split[part];
  compute(OpKind::kBackwardInput, micro, part, last_phase(part), bytes.finish_backward_workspace);
  read_exchanged(buffers.source, buffers.brought);
  read_input(micro, part);
  writer_.read(micro.hidden_gradient[at]);
  writer_.read_if_made(buffers.statistics);
  micro.hidden_gradient[at - 1] =
      writer_.new_buffer(BufferKind::kHiddenGradient, part - 1, micro.index, kNone,
                         hidden_bytes(spec_, strategy_, part - 1));
  writer_.make(micro.hidden_gradient[at - 1]);
  if (has_norm_before(part)) sums_.accumulate(micro.lane, part);
  if (with_weight && micro.last_of_lane) sums_.lane_done(part, micro.lane);
}

void TensorWriter::weight_products(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  SplitBuffers& buffers = micro.split[part];
  compute(OpKind::kBackwardWeight, micro, part, 0, bytes_[at].products.backward_weight_workspace)
      .flops = flops_[at].backward_weight * static_cast<double>(tokens_);
  writer_.read(buffers.gradient);
  writer_.read(buffers.gathered);
  writer_.read_if_made(micro.saved_weight[at]);
  writer_.read_if_made(micro.delayed[at]);
  if (shares_sequences(part)) context_->read_for_weights(micro, part);
  sums_.accumulate(micro.lane, part);
  buffers.has_weight = true;
}

void TensorWriter::backward_weight(MicroBatch& micro, int part) {
  if (part == 0) {
    embedding_backward(micro);
    return;
  }
  if (micro.split[part].has_weight) return;
  weight_products(micro, part);
  if (micro.last_of_lane) sums_.lane_done(part, micro.lane);
}

}  // namespace trireme::plan
