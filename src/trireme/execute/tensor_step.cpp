#include "trireme/execute/tensor_step.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/execute/save_mode.h"
#include "trireme/kernels/ops.h"
#include "trireme/nn/rank_sums.h"
#include "trireme/plan/tensor_share.h"

namespace trireme::execute {

using plan::Instruction;
using plan::OpKind;

// Buffers come in the order in which plan/tensor_writer.cpp names them: of a phase after an exchange first what that brought, then
// what it was made from.

TensorStep::TensorStep(const nn::SplitModel& split, const nn::ParameterStore& store,
                       const plan::Program& program, RankExchange& exchange,
                       MicroBatches& micro_batches, LaneGradients& gradients, StepFigures& figures,
                       std::function<double()> gradient_scale)
    : split_(split),
      store_(store),
      program_(program),
      exchange_(exchange),
      micro_batches_(micro_batches),
      gradients_(gradients),
      figures_(figures),
      gradient_scale_(std::move(gradient_scale)),
      tokens_(program.strategy.tokens()) {
  if (program.strategy.parallel.cp > 1) context_.emplace(store.spec(), program, exchange);
}

bool TensorStep::executes(const Instruction& instruction) const {
  switch (instruction.kind) {
    case OpKind::kForward:
    case OpKind::kRecompute:
    case OpKind::kLoss:
    case OpKind::kBackwardInput:
    case OpKind::kBackwardWeight:
    case OpKind::kGatherTokens:
    case OpKind::kScatterSums:
    case OpKind::kGatherRows:
    case OpKind::kShareGradients:
    case OpKind::kAddShares:
    case OpKind::kExchangeContext:
      return true;
    default:
      return false;
  }
}

void TensorStep::execute(const Instruction& instruction) {
  if (instruction.kind == OpKind::kShareGradients) {
    share_gradients(instruction);
    return;
  }
  if (instruction.kind == OpKind::kAddShares) {
    add_shares(instruction);
    return;
  }
  MicroBatch& micro = micro_batches_.at(instruction.micro_batch);
  switch (instruction.kind) {
    case OpKind::kForward:
      instruction.part == 0 ? embedding(instruction, micro) : forward(instruction, micro);
      break;
    case OpKind::kRecompute:
      recompute(instruction, micro);
      break;
    case OpKind::kLoss:
      loss(instruction, micro);
      break;
    case OpKind::kBackwardInput:
      backward_input(instruction, micro);
      break;
    case OpKind::kBackwardWeight:
      backward_weight(instruction, micro);
      break;
    case OpKind::kGatherTokens:
    case OpKind::kGatherRows:
      gather(instruction, micro);
      break;
    case OpKind::kScatterSums:
      scatter(instruction, micro);
      break;
    case OpKind::kExchangeContext:
      context_->exchange(instruction, graph(instruction).context());
      break;
    default:
      TRIREME_CHECK(false, "{} is the same on all ranks", to_string(instruction.kind));
  }
}

at::Tensor& TensorStep::used(const Instruction& instruction, size_t place, MicroBatch& micro) {
  const plan::Buffer& buffer = program_.buffers[static_cast<size_t>(instruction.uses.at(place))];
  const auto part = static_cast<size_t>(std::max(buffer.part, 0));
  if (buffer.kind == plan::BufferKind::kHidden) return micro.hidden.at(part);
  if (buffer.kind == plan::BufferKind::kHiddenGradient) return micro.gradient.at(part);
  const auto found = tensors_.find(buffer.id);
  TRIREME_CHECK(found != tensors_.end(), "{} before it was made",
                plan::describe(store_.spec(), instruction));
  return found->second;
}

void TensorStep::keep(const Instruction& instruction, size_t place, at::Tensor tensor) {
  tensors_[instruction.makes.at(place)] = std::move(tensor);
}

nn::SplitGraph& TensorStep::graph(const Instruction& instruction) {
  const auto found = graphs_.find({instruction.micro_batch, instruction.part});
  TRIREME_CHECK(found != graphs_.end(), "{} before its forward",
                plan::describe(store_.spec(), instruction));
  return *found->second;
}

nn::GradientSink TensorStep::sink(const Instruction& instruction,
                                  const std::function<bool(size_t place)>& writes) {
  return gradients_.sink_of(store_.part_parameters(instruction.part), instruction.lane, writes);
}

void TensorStep::embedding(const Instruction& instruction, MicroBatch& micro) {
  if (instruction.phase == 1) {
    check_ids(*micro.input, store_.spec().vocab_size);
    keep(instruction, 0, split_.embedding().look_up(micro.batch));
    return;
  }
  micro.hidden.at(0) = split_.embedding().finish(micro.batch, used(instruction, 0, micro));
}

void TensorStep::forward(const Instruction& instruction, MicroBatch& micro) {
  const nn::SplitPart& part = split_.part(instruction.part);
  auto& slot = graphs_[{instruction.micro_batch, instruction.part}];
  if (slot == nullptr)
    slot = std::make_unique<nn::SplitGraph>(part, micro.batch, /*with_backward=*/true,
                                            to_save_mode(instruction.recompute));
  if (instruction.phase == 1) {
    keep(instruction, 0, slot->normalize(used(instruction, 0, micro)));
  } else if (!is_last(instruction)) {
    multiply(instruction, micro, *slot);
  } else {
    micro.hidden.at(static_cast<size_t>(instruction.part)) =
        slot->finish(used(instruction, 2, micro), used(instruction, 0, micro));
  }
}

void TensorStep::multiply(const Instruction& instruction, MicroBatch& micro, nn::SplitGraph& of) {
  if (!has_context(instruction)) {
    keep(instruction, 0, of.multiply(used(instruction, 0, micro).view({tokens_, -1})));
  } else if (instruction.phase == 2) {
    of.begin_multiply(used(instruction, 0, micro).view({tokens_, -1}));
  } else {
    const at::Tensor out = context_->forward(instruction, instruction.phase - 1, of.context());
    if (out.defined()) keep(instruction, 0, out.flatten(0, 1));
  }
}

void TensorStep::recompute(const Instruction& instruction, MicroBatch& micro) {
  nn::SplitGraph& of = graph(instruction);
  if (instruction.phase == 1) {
    keep(instruction, 0, of.normalize(used(instruction, 0, micro)));
    return;
  }
  if (instruction.phase > 2) {
    context_->recompute(instruction, instruction.phase - 1, of.context());
    return;
  }
  of.give_input(used(instruction, 0, micro));
  of.recompute();
}

void TensorStep::backward_input(const Instruction& instruction, MicroBatch& micro) {
  const nn::SplitPart& part = split_.part(instruction.part);
  nn::SplitGraph& of = graph(instruction);
  if (instruction.phase == 1) {
    nn::GradientSink into = sink(instruction, [&](size_t place) { return part.is_after(place); });
    keep(instruction, 0, of.begin_backward(used(instruction, 0, micro), into));
  } else if (is_last(instruction)) {
    nn::GradientSink into = sink(instruction, [&](size_t place) { return part.is_before(place); });
    micro.gradient.at(static_cast<size_t>(instruction.part) - 1) =
        of.finish_backward(used(instruction, 2, micro), used(instruction, 3, micro),
                           used(instruction, 0, micro), into);
  } else if (has_context(instruction)) {
    context_backward(instruction, micro, of);
  } else {
    if (instruction.recompute == plan::Recompute::kSelective)
      of.give_input(used(instruction, 2, micro));
    keep(instruction, 0, of.backward_input(used(instruction, 0, micro)));
  }
}

void TensorStep::context_backward(const Instruction& instruction, MicroBatch& micro,
                                  nn::SplitGraph& of) {
  const int64_t phase = instruction.phase - 1;
  const at::Tensor gradient = phase == 1 ? used(instruction, 0, micro).unsqueeze(0) : at::Tensor();
  if (!context_->backward(instruction, phase, of.context(), gradient)) return;
  if (instruction.recompute == plan::Recompute::kSelective)
    of.give_input(used(instruction, 0, micro));
  keep(instruction, 0, of.backward_input(used(instruction, 1, micro)));
}

void TensorStep::backward_weight(const Instruction& instruction, MicroBatch& micro) {
  if (instruction.part == 0) {
    nn::GradientSink into = sink(instruction, [](size_t) { return true; });
    split_.embedding().backward_weight(used(instruction, 0, micro), micro.batch, into);
    return;
  }
  // The graph holds what it reads and frees it as soon as it is used.
  for (const int buffer : instruction.frees) tensors_.erase(buffer);
  const nn::SplitPart& part = split_.part(instruction.part);
  nn::GradientSink into = sink(
      instruction, [&](size_t place) { return !part.is_before(place) && !part.is_after(place); });
  graph(instruction).backward_weight(into);
}

void TensorStep::loss(const Instruction& instruction, MicroBatch& micro) {
  const nn::SplitHead& head = split_.head();
  const int64_t rows = program_.strategy.loss_chunk_rows;
  const int64_t chunks = (tokens_ + rows - 1) / rows;
  Loss& of = losses_[instruction.micro_batch];
  const int place_of_weight = static_cast<int>(head.gradient_parameters().size()) - 1;
  const auto into = [&](bool weight) {
    return gradients_.sink_of(head.gradient_parameters(), instruction.lane, [&](size_t place) {
      return (static_cast<int>(place) == place_of_weight) == weight;
    });
  };
  if (instruction.phase == 1) {
    keep(instruction, 0, head.normalize(used(instruction, 0, micro), true, of.statistics));
    return;
  }
  if (instruction.phase == 2 + 2 * chunks) {
    double sum = 0.0;
    for (const at::Tensor& losses : of.losses) sum = nn::add_losses(sum, losses);
    figures_.add_loss(instruction.lane, 0, sum);
    nn::GradientSink norm = into(false);
    micro.gradient.at(static_cast<size_t>(instruction.part) - 1) =
        head.finish(used(instruction, 2, micro), of.statistics, used(instruction, 0, micro), norm);
    losses_.erase(instruction.micro_batch);
    return;
  }
  const int64_t chunk = (instruction.phase - 2) / 2;
  const int64_t first = chunk * rows;
  const int64_t count = std::min(rows, tokens_ - first);
  const at::Tensor targets = micro.batch.targets.flatten().narrow(0, first, count);
  if (instruction.phase % 2 == 0) {
    const at::Tensor normed = used(instruction, 0, micro).narrow(0, first, count);
    nn::SplitHead::Rows made = head.measure(normed, targets);
    keep(instruction, 0, std::move(made.logits));
    keep(instruction, 1, std::move(made.statistics));
    return;
  }
  const at::Tensor& statistics = used(instruction, 0, micro);
  const at::Tensor& gathered = used(instruction, 3, micro);
  if (chunk == 0) keep(instruction, 0, at::empty(gathered.sizes(), gathered.options()));
  const at::Tensor d_normed =
      chunk == 0 ? tensors_.at(instruction.makes.front()) : used(instruction, 5, micro);
  of.losses.push_back(head.losses(statistics, targets));
  nn::GradientSink weight = into(true);
  head.spread(used(instruction, 2, micro), statistics, gathered.narrow(0, first, count), targets,
              gradient_scale_(), d_normed.narrow(0, first, count), weight);
}

void TensorStep::gather(const Instruction& instruction, MicroBatch& micro) {
  const at::Tensor& in = used(instruction, 0, micro);
  const model::TensorShare& share = store_.spec().tensor;
  if (instruction.kind == OpKind::kGatherRows) {
    const at::Tensor out = at::empty({share.ranks, in.size(0), in.size(1)}, in.options());
    exchange_.all_gather(instruction, out,
                         std::vector<int64_t>(static_cast<size_t>(share.ranks), in.numel()), in);
    keep(instruction, 0, out);
    return;
  }
  const int64_t width = in.size(-1);
  const at::Tensor out = at::empty({tokens_, width}, in.options());
  exchange_.all_gather(instruction, out, nn::token_counts(share, tokens_, width), in);
  keep(instruction, 0, out);
}

void TensorStep::scatter(const Instruction& instruction, MicroBatch& micro) {
  const at::Tensor& in = used(instruction, 0, micro);
  const model::TensorShare& share = store_.spec().tensor;
  const int64_t own = share.count(tokens_);
  const at::Tensor out = at::empty({share.ranks, own, in.size(1)}, in.options());
  exchange_.all_to_all(instruction, out,
                       std::vector<int64_t>(static_cast<size_t>(share.ranks), own * in.size(1)), in,
                       nn::token_counts(share, tokens_, in.size(1)));
  keep(instruction, 0, out);
}

void TensorStep::share_gradients(const Instruction& instruction) {
  const auto holders =
      static_cast<int64_t>(program_.groups[static_cast<size_t>(instruction.group)].size());
  const at::Tensor flat = gradients_.of(instruction.lane, instruction.part);
  const int64_t elements = plan::num_shared_gradients(store_.spec(), instruction.part, holders);
  const at::Tensor mine = at::empty({elements}, flat.options());
  int64_t at = 0;
  for (const int parameter : plan::shared_gradients(store_.spec(), instruction.part, holders)) {
    const at::Tensor view = store_.view(flat, parameter).flatten();
    mine.narrow(0, at, view.numel()).copy_(view);
    at += view.numel();
  }
  const at::Tensor all = at::empty({holders, elements}, flat.options());
  exchange_.all_gather(instruction, all,
                       std::vector<int64_t>(static_cast<size_t>(holders), elements), mine);
  keep(instruction, 0, all);
}

void TensorStep::add_shares(const Instruction& instruction) {
  const at::Tensor flat = gradients_.of(instruction.lane, instruction.part);
  for (const int id : instruction.uses) {
    const plan::Buffer& buffer = program_.buffers[static_cast<size_t>(id)];
    if (buffer.kind != plan::BufferKind::kSharedGradients) continue;
    const at::Tensor& all = tensors_.at(id);
    at::Tensor sum = all.select(0, 0);
    for (int64_t rank = 1; rank < all.size(0); ++rank) kernels::add_(sum, all.select(0, rank));
    int64_t at = 0;
    for (const int parameter :
         plan::shared_gradients(store_.spec(), instruction.part, all.size(0))) {
      at::Tensor view = store_.view(flat, parameter);
      view.copy_(sum.narrow(0, at, view.numel()).view(view.sizes()));
      at += view.numel();
    }
  }
}

void check_ids(const data::Batch& batch, int64_t vocab_size) {
  const auto outside = [&](int32_t id) { return id < 0 || id >= vocab_size; };
  const auto token = std::ranges::find_if(batch.tokens, outside);
  const auto target = std::ranges::find_if(
      batch.targets, [&](int32_t id) { return id != data::kIgnoredTarget && outside(id); });
  const bool of_tokens = token != batch.tokens.end();
  TRIREME_USER_CHECK(!of_tokens && target == batch.targets.end(), kData,
                     "use the tokenizer that the data was made with, or raise model.vocab_size",
                     "a batch holds id {}, but the model has a vocabulary of {}",
                     of_tokens ? *token : *target, vocab_size);
}

}  // namespace trireme::execute
