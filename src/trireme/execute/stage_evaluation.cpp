#include "trireme/execute/stage_evaluation.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/cluster/mesh.h"

namespace trireme::execute {

StageEvaluation::StageEvaluation(nn::Model& model, const plan::Program& program, comm::World& world)
    : model_(model),
      world_(world),
      device_(device::get_device(model.store().device().str())),
      stages_(program.stages),
      has_head_(program.has(model.spec().head_part())) {
  TRIREME_CHECK(!stages_.empty(), "a program without stages");
  const cluster::Mesh mesh(plan::mesh_shape(program.strategy.parallel));
  const auto last = static_cast<size_t>(program.pipeline_rank_of(model.spec().head_part()));
  for (const std::vector<int>& members : mesh.groups(cluster::Dimension::kPipeline)) {
    auto group = world.make_group(members, device_);
    if (group != nullptr) {
      group_ = std::move(group);
      pipeline_ = static_cast<int>(last_ranks_.size());
    }
    last_ranks_.push_back(members[last]);
  }
}

// Stage by stage for all batches, so that what two ranks send each other comes in one order, and the next rank begins with the
// first batch while this one goes on with the second.
std::vector<EvaluationResult> StageEvaluation::evaluate(const std::vector<data::Batch>& batches,
                                                        int64_t loss_chunk_rows) {
  device::Queue& queue = device_.compute_queue();
  const int head = model_.spec().head_part();
  std::vector<EvaluationResult> results(batches.size());
  std::vector<at::Tensor> hidden(batches.size());
  std::vector<nn::BatchTensors> tensors;
  for (const data::Batch& batch : batches)
    tensors.push_back(to_tensors(batch, 0, model_.store().device()));
  std::vector<comm::Group::Pending> sent;
  for (size_t s = 0; s < stages_.size(); ++s) {
    const plan::PipelineStage& stage = stages_[s];
    if (stage.rank != group_->rank()) continue;
    for (size_t i = 0; i < batches.size(); ++i) {
      world_.check();
      if (s > 0 && stages_[s - 1].rank != stage.rank) {
        hidden[i] = at::empty({batches[i].rows, batches[i].seq_len, model_.spec().hidden},
                              at::TensorOptions()
                                  .dtype(model_.store().compute_dtype())
                                  .device(model_.store().device()));
        group_->receive(hidden[i], stages_[s - 1].rank, queue)->wait(queue);
      }
      for (int part = stage.first_part; part < std::min(stage.end_part, head); ++part) {
        hidden[i] = model_.part(part)
                        .forward(hidden[i], tensors[i], false, nn::SaveMode::kInputOnly)
                        .output;
      }
      if (stage.end_part > head) {
        results[i] = evaluate_head(model_, batches[i], tensors[i], hidden[i], loss_chunk_rows);
      } else if (stages_[s + 1].rank != stage.rank) {
        sent.push_back(group_->send(hidden[i], stages_[s + 1].rank, queue));
      }
    }
  }
  for (const comm::Group::Pending& work : sent) work->wait(queue);
  return results;
}

}  // namespace trireme::execute
