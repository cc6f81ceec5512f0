#include "trireme/execute/recorded_step.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::execute {
namespace {

/// Where its documents begin is read on the host.
bool is_static(const nn::BatchTensors& batch) {
  return std::ranges::all_of(batch.segments, [](const auto& row) { return row.size() == 1; });
}

}  // namespace

void RecordedStep::begin_step(const model::ModelSpec& spec, const plan::Program& program) {
  under_way_.clear();
  num_recorded_ = 0;
  program_ = &program;
  work_ = plan::recorded_work(spec, program);
  runs_.clear();
  for (const plan::RecordedRun& run : work_.runs) runs_[run.first] = &run;
  const plan::Strategy& strategy = program.strategy;
  std::string text = fmt::format("{} x {}, {}", strategy.micro, strategy.seq_len, work_.num_places);
  for (const auto& [micro_batch, alike] : work_.alike) text += alike;
  records_ = text == program_text_;
  if (text == program_text_) return;
  program_text_ = std::move(text);
  recorded_.clear();
  kept_.clear();
  accumulators_.clear();
  memory_.reset();
}

const plan::RecordedRun* RecordedStep::run_at(int instruction) const {
  if (!records_) return nullptr;
  const auto found = runs_.find(instruction);
  return found == runs_.end() ? nullptr : found->second;
}

const at::Tensor& RecordedStep::accumulator(const plan::Buffer& buffer, int64_t elements) {
  const int place = work_.places.at(static_cast<size_t>(buffer.id));
  at::Tensor& tensor = accumulators_[{buffer.part, place}];
  if (!tensor.defined()) {
    tensor =
        at::empty({elements}, at::TensorOptions().dtype(at::kFloat).device(device_.torch_device()));
  }
  return tensor;
}

RecordedStep::Recorded* RecordedStep::like(const plan::RecordedRun& run,
                                           const nn::BatchTensors& batch) {
  const auto [at, is_first] = under_way_.try_emplace(run.micro_batch, nullptr, 0);
  if (is_first && is_static(batch)) at->second.first = &recorded_[work_.alike.at(run.micro_batch)];
  return at->second.first;
}

at::Tensor& RecordedStep::kept(const plan::Buffer& buffer, const at::Tensor& like) {
  at::Tensor& tensor = kept_[{buffer.kind, buffer.part}];
  if (!tensor.defined()) tensor = at::empty_like(like);
  return tensor;
}

bool RecordedStep::run(const plan::RecordedRun& run, const Access& access) {
  Recorded* recorded = like(run, *access.batch);
  if (recorded == nullptr) return false;
  device::Queue& queue = device_.compute_queue();
  const auto buffer = [&](int id) -> const plan::Buffer& {
    return program_->buffers.at(static_cast<size_t>(id));
  };
  for (const int id : run.takes) {
    const at::Tensor given = access.tensor(buffer(id));
    device_.copy(kept(buffer(id), given), given, queue);
  }
  if (!positions_.defined() || positions_.sizes() != access.batch->positions.sizes())
    positions_ = at::empty_like(access.batch->positions);
  if (access.batch->positions.const_data_ptr() != positions_.const_data_ptr())
    device_.copy(positions_, access.batch->positions, queue);

  // All are [rows, seq_len, hidden], and the first run takes the embedding's.
  TRIREME_CHECK(!kept_.empty(), "a micro-batch's first recorded run takes nothing");
  for (const int id : run.gives) kept(buffer(id), kept_.begin()->second);
  size_t& done = under_way_.at(run.micro_batch).second;
  if (done == recorded->size()) {
    for (const int id : run.takes) access.tensor(buffer(id)) = kept(buffer(id), {});
    access.batch->positions = positions_;
    if (memory_ == nullptr) memory_ = device_.new_graph_memory();
    const auto work = [&] {
      access.work();
      for (const int id : run.gives)
        device_.copy(kept(buffer(id), {}), access.tensor(buffer(id)), device_.compute_queue());
    };
    try {
      recorded->push_back(device_.record(work, memory_));
    } catch (...) {
      program_text_.clear();  // what its micro-batch has recorded so far is of no use: all anew
      throw;
    }
    ++num_recorded_;
  }
  recorded->at(done)->replay(queue);
  for (const int id : run.gives) access.tensor(buffer(id)) = kept(buffer(id), {});
  ++done;
  return true;
}

void share_time(const plan::Program& program, const plan::RecordedRun& run,
                std::vector<plan::Measurement>& measurements) {
  const auto flops = [&](int id) { return program.instructions[static_cast<size_t>(id)].flops; };
  const plan::Measurement whole = measurements[static_cast<size_t>(run.first)];
  double all = 0.0;
  for (int id = run.first; id < run.end; ++id) all += flops(id);
  double at = whole.start_s;
  for (int id = run.first; id < run.end; ++id) {
    plan::Measurement& measured = measurements[static_cast<size_t>(id)];
    measured.start_s = at;
    measured.duration_s = whole.duration_s * flops(id) / std::max(all, 1.0);
    at += measured.duration_s;
  }
}

}  // namespace trireme::execute
