#include "trireme/plan/pipeline_writer.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/schedule_text.h"

namespace trireme::plan {

namespace {

/// What a rank has sent and not waited for: their buffers are held until then.
constexpr size_t kSentInFlight = 2;

}  // namespace

std::vector<char> PipelineLayout::parts_of(int pipeline_rank) const {
  std::vector<char> mine(static_cast<size_t>(stages.begin.back()), 0);
  for (int stage = 0; stage < stages.count(); ++stage) {
    if (schedule.rank_of_stage[static_cast<size_t>(stage)] != pipeline_rank) continue;
    for (int part = stages.begin[static_cast<size_t>(stage)];
         part < stages.begin[static_cast<size_t>(stage) + 1]; ++part)
      mine[static_cast<size_t>(part)] = 1;
  }
  return mine;
}

std::vector<PipelineStage> PipelineLayout::ranked_stages() const {
  std::vector<PipelineStage> ranked;
  if (schedule.num_ranks() == 1) return ranked;
  for (size_t stage = 0; stage < schedule.rank_of_stage.size(); ++stage)
    ranked.push_back({stages.begin[stage], stages.begin[stage + 1], schedule.rank_of_stage[stage]});
  return ranked;
}

PipelineLayout pipeline_layout(const model::ModelSpec& spec, const Strategy& strategy,
                               int64_t micro_batches) {
  const Parallel& parallel = strategy.parallel;
  if (parallel.pp == 1) {
    const bool pairs = parallel.ep > 1 && strategy.in_turn != 1 && micro_batches > 1;
    return {pairs ? interleaved_pairs(micro_batches)
                  : make_schedule(ScheduleKind::k1F1B, 1, micro_batches, 1),
            {{0, static_cast<int>(spec.parts.size())}}};
  }
  PipelineLayout layout;
  layout.schedule = parallel.schedule == ScheduleKind::kText
                        ? parse_schedule(parallel.schedule_text, parallel.schedule_file)
                        : make_schedule(parallel.schedule, static_cast<int>(parallel.pp),
                                        micro_batches, static_cast<int>(parallel.chunks));
  layout.stages = strategy.stage_layers.empty()
                      ? cut_stages(spec, static_cast<int>(parallel.stages()), strategy.seq_len,
                                   recomputed_parts(spec, strategy))
                      : stages_of_layers(spec, strategy.stage_layers);
  return layout;
}

bool PipelineWriter::Message::operator<(const Message& other) const {
  return std::tie(part, micro_batch, gradient) <
         std::tie(other.part, other.micro_batch, other.gradient);
}

PipelineWriter::PipelineWriter(const model::ModelSpec& spec, const PipelineLayout& layout,
                               int pipeline_rank, int group, ProgramWriter& writer,
                               MicroBatchWriter& micro_batches, GradientSums& sums)
    : spec_(spec),
      layout_(layout),
      rank_(pipeline_rank),
      group_(group),
      writer_(writer),
      micro_batches_(micro_batches),
      sums_(sums),
      last_part_(static_cast<int>(spec.parts.size()) - 1),
      order_(writer.program().micro_batches()) {
  TRIREME_CHECK(static_cast<int64_t>(order_.size()) == layout_.schedule.micro_batches,
                "{} micro-batches, and a schedule for {}", order_.size(),
                layout_.schedule.micro_batches);
  list_messages();
}

// In the order in which each of the others will send them.
void PipelineWriter::list_messages() {
  const PipelineSchedule& schedule = layout_.schedule;
  for (int from = 0; from < schedule.num_ranks(); ++from) {
    if (from == rank_) continue;
    // Most ranks of a long pipeline are not the neighbours of this one.
    bool speaks = false;
    for (int stage = 0; stage < schedule.num_stages(); ++stage) {
      if (rank_of(stage) != rank_) continue;
      speaks = speaks || (stage > 0 && rank_of(stage - 1) == from) ||
               (stage + 1 < schedule.num_stages() && rank_of(stage + 1) == from);
    }
    if (!speaks) continue;
    for (const Action& action : schedule.ranks[static_cast<size_t>(from)]) {
      Message message{0, action.micro_batch, action.work != Work::kForward};
      if (action.work == Work::kBackwardWeight) continue;
      const int to = message.gradient ? action.stage - 1 : action.stage + 1;
      if (to < 0 || to == schedule.num_stages() || rank_of(to) != rank_) continue;
      message.part = (message.gradient ? first_part(action.stage) : end_part(action.stage)) - 1;
      coming_[from].push_back(message);
      sender_[message] = from;
    }
  }
}

void PipelineWriter::write() {
  const std::vector<Action>& actions = layout_.schedule.ranks[static_cast<size_t>(rank_)];
  if (micro_batches_.parts_take_turns()) {
    write_in_turn();
    return;
  }
  const bool exchanges = writer_.program().strategy.parallel.ep > 1;
  for (size_t i = 0; i < actions.size(); ++i) {
    receive_for(i);
    if (i + 1 < actions.size()) receive_for(i + 1);
    // Without an exchange of experts to hide, the forward's result is sent the sooner, the sooner it is done.
    if (actions[i].with_next && exchanges) {
      act_together(actions[i], actions[i + 1]);
      ++i;
    } else {
      act(actions[i]);
    }
  }
  wait_for_sent(0);
  for (const Sent& sent : sent_) sums_.wait_at_end(sent.instruction, sent.buffer);
}

// Gradients are added in the order of the micro-batches: a pair's losses come after the backward of the pair before.
void PipelineWriter::write_in_turn() {
  const bool together = writer_.program().strategy.in_turn > 2;
  const auto count = static_cast<int64_t>(order_.size());
  std::optional<MicroBatchWriter::Pair> before;
  for (int64_t index = 0; index + 1 < count; index += 2) {
    begin_micro_batch(index);
    begin_micro_batch(index + 1);
    const MicroBatchWriter::Pair pair{&micro(index), &micro(index + 1)};
    micro_batches_.forward_in_turn(pair, before);
    before.reset();
    if (together) {
      before = pair;
    } else {
      micro_batches_.backward_in_turn(pair);
    }
  }
  if (before) micro_batches_.backward_in_turn(*before);
  if (count % 2 == 0) return;
  act({Work::kForward, 0, count - 1});
  act({Work::kBackward, 0, count - 1});
}

void PipelineWriter::begin_micro_batch(int64_t index) {
  if (live_.contains(index)) return;
  // The host runs one micro-batch ahead.
  if (index + 1 < static_cast<int64_t>(order_.size()))
    micro_batches_.load(order_[static_cast<size_t>(index) + 1]);
  live_.emplace(index, micro_batches_.begin(order_[static_cast<size_t>(index)]));
}

void PipelineWriter::act(const Action& action) {
  const int stage = action.stage;
  const int64_t index = action.micro_batch;
  const int first = first_part(stage);
  const int last = end_part(stage) - 1;
  switch (action.work) {
    case Work::kForward:
      begin_micro_batch(index);
      for (int part = first; part <= last; ++part) forward(stage, index, part);
      return;
    case Work::kBackwardInput:
    case Work::kBackward:
      for (int part = last; part >= first; --part)
        backward_input(stage, index, part, action.work == Work::kBackward);
      if (action.work == Work::kBackward) delayed_weights(stage, index);
      return;
    case Work::kBackwardWeight:
      for (int part = last; part >= first; --part) {
        if (!spec_.is_head(part) && !keeps_order(part)) backward_weight(index, part);
      }
      return;
  }
}

// In turns, each as far as it exchanges something: that lies behind what the other computes. So the rows of a dispatch travel
// behind the experts' backward or the attention's, and those of experts behind the other's experts or attention.
void PipelineWriter::act_together(const Action& forward_action, const Action& backward_action) {
  begin_micro_batch(forward_action.micro_batch);
  int up = first_part(forward_action.stage);
  const int up_end = end_part(forward_action.stage);
  int down = end_part(backward_action.stage) - 1;
  const int down_end = first_part(backward_action.stage) - 1;
  const auto kind = [&](int part) { return spec_.parts[static_cast<size_t>(part)].kind; };
  while (up < up_end || down > down_end) {
    for (bool exchanges = false; up < up_end && !exchanges; ++up) {
      forward(forward_action.stage, forward_action.micro_batch, up);
      exchanges = kind(up) == model::PartKind::kDispatch || kind(up) == model::PartKind::kExperts;
    }
    // The forward's message comes first: the schedule says so, and both may go to the same rank.
    const int until = up < up_end ? down_end + 1 : down_end;
    std::vector<int> weights;
    for (bool exchanges = false; down > until && !exchanges; --down) {
      backward_input(backward_action.stage, backward_action.micro_batch, down, false);
      if (down > 0 && !spec_.is_head(down) && !keeps_order(down) && !micro_batches_.delays(down))
        weights.push_back(down);
      exchanges =
          kind(down) == model::PartKind::kCombine || kind(down) == model::PartKind::kExperts;
    }
    // Gradients of weights wait until what they have no part in is on its way.
    for (const int part : weights) {
      if (backward_action.work == Work::kBackward)
        backward_weight(backward_action.micro_batch, part);
    }
  }
  if (backward_action.work == Work::kBackward)
    delayed_weights(backward_action.stage, backward_action.micro_batch);
}

void PipelineWriter::forward(int stage, int64_t index, int part) {
  MicroBatch& batch = micro(index);
  if (part == first_part(stage) && stage > 0 && rank_of(stage - 1) != rank_)
    batch.hidden[static_cast<size_t>(part) - 1] = received_.at({part - 1, index, false});
  if (part < last_part_) {
    micro_batches_.forward(batch, part);
    wait_for_sent(kSentInFlight);
  }
  if (part + 1 == end_part(stage) && stage + 1 < layout_.stages.count() &&
      rank_of(stage + 1) != rank_)
    send(rank_of(stage + 1), {part, index, false}, batch.hidden[static_cast<size_t>(part)]);
}

void PipelineWriter::backward_input(int stage, int64_t index, int part, bool with_weight) {
  MicroBatch& batch = micro(index);
  if (part + 1 == end_part(stage) && stage + 1 < layout_.stages.count() &&
      rank_of(stage + 1) != rank_)
    batch.hidden_gradient[static_cast<size_t>(part)] = received_.at({part, index, true});
  // The embedding's comes last, after all that add to its gradients.
  const bool weight_follows = (with_weight || keeps_order(part)) && part > 0 &&
                              !spec_.is_head(part) && !micro_batches_.delays(part);
  if (part > 0) {
    micro_batches_.backward_input(batch, part, weight_follows && sums_.has_parameters(part));
    wait_for_sent(kSentInFlight);
  }
  if (part > 0 && part == first_part(stage) && rank_of(stage - 1) != rank_)
    send(rank_of(stage - 1), {part - 1, index, true},
         batch.hidden_gradient[static_cast<size_t>(part) - 1]);
  if (weight_follows) backward_weight(index, part);
}

void PipelineWriter::backward_weight(int64_t index, int part) {
  if (sums_.has_parameters(part)) micro_batches_.backward_weight(micro(index), part);
}

void PipelineWriter::delayed_weights(int stage, int64_t index) {
  for (int part = end_part(stage) - 1; part >= first_part(stage); --part) {
    if (part == 0 || micro_batches_.delays(part)) backward_weight(index, part);
  }
}

void PipelineWriter::receive_for(size_t at) {
  const Action& action = layout_.schedule.ranks[static_cast<size_t>(rank_)][at];
  if (action.work == Work::kBackwardWeight) return;
  const bool gradient = action.work != Work::kForward;
  const Message needed{(gradient ? end_part(action.stage) : first_part(action.stage)) - 1,
                       action.micro_batch, gradient};
  const auto sender = sender_.find(needed);
  if (sender == sender_.end()) return;
  std::deque<Message>& coming = coming_.at(sender->second);
  while (!received_.contains(needed)) {
    receive(sender->second, coming.front());
    coming.pop_front();
  }
}

void PipelineWriter::receive(int from, const Message& message) {
  const int64_t index = order_[static_cast<size_t>(message.micro_batch)];
  const int64_t lane = writer_.program().leaf_of(index);
  const int buffer = writer_.new_buffer(
      message.gradient ? BufferKind::kHiddenGradient : BufferKind::kHidden, message.part, index,
      kNone, hidden_bytes(spec_, writer_.program().strategy, message.part));
  // Not before what is computed by then, so that no more is held than that needs.
  int before = writer_.current();
  const std::vector<Instruction>& written = writer_.program().instructions;
  while (before >= 0 && written[static_cast<size_t>(before)].resource != Resource::kCompute)
    --before;
  Instruction& instruction = writer_.begin(OpKind::kReceive, message.part, index, lane);
  instruction.resource = Resource::kCommunication;
  instruction.group = group_;
  instruction.peer = from;
  instruction.of_gradient = message.gradient;
  writer_.depend(before);
  writer_.make(buffer);
  received_[message] = buffer;
}

void PipelineWriter::send(int to, const Message& message, int buffer) {
  const int64_t index = order_[static_cast<size_t>(message.micro_batch)];
  const int64_t lane = writer_.program().leaf_of(index);
  Instruction& instruction = writer_.begin(OpKind::kSend, message.part, index, lane);
  instruction.resource = Resource::kCommunication;
  instruction.group = group_;
  instruction.peer = to;
  instruction.of_gradient = message.gradient;
  writer_.read(buffer);
  sent_.push_back({writer_.current(), buffer});
}

// The current instruction, if it computes, waits until no more than `most` are under way.
void PipelineWriter::wait_for_sent(size_t most) {
  if (writer_.program().instructions.empty() ||
      writer_.program().instructions.back().resource != Resource::kCompute)
    return;
  while (sent_.size() > most) {
    writer_.read(sent_.front().buffer);
    writer_.depend(sent_.front().instruction);
    sent_.pop_front();
  }
}

}  // namespace trireme::plan
