#include "trireme/execute/executor.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/device/device.h"
#include "trireme/device/out_of_memory.h"
#include "trireme/execute/context_steps.h"
#include "trireme/execute/evaluation.h"
#include "trireme/execute/expert_exchange.h"
#include "trireme/execute/lane_gradients.h"
#include "trireme/execute/micro_batch.h"
#include "trireme/execute/out_of_memory.h"
#include "trireme/execute/rank_exchange.h"
#include "trireme/execute/recorded_step.h"
#include "trireme/execute/save_mode.h"
#include "trireme/execute/selection_bias.h"
#include "trireme/execute/state_visits.h"
#include "trireme/execute/step_copies.h"
#include "trireme/execute/step_counts.h"
#include "trireme/execute/step_figures.h"
#include "trireme/execute/step_timer.h"
#include "trireme/execute/tensor_step.h"
#include "trireme/optim/optimizer.h"

namespace trireme::execute {
/// What lives during one step. Objects are found by what they belong to; the program's frees say
/// when they go.
class Executor::Step {
 public:
  Step(Executor& executor, const plan::Program& program, const StepInput& input)
      : model_(executor.model_),
        store_(executor.store_),
        optimizer_(executor.optimizer_),
        program_(program),
        input_(input),
        device_(device::get_device(executor.store_.device().str())),
        copies_(executor.copies_for(program, device_)),
        figures_(executor.store_.spec(), program),
        micro_batches_(program, input.micro_batches) {
    const plan::Strategy& strategy = program.strategy;
    const auto modules = static_cast<size_t>(model_.spec().num_mtp_layers);
    counted(count(input.micro_batches, modules));
    if (!program.groups.empty()) {
      TRIREME_CHECK(executor.exchange_ != nullptr, "a program of {} ranks needs a world",
                    program.groups.front().size());
      exchange_ = executor.exchange_.get();
      exchange_->begin_step(program);
    }

    if (strategy.record) {
      if (executor.recorded_ == nullptr)
        executor.recorded_ = std::make_unique<RecordedStep>(device_);
      recorded_ = executor.recorded_.get();
      recorded_->begin_step(store_.spec(), program);
    }

    gradients_.emplace(store_, program, recorded_);
    if (!program.expert_lanes.empty())
      shared_.push_back(std::make_unique<ExpertExchange>(model_, program, *exchange_,
                                                         micro_batches_, *gradients_));
    if (executor.split_ != nullptr)
      shared_.push_back(std::make_unique<TensorStep>(
          *executor.split_, store_, program, *exchange_, micro_batches_, *gradients_, figures_,
          [this] { return 1.0 / total_targets_.front(); }));
    if (strategy.parallel.cp > 1)
      shared_.push_back(
          std::make_unique<ContextSteps>(model_, program, *exchange_, micro_batches_));
    result_.measurements.resize(program.instructions.size());
  }

  StepResult run() {
    const double begin = steady_clock().now_s();
    StepTimer timer(device_);
    int64_t peak = 0;
    int64_t reserved = 0;
    for (size_t at = 0; at < program_.instructions.size(); ++at) {
      const plan::Instruction& instruction = program_.instructions[at];
      const plan::RecordedRun* run =
          recorded_ == nullptr ? nullptr : recorded_->run_at(instruction.id);
      const device::Range range(device_, [&] {
        std::string name = plan::describe(model_.spec(), instruction);
        if (run != nullptr)
          name += " to " + plan::describe(model_.spec(),
                                          program_.instructions[static_cast<size_t>(run->end) - 1]);
        return name;
      });
      try {
        if (run != nullptr && run_recorded(*run, timer)) {
          at = static_cast<size_t>(run->end) - 1;
        } else {
          run_one(instruction, timer);
        }
      } catch (const std::exception& error) {
        const auto refusal = device::memory_refusal(error);
        if (!refusal) throw;
        throw out_of_memory(store_.spec(), program_, instruction, *refusal,
                            device_.memory().peak_allocated_bytes);
      }
      const device::MemoryStatistics memory = device_.memory();
      for (auto id = static_cast<size_t>(instruction.id); id <= at; ++id) {
        result_.measurements[id].held_bytes_after = memory.allocated_bytes;
        result_.measurements[id].peak_bytes = memory.peak_allocated_bytes;
      }
      peak = std::max(peak, memory.peak_allocated_bytes);
      reserved = std::max(reserved, memory.peak_reserved_bytes);
    }
    copies_.wait_for_step();
    timer.read(result_.measurements);
    for (const plan::RecordedRun* run : replayed_) share_time(program_, *run, result_.measurements);
    result_.runs_replayed = static_cast<int64_t>(replayed_.size());
    if (recorded_ != nullptr) result_.runs_recorded = recorded_->num_recorded();
    copies_.read_step_before(timer, result_.measurements);
    if (exchange_ != nullptr) {
      exchange_->place_times(begin, result_.measurements);
      if (result_.applied) exchange_->owe_weights();
    }
    result_.peak_allocated_bytes = peak;
    result_.peak_reserved_bytes = reserved;
    result_.seconds = steady_clock().now_s() - begin;
    return std::move(result_);
  }

 private:
  void run_one(const plan::Instruction& instruction, StepTimer& timer) {
    if (exchange_ != nullptr) exchange_->check();
    wait_for_queues(instruction);
    device::Queue& queue = copies_.queue_of(instruction);
    timer.start(queue);
    copies_.release(instruction);
    device_.reset_peak_memory();
    compute(instruction);
    timer.stop(queue);
    copies_.hand_over(instruction, timer);
    copies_.issued(instruction);
  }

  /// False: the run is to be run as any other.
  bool run_recorded(const plan::RecordedRun& run, StepTimer& timer) {
    const auto each = [&](const auto& call) {
      for (int id = run.first; id < run.end; ++id)
        call(program_.instructions[static_cast<size_t>(id)]);
    };
    if (exchange_ != nullptr) exchange_->check();
    each([&](const plan::Instruction& instruction) { wait_for_queues(instruction); });
    device::Queue& queue = device_.compute_queue();
    MicroBatch& at = micro(run.micro_batch);
    RecordedStep::Access access;
    access.batch = &at.batch;
    access.tensor = [&](const plan::Buffer& buffer) -> at::Tensor& {
      const auto part = static_cast<size_t>(buffer.part);
      return buffer.kind == plan::BufferKind::kHidden ? at.hidden.at(part) : at.gradient.at(part);
    };
    // What stays where it is is not made while work is recorded.
    each([&](const plan::Instruction& instruction) { make_all(instruction); });
    bool computed = false;
    access.work = [&] {
      computed = true;
      each([&](const plan::Instruction& instruction) { compute(instruction); });
    };
    timer.start(queue);
    device_.reset_peak_memory();
    if (!recorded_->run(run, access)) {
      timer.drop_start();
      return false;
    }
    timer.stop(queue);
    each([&](const plan::Instruction& instruction) {
      if (!computed) pass(instruction);
      if (instruction.id != run.first) timer.repeat_stop();
      copies_.issued(instruction);
    });
    replayed_.push_back(&run);
    return true;
  }

  /// What an instruction changes beside what recorded work does.
  void pass(const plan::Instruction& instruction) {
    if (instruction.kind == plan::OpKind::kBackwardWeight)
      gradients_->sink_of(model_.part(instruction.part), instruction.lane);
    free_all(instruction);
  }

  void make_all(const plan::Instruction& instruction) {
    for (const int buffer : instruction.makes) make(program_.buffers[static_cast<size_t>(buffer)]);
  }
  void free_all(const plan::Instruction& instruction) {
    for (const int buffer : instruction.frees) free(program_.buffers[static_cast<size_t>(buffer)]);
  }

  /// An instruction's work, without the moments around it.
  void compute(const plan::Instruction& instruction) {
    make_all(instruction);
    execute(instruction);
    free_all(instruction);
  }

  MicroBatch& micro(int64_t index) { return micro_batches_.at(index); }

  // Only gradient accumulators and room for weights are made here: every other buffer is an instruction's result.
  void make(const plan::Buffer& buffer) {
    if (buffer.kind == plan::BufferKind::kGatheredWeights) store_.make_room(buffer.part);
    if (buffer.kind == plan::BufferKind::kParameterGradient) gradients_->make(buffer);
  }

  void free(const plan::Buffer& buffer) {
    for (const auto& shared : shared_) {
      if (shared->free(buffer)) return;
    }
    if (micro_batches_.free(buffer)) return;
    switch (buffer.kind) {
      case plan::BufferKind::kParameterGradient:
        gradients_->free(buffer);
        break;
      case plan::BufferKind::kGradientSlice:
        // Others end in an addition.
        if (buffer.lane == program_.block_lanes().first) exchange_->drop_slice(buffer.part);
        break;
      case plan::BufferKind::kReplicaSlice:
        exchange_->drop_replica_slice(buffer.part);
        break;
      case plan::BufferKind::kGatheredWeights:
        store_.drop(buffer.part);
        break;
      case plan::BufferKind::kGradientPieces:
      case plan::BufferKind::kSaved:  // the graph frees its tensors as its backward passes them
      case plan::BufferKind::kDelayed:
      case plan::BufferKind::kOptimizerState:
      default:  // of micro-batches, and of parts that ranks have between them
        break;
    }
  }

  void execute(const plan::Instruction& instruction) {
    for (const auto& shared : shared_) {
      if (!shared->executes(instruction)) continue;
      shared->execute(instruction);
      return;
    }
    const int part = instruction.part;
    const auto at_part = static_cast<size_t>(std::max(part, 0));
    switch (instruction.kind) {
      case plan::OpKind::kLoadBatch:
        load(micro(instruction.micro_batch));
        break;
      case plan::OpKind::kForward: {
        MicroBatch& at = micro(instruction.micro_batch);
        const at::Tensor hidden = part > 0 ? at.hidden[at_part - 1] : at::Tensor();
        if (store_.spec().is_head(part)) {
          at.states[at_part] = model_.head(part).normalize(hidden);
          at.hidden[at_part] = at.states[at_part].normed;
          break;
        }
        nn::ForwardResult result =
            model_.part(part).forward(hidden, at.batch, true, to_save_mode(instruction.recompute));
        at.hidden[at_part] = std::move(result.output);
        at.graphs[at_part] = std::move(result.graph);
        if (model_.part(part).spec().kind == model::PartKind::kRouter)
          add_router(instruction.lane, model_.part(part).spec().layer, at.batch);
        break;
      }
      case plan::OpKind::kRecompute:
        graph(instruction).recompute();
        break;
      case plan::OpKind::kLoss:
        loss(micro(instruction.micro_batch), instruction.lane, part);
        break;
      case plan::OpKind::kBackwardInput: {
        MicroBatch& at = micro(instruction.micro_batch);
        at.gradient.at(at_part - 1) = graph(instruction).backward_input(at.gradient[at_part]);
        if (store_.part_parameters(part).empty()) at.graphs[at_part].reset();
        break;
      }
      case plan::OpKind::kBackwardWeight: {
        MicroBatch& at = micro(instruction.micro_batch);
        if (part == 0) graph(instruction).backward_input(std::move(at.gradient[0]));
        // The graph holds it and frees it as soon as it is used.
        if (frees_gradient_of_its_part(instruction)) at.gradient[at_part].reset();
        nn::GradientSink sink = gradients_->sink_of(model_.part(part), instruction.lane);
        graph(instruction).backward_weight(sink);
        at.graphs[at_part].reset();
        break;
      }
      case plan::OpKind::kCombineLanes:
        gradients_->combine(instruction);
        break;
      case plan::OpKind::kCountTargets:
        exchange_->count_targets(instruction, counts_.values());
        break;
      case plan::OpKind::kReduceGradients:
        exchange_->reduce_gradients(instruction,
                                    [&](int64_t first) { return gradients_->of(first, part); });
        break;
      case plan::OpKind::kCombinePieces:
        exchange_->combine_pieces(instruction);
        break;
      case plan::OpKind::kGatherGradients:
        exchange_->gather_gradients(instruction, instruction.of_replicas
                                                     ? exchange_->slice(part)
                                                     : gradients_->finished(part));
        break;
      case plan::OpKind::kGatherParameters:
        exchange_->gather_parameters(instruction);
        break;
      case plan::OpKind::kReleaseParameters:
        break;
      case plan::OpKind::kSumSquares:
        figures_.sum_squares([&](int of) { return gradient_slice(of); });
        break;
      case plan::OpKind::kReduceFigures:
        ask_to_stop();
        exchange_->reduce_figures(instruction, figures_.mine());
        break;
      case plan::OpKind::kGradNorm:
        norm();
        break;
      case plan::OpKind::kOptimizerStep:
        if (result_.applied) optimize(part);
        break;
      case plan::OpKind::kSend:
        exchange_->send(instruction, micro_batches_.message(instruction));
        break;
      case plan::OpKind::kReceive:
        micro_batches_.message(instruction) = exchange_->receive(instruction);
        break;
      case plan::OpKind::kOffload:
        copies_.offload(instruction, [&](const plan::Buffer& buffer) {
          return micro_batches_.activations(buffer);
        });
        break;
      case plan::OpKind::kReload:
        copies_.reload(instruction);
        break;
      case plan::OpKind::kExchangeCounts:
      case plan::OpKind::kExchangeRows:
      case plan::OpKind::kExchangeContext:
      case plan::OpKind::kGatherTokens:
      case plan::OpKind::kScatterSums:
      case plan::OpKind::kGatherRows:
      case plan::OpKind::kShareGradients:
      case plan::OpKind::kAddShares:
        TRIREME_CHECK(false, "{} of a part that one rank has", to_string(instruction.kind));
      case plan::OpKind::kCommit:
        break;
    }
  }

  void wait_for_queues(const plan::Instruction& instruction) {
    for (const int other : instruction.depends_on) {
      if (exchange_ != nullptr) wait_for_transfer(instruction, other);
      copies_.wait_for(instruction, other);
    }
  }

  void loss(MicroBatch& at, int64_t lane_index, int part) {
    const auto at_part = static_cast<size_t>(part);
    const model::ModelSpec& spec = store_.spec();
    const auto depth = static_cast<size_t>(spec.mtp_depth(part));
    nn::HeadPart& head = model_.head(part);
    nn::GradientSink sink = gradients_->sink_of(head, lane_index);
    nn::LossOptions options;
    options.gradient_scale = 1.0 / total_targets_[depth];
    if (depth > 0) options.gradient_scale *= spec.mtp_loss_weight / spec.num_mtp_layers;
    options.chunk_rows = program_.strategy.loss_chunk_rows;
    if (at.states[at_part].normed.defined()) options.state = &at.states[at_part];
    options.d_normed = at.gradient[at_part];
    nn::LossResult loss = head.loss(at.hidden[at_part - 1], at.batch, std::move(options), &sink);
    figures_.add_loss(lane_index, depth, loss.loss_sum);
    at.gradient[at_part - 1] = std::move(loss.grad_hidden);
  }

  void load(MicroBatch& at) {
    const plan::Strategy& strategy = program_.strategy;
    const bool in_pieces = strategy.parallel.cp > 1;
    at.batch = to_tensors(in_pieces ? pieces_of(*at.input, program_) : *at.input,
                          store_.spec().num_mtp_layers, store_.device());
    if (in_pieces) place_pieces(at.batch, program_);
    at.batch.share_of_step =
        1.0 / static_cast<double>(strategy.micro_batches() * strategy.parallel.cp);
    at.batch.expert_load = input_.expert_load;
    at.batch.experts_are_spread = !program_.expert_lanes.empty();
  }

  /// Adds a router's figures; a lane's micro-batches come in order, so the sums are the same each time.
  void add_router(int64_t lane, int layer, const nn::BatchTensors& batch) {
    figures_.add_router(lane, layer, batch.moe->at(layer).statistics, batch.share_of_step);
  }

  bool frees_gradient_of_its_part(const plan::Instruction& instruction) const {
    return std::ranges::any_of(instruction.frees, [&](int id) {
      const plan::Buffer& buffer = program_.buffers[static_cast<size_t>(id)];
      return buffer.kind == plan::BufferKind::kHiddenGradient && buffer.part == instruction.part;
    });
  }

  nn::PartGraph& graph(const plan::Instruction& instruction) {
    auto& graph = micro(instruction.micro_batch).graphs.at(static_cast<size_t>(instruction.part));
    TRIREME_CHECK(graph != nullptr, "{} before its forward",
                  plan::describe(store_.spec(), instruction));
    return *graph;
  }

  /// As late as all ranks can still learn of it in this step.
  void ask_to_stop() {
    if (input_.stop_requested && input_.stop_requested()) figures_.request_stop();
  }

  void norm() {
    if (exchange_ != nullptr) {
      figures_.take(exchange_->figures());
    } else {
      ask_to_stop();
      figures_.sum_squares([&](int part) { return gradients_->finished(part); });
    }
    result_.stop_requested = figures_.stop_requested();
    bool finite = true;
    for (size_t depth = 0; depth < total_targets_.size(); ++depth) {
      const double loss = figures_.loss_sum(depth) / total_targets_[depth];
      finite = finite && std::isfinite(loss);
      if (depth == 0) {
        result_.loss = loss;
      } else {
        result_.mtp_losses.push_back(loss);
      }
    }
    result_.grad_norm = figures_.gradient_norm();
    result_.routers = figures_.routers();
    result_.applied = finite && std::isfinite(result_.grad_norm);
  }

  // ---- ranks ---------------------------------------------------------------------------------------

  /// Takes in what this rank's micro-batches hold, or all ranks' once they have said so.
  void counted(const StepCounts& counts) {
    counts_ = counts;
    result_.num_targets = counts.targets[0];
    result_.num_bytes = counts.bytes;
    result_.tokens = counts.tokens;
    std::vector<int64_t> targets = counts.targets;
    if (input_.total_targets > 0) targets[0] = input_.total_targets;
    if (!input_.total_mtp_targets.empty()) {
      TRIREME_CHECK(input_.total_mtp_targets.size() + 1 == targets.size(),
                    "{} totals for {} modules", input_.total_mtp_targets.size(),
                    targets.size() - 1);
      std::ranges::copy(input_.total_mtp_targets, targets.begin() + 1);
    }
    result_.mtp_targets.assign(targets.begin() + 1, targets.end());
    total_targets_.clear();
    for (const int64_t count : targets)
      total_targets_.push_back(static_cast<double>(std::max<int64_t>(count, 1)));
  }

  void wait_for_transfer(const plan::Instruction& instruction, int other) {
    const plan::Instruction& transfer = program_.instructions[static_cast<size_t>(other)];
    if (transfer.resource != plan::Resource::kCommunication) return;
    exchange_->wait(other, copies_.queue_of(instruction));
    if (transfer.kind != plan::OpKind::kCountTargets || has_counted_) return;
    has_counted_ = true;
    counted(StepCounts::from_values(exchange_->counted()));
  }

  bool has_slices(int part) const { return program_.slices[static_cast<size_t>(part)].size() > 2; }
  bool shares_states(int part) const {
    return has_slices(part) && program_.strategy.parallel.zero > 0;
  }

  at::Tensor gradient_slice(int part) {
    return has_slices(part) ? exchange_->slice(part).to(at::kFloat) : gradients_->finished(part);
  }

  void optimize(int part) {
    optim::PartBuffers buffers;
    buffers.weights = store_.part_master(part);
    // What is gathered is rounded then.
    if (store_.has_compute_copy() && !store_.is_gathered(part))
      buffers.compute = store_.part_compute(part);
    if (shares_states(part)) {
      const std::vector<int64_t>& bounds = program_.slices[static_cast<size_t>(part)];
      const auto mine = static_cast<size_t>(program_.slice_of(part));
      const int64_t count = bounds[mine + 1] - bounds[mine];
      buffers.gradients = gradient_slice(part);
      if (store_.has_whole_master(part))
        buffers.weights = buffers.weights.narrow(0, bounds[mine], count);
      if (buffers.compute.defined())
        buffers.compute = buffers.compute.narrow(0, bounds[mine], count);
    } else {
      buffers.gradients = gradients_->finished(part);
    }
    if (program_.strategy.offload_optimizer) buffers.states = copies_.states(part);
    optim::StepParams params;
    params.lr = input_.learning_rate;
    params.gradient_scale = optim::clip_scale(result_.grad_norm, input_.clip_norm);
    params.step = input_.step + 1;
    optimizer_.step(part, buffers, params);
    const model::PartSpec& where = store_.spec().parts[static_cast<size_t>(part)];
    if (where.kind == model::PartKind::kRouter)
      move_selection_bias(store_, part, result_.routers.at(where.layer).load);
  }

  nn::Model& model_;
  nn::ParameterStore& store_;
  optim::Optimizer& optimizer_;
  const plan::Program& program_;
  const StepInput& input_;
  device::Device& device_;
  StepCopies copies_;
  StepFigures figures_;
  RankExchange* exchange_ = nullptr;  ///< of one rank: none
  RecordedStep* recorded_ = nullptr;  ///< of a program that records
  std::vector<const plan::RecordedRun*> replayed_;
  StepCounts counts_;  ///< of this rank's micro-batches, then of all ranks'
  bool has_counted_ = false;
  std::vector<double> total_targets_;  ///< of the head, then of the modules that predict further
  MicroBatches micro_batches_;
  std::optional<LaneGradients> gradients_;
  std::vector<std::unique_ptr<SharedParts>> shared_;
  StepResult result_;
};

Executor::Executor(nn::Model& model, nn::ParameterStore& store, optim::Optimizer& optimizer,
                   comm::World* world)
    : model_(model), store_(store), optimizer_(optimizer) {
  if (world != nullptr) exchange_ = std::make_unique<RankExchange>(*world, store);
  if (store.spec().tensor.is_cut()) split_ = std::make_unique<nn::SplitModel>(model);
  TRIREME_CHECK(store.master_dtype() == at::kFloat, "training needs float32 masters");
}

Executor::~Executor() {
  try {
    if (visits_ != nullptr) visits_->settle();
  } catch (const std::exception& error) {
    log::warning("optimizer states that were on their way to the host are lost: {}", error.what());
  }
}

StepCopies Executor::copies_for(const plan::Program& program, device::Device& device) {
  if (!has_copies(program)) return {program, device, nullptr, nullptr};
  if (copies_ == nullptr) {
    copies_ = std::make_unique<DeviceCopies>(device);
    visits_ = std::make_unique<StateVisits>(optimizer_, device, *copies_);
  }
  return {program, device, copies_.get(), visits_.get()};
}

void Executor::settle() {
  if (exchange_ != nullptr) exchange_->gather_now();
  if (visits_ != nullptr) visits_->settle();
}

StepResult Executor::run_step(const plan::Program& program, const StepInput& input) {
  // Another program than the step before's may find other states under way than it knows.
  if (visits_ != nullptr && !visits_->are_leaving(plan::parts_carried_in(program)))
    visits_->settle();
  return Step(*this, program, input).run();
}

}  // namespace trireme::execute
