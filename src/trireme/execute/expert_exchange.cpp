#include "trireme/execute/expert_exchange.h"

#include <utility>

#include "trireme/base/error.h"
#include "trireme/execute/save_mode.h"

namespace trireme::execute {

using plan::BufferKind;
using plan::OpKind;

ExpertExchange::ExpertExchange(nn::Model& model, const plan::Program& program,
                               RankExchange& exchange, MicroBatches& micro_batches,
                               LaneGradients& gradients)
    : model_(model),
      program_(program),
      exchange_(exchange),
      device_(device::get_device(model.store().device().str())),
      micro_batches_(micro_batches),
      gradients_(gradients) {
  for (const std::vector<plan::ExpertSource>& sources : program.exchanged_micro_batches()) {
    const size_t mine = program.expert_source();
    for (size_t s = 0; s < sources.size(); ++s)
      places_[{sources[s].leaf, sources[s].micro_batch}] = {sources.at(mine).micro_batch, s};
  }
}

bool ExpertExchange::executes(const plan::Instruction& instruction) const {
  switch (instruction.kind) {
    case OpKind::kExchangeCounts:
    case OpKind::kExchangeRows:
      return true;
    case OpKind::kForward:
    case OpKind::kRecompute:
    case OpKind::kBackwardInput:
    case OpKind::kBackwardWeight:
      return program_.spreads(instruction.part);
    default:
      return false;
  }
}

nn::MoeFlow& ExpertExchange::flow(int64_t own, int part) {
  return (*micro_batches_.at(own).batch.moe)[model_.part(part).spec().layer];
}

at::Tensor& ExpertExchange::hidden(int64_t own, int part) {
  return micro_batches_.at(own).hidden.at(static_cast<size_t>(part));
}

at::Tensor& ExpertExchange::gradient(int64_t own, int part) {
  return micro_batches_.at(own).gradient.at(static_cast<size_t>(part));
}

SpreadExperts& ExpertExchange::experts(int64_t own, int part) {
  return experts_.at({own, part});
}

void ExpertExchange::issued(const plan::Instruction& instruction,
                            SpreadExperts::Transfers transfers) {
  for (comm::Group::Pending& work : transfers) exchange_.issued(instruction, std::move(work));
}

void ExpertExchange::execute(const plan::Instruction& instruction) {
  const int part = instruction.part;
  const Place place = places_.at({instruction.lane, instruction.micro_batch});
  switch (instruction.kind) {
    case OpKind::kExchangeCounts: {
      // Of the router: its dispatch and experts follow.
      const auto made = experts_.try_emplace({place.own, part + 2}, model_.part(part + 2),
                                             exchange_.group(instruction));
      issued(instruction,
             made.first->second.send_counts(flow(place.own, part), device_.compute_queue()));
      break;
    }
    case OpKind::kExchangeRows:
      exchange_rows(instruction);
      break;
    case OpKind::kForward:
      experts(place.own, part).forward(place.source, true, to_save_mode(instruction.recompute));
      break;
    case OpKind::kRecompute:
      experts(place.own, part).recompute(place.source);
      break;
    case OpKind::kBackwardInput:
      experts(place.own, part).backward_input(place.source);
      break;
    case OpKind::kBackwardWeight: {
      nn::GradientSink sink = gradients_.sink_of(model_.part(part), instruction.lane);
      experts(place.own, part).backward_weight(place.source, sink);
      break;
    }
    default:
      TRIREME_CHECK(false, "{} is not of experts", plan::to_string(instruction.kind));
  }
}

void ExpertExchange::exchange_rows(const plan::Instruction& instruction) {
  const int part = instruction.part;
  const int64_t own = instruction.micro_batch;
  SpreadExperts& layer = experts(own, part);
  nn::MoeFlow& mine = flow(own, part);
  device::Queue& queue = device_.compute_queue();
  const bool back = instruction.phase == 2;
  if (!instruction.of_gradient) {
    issued(instruction, back ? layer.return_rows(hidden(own, part), queue)
                             : layer.send_rows(hidden(own, part - 1), mine, queue));
  } else {
    issued(instruction, back ? layer.return_gradients(gradient(own, part - 1), mine, queue)
                             : layer.send_gradients(gradient(own, part), queue));
  }
}

bool ExpertExchange::free(const plan::Buffer& buffer) {
  const int part = buffer.part;
  const bool of_experts = part >= 0 && program_.spreads(part);
  const bool of_dispatch = part >= 0 && part + 1 < model_.num_parts() && program_.spreads(part + 1);
  if (!of_experts && !of_dispatch) return false;
  const int64_t own = buffer.micro_batch;
  const int experts_part = of_experts ? part : part + 1;
  switch (buffer.kind) {
    case BufferKind::kHidden:
      if (of_dispatch) {
        flow(own, part).row_weights.reset();
        return false;
      }
      experts(own, experts_part).drop_output();
      return true;
    case BufferKind::kExchangedRows:
      if (of_dispatch) {
        experts(own, experts_part).drop_rows();
      } else {
        hidden(own, part).reset();
      }
      return true;
    case BufferKind::kHiddenGradient:
      if (of_experts) return false;  // what its combine has made
      experts(own, experts_part).drop_input_gradients();
      return true;
    case BufferKind::kExchangedGradient:
      if (of_experts) {
        experts(own, experts_part).drop_gradients();
      } else {
        gradient(own, part).reset();
      }
      return true;
    default:
      return false;
  }
}

}  // namespace trireme::execute
