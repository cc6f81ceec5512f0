#include "trireme/execute/stage_evaluation.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/cluster/mesh.h"
#include "trireme/execute/spread_experts.h"

namespace trireme::execute {

namespace {

/// Of weights that come for their use, without a pipeline: what a gather costs is spread, and what is kept of a batch is one part's
/// output.
constexpr int64_t kBatchesAGather = 4;

}  // namespace

StageEvaluation::StageEvaluation(nn::Model& model, nn::ParameterStore& store,
                                 const plan::Program& program, comm::World& world)
    : model_(model),
      world_(world),
      device_(device::get_device(model.store().device().str())),
      stages_(program.stages),
      weights_(store, program, world),
      has_head_(program.has(model.spec().head_part())) {
  if (stages_.empty()) stages_.push_back({0, model.num_parts(), 0});
  for (int part = 0; part < model.num_parts(); ++part)
    gathers_ = gathers_ || weights_.gathers(part);
  const cluster::Mesh mesh(plan::mesh_shape(program.strategy.parallel));
  const auto last = static_cast<size_t>(program.pipeline_rank_of(model.spec().head_part()));
  for (const std::vector<int>& members : mesh.groups(cluster::Dimension::kPipeline)) {
    auto group = members.size() == 1 ? nullptr : world.make_group(members, device_);
    // Tensor parallel ranks lie next to one another, and are one pipeline together.
    if (mesh.coordinates(members.front()).tp == 0) last_ranks_.push_back(members[last]);
    if (std::ranges::find(members, world.rank()) != members.end()) {
      group_ = std::move(group);
      pipeline_ = static_cast<int>(last_ranks_.size()) - 1;
    }
  }
  const auto own_group = [&](cluster::Dimension dimension) {
    std::unique_ptr<comm::Group> own;
    for (const std::vector<int>& members : mesh.groups(dimension)) {
      if (auto group = world.make_group(members, device_)) own = std::move(group);
    }
    return own;
  };
  if (model.spec().tensor.is_cut())
    tensor_ = std::make_unique<TensorEvaluation>(model, own_group(cluster::Dimension::kTensor));
  if (!program.expert_lanes.empty()) expert_group_ = own_group(cluster::Dimension::kExpert);
}

int64_t StageEvaluation::batches_at_once() const {
  const int64_t ranks = group_ == nullptr ? 1 : group_->size();
  return gathers_ ? std::max(ranks, kBatchesAGather) : ranks;
}

// Stage by stage for all batches, so that what two ranks send each other comes in one order, and the next rank begins with the
// first batch while this one goes on with the second.
std::vector<EvaluationResult> StageEvaluation::evaluate(const std::vector<data::Batch>& batches,
                                                        int64_t loss_chunk_rows) {
  std::vector<EvaluationResult> results(batches.size());
  std::vector<at::Tensor> hidden(batches.size());
  std::vector<nn::BatchTensors> tensors;
  for (const data::Batch& batch : batches) {
    tensors.push_back(to_tensors(batch, 0, model_.store().device()));
    tensors.back().experts_are_spread = expert_group_ != nullptr;
  }
  // Whoever has no batch left still has experts that others need.
  const size_t turns =
      expert_group_ == nullptr ? batches.size() : static_cast<size_t>(batches_at_once());
  device::Queue& queue = device_.compute_queue();
  const int mine = group_ == nullptr ? 0 : group_->rank();
  std::vector<comm::Group::Pending> sent;
  for (size_t s = 0; s < stages_.size(); ++s) {
    const plan::PipelineStage& stage = stages_[s];
    if (stage.rank != mine) continue;
    const bool receives = s > 0 && stages_[s - 1].rank != stage.rank;
    const bool sends = s + 1 < stages_.size() && stages_[s + 1].rank != stage.rank;
    const auto receive = [&](size_t i) {
      world_.check();
      if (!receives) return;
      hidden[i] = at::empty(nn::hidden_shape(model_.spec(), batches[i].rows, batches[i].seq_len),
                            at::TensorOptions()
                                .dtype(model_.store().compute_dtype())
                                .device(model_.store().device()));
      group_->receive(hidden[i], stages_[s - 1].rank, queue)->wait(queue);
    };
    const auto send = [&](size_t i) {
      if (sends) sent.push_back(group_->send(hidden[i], stages_[s + 1].rank, queue));
    };
    std::vector<int> parts;
    for (int part = stage.first_part;
         part < std::min(stage.end_part, model_.spec().head_part() + 1); ++part)
      parts.push_back(part);
    const auto run = [&](int part, size_t i) {
      if (tensor_ != nullptr) {
        if (part == model_.spec().head_part()) {
          results[i] = tensor_->head(batches[i], tensors[i], hidden[i], loss_chunk_rows);
        } else {
          hidden[i] = tensor_->forward(part, hidden[i], tensors[i]);
        }
        return;
      }
      const bool has_batch = i < batches.size();
      if (expert_group_ != nullptr &&
          model_.spec().parts[static_cast<size_t>(part)].kind == model::PartKind::kExperts) {
        at::Tensor none;
        run_experts(part, has_batch ? &tensors[i] : nullptr, has_batch ? hidden[i] : none);
      } else if (!has_batch) {
        return;
      } else if (part == model_.spec().head_part()) {
        results[i] = evaluate_head(model_, batches[i], tensors[i], hidden[i], loss_chunk_rows);
      } else {
        hidden[i] = model_.part(part)
                        .forward(hidden[i], tensors[i], false, nn::SaveMode::kInputOnly)
                        .output;
      }
    };
    if (gathers_) {
      for (size_t i = 0; i < batches.size(); ++i) receive(i);
      with_weights(parts, [&](int part) {
        for (size_t i = 0; i < turns; ++i) run(part, i);
      });
      for (size_t i = 0; i < batches.size(); ++i) send(i);
    } else {
      for (size_t i = 0; i < turns; ++i) {
        if (i < batches.size()) receive(i);
        for (const int part : parts) run(part, i);
        if (i < batches.size()) send(i);
      }
    }
  }
  for (const comm::Group::Pending& work : sent) work->wait(queue);
  return results;
}

void StageEvaluation::run_experts(int part, const nn::BatchTensors* batch, at::Tensor& hidden) {
  device::Queue& queue = device_.compute_queue();
  const auto wait = [&](const SpreadExperts::Transfers& transfers) {
    for (const comm::Group::Pending& work : transfers) work->wait(queue);
  };
  const int layer = model_.spec().parts[static_cast<size_t>(part)].layer;
  nn::MoeFlow empty;
  if (batch == nullptr) {
    const auto options = at::TensorOptions().device(model_.store().device());
    const auto experts = static_cast<size_t>(
        model_.spec().layers[static_cast<size_t>(layer)].moe.value().num_experts);
    empty.rows.offsets.assign(experts + 1, 0);
    empty.weights = at::empty({0, 1}, options.dtype(at::kFloat));
    empty.row_weights = at::empty({0}, options.dtype(at::kFloat));
    hidden = at::empty({0, model_.spec().hidden}, options.dtype(model_.store().compute_dtype()));
  }
  nn::MoeFlow& own = batch == nullptr ? empty : (*batch->moe)[layer];
  SpreadExperts experts(model_.part(part), *expert_group_);
  wait(experts.send_counts(own, queue));
  wait(experts.send_rows(hidden, own, queue));
  own.row_weights.reset();
  for (size_t source = 0; source < experts.num_sources(); ++source)
    experts.forward(source, false, nn::SaveMode::kInputOnly);
  wait(experts.return_rows(hidden, queue));
}

// A part's weights come while the one before it is computed.
void StageEvaluation::with_weights(const std::vector<int>& parts,
                                   const std::function<void(int)>& work) {
  const auto each_read = [&](size_t at, const std::function<void(int)>& call) {
    call(parts[at]);
    if (parts[at] == model_.spec().head_part() && model_.spec().tied_embeddings) call(0);
  };
  if (!parts.empty()) each_read(0, [&](int part) { weights_.begin(part); });
  for (size_t at = 0; at < parts.size(); ++at) {
    if (at + 1 < parts.size()) each_read(at + 1, [&](int part) { weights_.begin(part); });
    each_read(at, [&](int part) { weights_.wait(part); });
    work(parts[at]);
    each_read(at, [&](int part) { weights_.drop(part); });
  }
}

}  // namespace trireme::execute
