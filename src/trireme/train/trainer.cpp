#include "trireme/train/trainer.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "trireme/base/clock.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/log.h"
#include "trireme/base/temporary_file.h"
#include "trireme/checkpoint/checkpoint_writer.h"
#include "trireme/data/loader.h"
#include "trireme/device/device.h"
#include "trireme/execute/evaluation.h"
#include "trireme/execute/executor.h"
#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/out_of_memory.h"
#include "trireme/execute/rank_shares.h"
#include "trireme/execute/stage_evaluation.h"
#include "trireme/plan/simulate.h"
#include "trireme/train/artifacts.h"
#include "trireme/train/beginning.h"
#include "trireme/train/memory_advice.h"
#include "trireme/train/progress.h"
#include "trireme/train/rank_samples.h"
#include "trireme/train/rank_state.h"
#include "trireme/train/run_folder.h"
#include "trireme/train/step_benchmark.h"
#include "trireme/train/tensorboard.h"
#include "trireme/train/train_state.h"
#include "trireme/train/validation.h"

namespace trireme::train {

namespace {

namespace fs = std::filesystem;

/// Names the keys in which two configs differ; "" if they say the same.
std::string differing_config_keys(const std::string& theirs, const std::string& ours) {
  const Json a = parse_json(theirs, "the checkpoint's config.json");
  const Json b = parse_json(ours, "the run's config.json");
  std::set<std::string> keys;
  for (const Json* config : {&a, &b}) {
    for (const auto& [key, value] : config->items()) {
      if (!a.contains(key) || !b.contains(key) || a.at(key) != b.at(key)) keys.insert(key);
    }
  }
  return fmt::format("{}", fmt::join(keys, ", "));
}

std::string to_text(const checkpoint::Extent& extent) {
  return fmt::format("{} {}", extent.bytes, extent.tensors);
}

checkpoint::Extent extent_from(const std::string& text) {
  checkpoint::Extent extent;
  std::istringstream(text) >> extent.bytes >> extent.tensors;
  return extent;
}

/// One run from its checkpoint, or from step 0, to its end. Used by train() only.
class Run {
 public:
  /// `folder`: of rank 0, which alone writes all but its share of checkpoints; null elsewhere.
  Run(Preflight preflight, const TrainOptions& options, RunFolder* folder,
      const std::optional<checkpoint::Checkpoint>& from)
      : p_(std::move(preflight)),
        c_(p_.run.config),
        options_(options),
        world_(options.world != nullptr ? *options.world : *alone_),
        folder_(folder),
        store_(p_.local,
               p_.precision.precision == plan::Precision::kBf16 ? at::kBFloat16 : at::kFloat,
               at::kFloat, device::get_device(c_.device.name).torch_device(),
               execute::master_shares(p_.local, p_.program), p_.program.has_part,
               execute::gathered_parts(p_.local, p_.program)),
        model_(store_),
        optimizer_(optim::make_optimizer(
            optimizer_of(c_), p_.local, store_.device(),
            c_.memory.offload_optimizer ? optim::StatePlace::kHost : optim::StatePlace::kDevice,
            execute::state_shares(p_.local, p_.program))),
        executor_(model_, store_, *optimizer_, options.world),
        gather_(p_.model.spec, store_, optimizer_of(c_), *optimizer_, world_),
        ramp_(ramp_of(c_)),
        schedule_(schedule_of(c_)),
        progress_(c_.log.every, options.quiet || folder == nullptr) {
    make_writer();
    state_.precision = plan::to_string(p_.precision.precision);
    state_.data = hash_text(p_.data.train->fingerprint()) +
                  (p_.data.valid == nullptr ? "" : hash_text(p_.data.valid->fingerprint()));
    state_.arithmetic = execute::arithmetic_name();
    if (options.world != nullptr) agree_on_run(p_, state_, options.version, world_);
    if (from) {
      resume(*from);
    } else {
      initialize();
    }
  }

  TrainResult run();

 private:
  bool done() const { return state_.step >= c_.schedule.steps; }
  bool is_last(int64_t step) const { return step >= c_.schedule.steps; }
  void initialize();
  void resume(const checkpoint::Checkpoint& from);
  void loop();
  const plan::Program& program_of(int64_t sequences);
  execute::StepResult step(data::Loader& loader, StepMetrics& metrics);
  execute::StepResult run_step(const plan::Program& program, const execute::StepInput& input);
  void judge(const execute::StepResult& result, StepMetrics& metrics);
  std::optional<Validation> validate(int64_t sequences);
  void record(const StepMetrics& metrics);
  void save();
  void make_writer();
  bool keep_what_is_good();
  void write_report(std::vector<ReportSample> samples);
  std::vector<ReportSample> sample_from(const WholeState& whole);
  TrainResult finish();
  /// No rank has the whole model: it has stages, shares their parts, or gathers weights for their use.
  bool is_spread() const {
    return p_.local.tensor.is_cut() || !p_.program.stages.empty() ||
           !p_.program.expert_lanes.empty() ||
           !execute::gathered_parts(p_.model.spec, p_.program).empty();
  }
  /// The same on all ranks, who give their parts for it.
  bool samples_from_all() const {
    return is_spread() && options_.sample && !c_.sample.prompts.empty();
  }

  Preflight p_;
  const RunConfig c_;
  const TrainOptions& options_;
  const std::unique_ptr<comm::World> alone_ = comm::single_rank();
  comm::World& world_;
  RunFolder* const folder_;  ///< rank 0's
  nn::ParameterStore store_;
  nn::Model model_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  execute::Executor executor_;
  StateGather gather_;
  std::unique_ptr<execute::StageEvaluation> stages_;  ///< if it is_spread(); from its first use on
  const optim::BatchRampSpec ramp_;
  const optim::ScheduleSpec schedule_;
  Progress progress_;
  std::unique_ptr<checkpoint::CheckpointWriter> writer_;
  TrainState state_;
  TrainState before_step_;  ///< to return to from a step that is not applied and ends the run
  int64_t saved_step_ = -1;
  double checkpoint_stall_s_ = 0.0;            ///< since the last line of metrics
  double step_seconds_ = 0.0;                  ///< running mean, for the time that is left
  std::map<int64_t, plan::Program> programs_;  ///< by sequences of the global batch
  std::optional<MetricsFile> metrics_file_;
  std::optional<EventFile> events_;
};

/// Rank 0 makes the folder, and the others find it.
void Run::make_writer() {
  checkpoint::CheckpointWriter::Options options;
  options.keep = static_cast<int>(c_.checkpoint.keep);
  options.rank = world_.rank();
  options.ranks = world_.size();
  options.check = [this] { world_.check(); };
  std::string made;
  if (folder_ != nullptr) {
    options.folder = folder_->checkpoints();
    writer_ = std::make_unique<checkpoint::CheckpointWriter>(options);
    made = fs::absolute(options.folder).string();
  }
  options.folder = world_.exchange(made).front();
  if (folder_ == nullptr)
    writer_ = std::make_unique<checkpoint::CheckpointWriter>(std::move(options));
}

void Run::initialize() {
  if (!p_.model.initial) {
    store_.initialize(static_cast<uint64_t>(c_.seed));
    return;
  }
  for (size_t i = 0; i < p_.model.initial->parameters.size(); ++i) {
    if (!store_.has_part(p_.model.spec.parameters[i].part)) continue;
    const checkpoint::TensorToWrite& parameter = p_.model.initial->parameters[i];
    store_.set(static_cast<int>(i), nn::stretch(parameter.make(), p_.local.parameters[i]));
    if (parameter.release) parameter.release();
  }
  store_.refresh_compute();
  log::info("weights from {}", p_.model.initial->path.string());
}

void Run::resume(const checkpoint::Checkpoint& from) {
  const TrainState now = state_;
  const std::string path = from.path().string();
  state_ = train_state_from_json(from.train_state(), path);
  TRIREME_USER_CHECK(state_.data == now.data, kData,
                     "put the data back as it was, or choose another out to start a new run",
                     "{}: data.train or data.valid is not what this run was trained on so far",
                     path);
  const std::string changed =
      differing_config_keys(from.text("config.json"), p_.model.spec.config_json);
  TRIREME_USER_CHECK(
      changed.empty(), kConfig,
      "put the model's config back as it was, or choose another out to start a new run",
      "{} is of a model whose config differs: {}", path, changed);
  TRIREME_USER_CHECK(from.text("tokenizer.json") == p_.model.tokenizer->to_json(), kConfig,
                     "put the tokenizer back as it was, or choose another out to start a new run",
                     "{}: tokenizer.path = \"{}\" is not the tokenizer that this run began with",
                     path, c_.tokenizer.path);
  if (!state_.arithmetic.empty() && state_.arithmetic != now.arithmetic) {
    log::warning(
        "the run began with {} and goes on with {}: its last bits may differ from those of a run "
        "on one kind of "
        "machine",
        state_.arithmetic, now.arithmetic);
  }
  restore(from, store_, *optimizer_, world_);
  saved_step_ = state_.step;
  log::info("resuming after step {} from {}", state_.step, from.path().string());
}

const plan::Program& Run::program_of(int64_t sequences) {
  auto found = programs_.find(sequences);
  if (found == programs_.end()) {
    plan::Strategy strategy = strategy_of(c_, p_.model.spec, p_.precision.precision);
    strategy.sequences = sequences;
    found =
        programs_.emplace(sequences, plan::build_program(p_.model.spec, strategy, world_.rank()))
            .first;
  }
  return found->second;
}

/// A step that runs out of memory is told with what would have made it fit.
execute::StepResult Run::run_step(const plan::Program& program, const execute::StepInput& input) {
  try {
    return executor_.run_step(program, input);
  } catch (const execute::StepOutOfMemory& error) {
    progress_.clear();
    const device::Device& device = device::get_device(c_.device.name);
    const int64_t cap = device.memory().cap_bytes;
    const int64_t available = cap > 0 ? cap : device.total_memory_bytes();
    const int64_t beyond = error.missing_in_plan_bytes();
    throw Error(ErrorCode::kDevice, fmt::format("step {}: {}", state_.step + 1, error.what()),
                memory_advice(memory_options(c_, p_.model.spec, p_.precision.precision,
                                             plan::simulate_in_issue_order(program).peak_bytes),
                              available, beyond));
  }
}

/// Fills in everything of `metrics` that the step itself tells.
execute::StepResult Run::step(data::Loader& loader, StepMetrics& metrics) {
  const Clock& clock = steady_clock();
  const double start = clock.now_s();
  const double exposed_before = loader.exposed_seconds();
  const int64_t faults_before = minor_page_faults();
  const int64_t sequences = optim::batch_sequences(ramp_, state_.step);
  const plan::Program& program = program_of(sequences);
  before_step_ = state_;
  execute::StepInput input;
  input.step = state_.updates;
  input.learning_rate = optim::learning_rate(schedule_, state_.step);
  input.clip_norm = c_.optim.clip;
  if (!state_.expert_load.empty()) input.expert_load = &state_.expert_load;
  input.stop_requested = interrupted;
  for (size_t m = 0; m < program.micro_batches().size(); ++m)
    input.micro_batches.push_back(loader.next());
  execute::StepResult result = run_step(program, input);

  state_.expert_load.clear();
  for (const auto& [layer, router] : result.routers) {
    state_.expert_load[layer] = router.load;
    const auto layers = static_cast<double>(result.routers.size());
    metrics.load.push_back(router.load);
    metrics.dropped += router.dropped;
    metrics.balance_loss += router.balance_loss / layers;
    metrics.z_loss += router.z_loss / layers;
    metrics.router_entropy += router.entropy / layers;
  }
  state_.step += 1;
  state_.tokens += result.tokens;
  state_.micro_batches += program.strategy.micro_batches();
  metrics.step = state_.step;
  metrics.tokens = state_.tokens;
  metrics.sequences = sequences;
  metrics.loss = result.loss;
  double mtp_sum = 0.0;
  int with_targets = 0;
  for (size_t i = 0; i < result.mtp_losses.size(); ++i) {
    if (result.mtp_targets[i] == 0) continue;
    mtp_sum += result.mtp_losses[i];
    ++with_targets;
  }
  if (with_targets > 0) metrics.mtp_loss = mtp_sum / with_targets;
  metrics.grad_norm = result.grad_norm;
  metrics.lr = input.learning_rate;
  metrics.peak_bytes = result.peak_allocated_bytes;
  metrics.step_s = clock.now_s() - start;
  metrics.tokens_per_s = static_cast<double>(result.tokens) / metrics.step_s;
  metrics.model_tflops = metrics.tokens_per_s * p_.flops_per_token / 1e12;
  metrics.loader_exposed_s = loader.exposed_seconds() - exposed_before;
  metrics.page_faults = minor_page_faults() - faults_before;
  metrics.checkpoint_stall_s = checkpoint_stall_s_;
  checkpoint_stall_s_ = 0.0;
  if (state_.step == c_.log.trace_step && folder_ != nullptr) {
    write_file_atomically(folder_->path("trace.json"),
                          trace_of_step(p_.model.spec, program, result, state_.step));
  }
  return result;
}

/// The policy of [loss] for a step that could not be applied.
void Run::judge(const execute::StepResult& result, StepMetrics& metrics) {
  if (result.applied) {
    state_.updates += 1;
    state_.skips = 0;
    return;
  }
  metrics.skipped = true;
  state_.skips += 1;
  const bool stop = c_.loss.non_finite == "stop";
  if (!stop && state_.skips <= c_.loss.max_skips) {
    progress_.clear();
    log::warning("step {}: loss {}, gradient norm {}: left out", state_.step, result.loss,
                 result.grad_norm);
    return;
  }
  progress_.clear();
  const TrainState failed = state_;
  const bool is_safe = keep_what_is_good();
  const std::string what = fmt::format("step {}: the loss is {} and the gradient norm {}",
                                       failed.step, result.loss, result.grad_norm);
  const std::string kept = is_safe && saved_step_ >= 0
                               ? fmt::format("; the run is safe as of step {}", saved_step_)
                               : "";
  if (stop) {
    throw Error(ErrorCode::kNumerical, what + kept,
                "lower optim.lr, lengthen schedule.warmup, or set loss.non_finite = \"skip\"");
  }
  throw Error(
      ErrorCode::kNumerical,
      fmt::format("{}, the {}th step in a row that is not finite{}", what, failed.skips, kept),
      "lower optim.lr or lengthen schedule.warmup");
}

/// Before a run ends for its numbers: all steps up to the last good one are saved; false if that failed. Nothing that fails here hides
/// why.
bool Run::keep_what_is_good() {
  state_ = before_step_;
  try {
    if (state_.step > 0) save();
    writer_->wait();
    world_.barrier();  // who ends now ends the others, who may still write
    write_report({});
    return true;
  } catch (const Error& error) {
    log::warning("{}", error.what());
    return false;
  }
}

std::optional<Validation> Run::validate(int64_t sequences) {
  if (p_.data.valid == nullptr) return std::nullopt;
  executor_.settle();  // what is under way takes memory that a step would not need yet
  if (is_spread() && stages_ == nullptr)
    stages_ = std::make_unique<execute::StageEvaluation>(model_, store_, p_.program, world_);
  return evaluate_dataset(model_, *p_.data.valid,
                          {c_.batch.micro, sequences, c_.memory.loss_chunk_rows}, world_,
                          stages_.get());
}

void Run::record(const StepMetrics& m) {
  if (folder_ == nullptr) return;
  metrics_file_->append(m);
  if (!events_) return;
  events_->add_scalars(wall_time_s(), m.step, scalars_of(m));
}

void Run::save() {
  if (saved_step_ == state_.step) return;
  const double start = steady_clock().now_s();
  // Who could not write the one before says so before the others wait for it here.
  if (folder_ == nullptr) writer_->wait();
  executor_.settle();
  const std::vector<checkpoint::NamedTensor> tensors =
      state_tensors(p_.model.spec, optimizer_of(c_), gather_.masters_and_states());
  saved_step_ = state_.step;
  checkpoint::Extent all;
  for (const std::string& of_rank : world_.exchange(to_text(checkpoint::extent_of(tensors))))
    all += extent_from(of_rank);
  checkpoint::CheckpointState state;
  std::string begun;
  if (folder_ != nullptr) {
    // No checkpoint is ahead of metrics.jsonl, whatever happens to the machine.
    metrics_file_->sync();
    state.step = state_.step;
    state.train = to_json(state_);
    state.texts = checkpoint::checkpoint_texts(model_texts(p_.model));
    state.texts["run.toml"] = effective_toml(p_.run);
    begun = writer_->begin(state_.step, all).string();
  }
  writer_->save_share(world_.exchange(begun).front(), tensors, std::move(state));
  checkpoint_stall_s_ += steady_clock().now_s() - start;
}

void Run::loop() {
  data::LoaderOptions loader_options;
  const RankSamples samples(strategy_of(c_, p_.model.spec, p_.precision.precision), ramp_,
                            c_.schedule.steps, world_.rank());
  loader_options.first_micro_batch = samples.micro_batches_before(state_.step);
  loader_options.prefetch =
      std::max(c_.data.prefetch, c_.batch.sequences / c_.batch.micro / c_.parallel.dp);
  data::Loader loader(p_.data.train, samples.order(), loader_options);
  while (!done()) {
    StepMetrics metrics;
    const execute::StepResult result = step(loader, metrics);
    judge(result, metrics);
    const bool due = c_.eval.every > 0 && state_.step % c_.eval.every == 0;
    if (due || done()) {
      if (const auto validation = validate(done() ? 0 : c_.eval.sequences)) {
        metrics.valid_loss = validation->loss;
        metrics.valid_perplexity = std::exp(validation->loss);
        metrics.valid_bits_per_byte = validation->bits_per_byte;
      }
    }
    record(metrics);
    step_seconds_ =
        step_seconds_ == 0 ? metrics.step_s : 0.9 * step_seconds_ + 0.1 * metrics.step_s;
    progress_.show(metrics, {c_.schedule.steps, p_.precision.gemm_tflops,
                             step_seconds_ * static_cast<double>(c_.schedule.steps - state_.step)});
    const bool checkpoint_due = c_.checkpoint.every > 0 && state_.step % c_.checkpoint.every == 0;
    const bool stop = result.stop_requested;
    if (checkpoint_due || stop || done()) save();
    if (stop && !done()) {
      progress_.clear();
      writer_->wait();
      write_report({});
      world_.barrier();  // nobody ends before what was promised is on the disk
      throw Error(ErrorCode::kInterrupted,
                  fmt::format("interrupted after step {} of {}; checkpoint step-{} is written",
                              state_.step, c_.schedule.steps, state_.step),
                  "the same command continues the run");
    }
  }
}

void Run::write_report(std::vector<ReportSample> samples) {
  if (!c_.log.report || folder_ == nullptr) return;
  write_file_atomically(folder_->path("report.html"),
                        report_html(make_report(p_, folder_->path("").parent_path(),
                                                std::move(samples), options_.version)));
}

/// Text is continued by one rank, which needs the whole model for it.
std::vector<ReportSample> Run::sample_from(const WholeState& whole) {
  nn::ParameterStore store(p_.model.spec, store_.compute_dtype(), at::kFloat, store_.device());
  for (int i = 0; i < store.num_parameters(); ++i) {
    const int part = p_.model.spec.parameters[static_cast<size_t>(i)].part;
    store.set(i, store.view(whole.masters[static_cast<size_t>(part)], i));
  }
  nn::Model model(store);
  return options_.sample(model, *p_.model.tokenizer, c_);
}

TrainResult Run::finish() {
  progress_.clear();
  TrainResult result;
  result.baselines = p_.baselines;
  executor_.settle();
  WholeState whole;
  if (c_.hf_export.enabled || samples_from_all()) whole = gather_.masters();
  writer_->wait();
  if (folder_ == nullptr) return result;
  if (c_.hf_export.enabled) {
    const std::vector<checkpoint::NamedTensor> parameters = parameter_tensors(p_.model.spec, whole);
    checkpoint::ExportOptions export_options;
    export_options.replace = true;
    const auto exported = checkpoint::export_huggingface(
        folder_->path("export"), p_.model.spec, parameters, model_texts(p_.model), export_options);
    log::info("exported {} tensors to {}", exported.num_tensors, exported.path.string());
  }
  try {
    if (samples_from_all()) {
      result.samples = sample_from(whole);
    } else if (options_.sample && !is_spread()) {
      result.samples = options_.sample(model_, *p_.model.tokenizer, c_);
    }
  } catch (const Error& error) {
    log::warning("no samples: {}", error.what());
  }
  write_report(result.samples);
  if (c_.log.report) log::info("report: {}", folder_->path("report.html").string());
  return result;
}

/// Adds what the last line of metrics.jsonl says.
void add_figures(const fs::path& path, TrainResult& result) {
  for (const StepMetrics& m : read_metrics(path)) {
    result.step = m.step;
    result.tokens = m.tokens;
    result.loss = m.loss;
    if (m.valid_loss) result.valid_loss = m.valid_loss;
    if (m.valid_bits_per_byte) result.valid_bits_per_byte = m.valid_bits_per_byte;
  }
}

TrainResult Run::run() {
  if (folder_ != nullptr) {
    metrics_file_.emplace(folder_->path("metrics.jsonl"), state_.step);
    if (metrics_file_->kept() < state_.step) {
      log::warning("{} holds {} of the {} steps that are done: the others were not written here",
                   folder_->path("metrics.jsonl").string(), metrics_file_->kept(), state_.step);
    }
    if (c_.log.tensorboard && !done())
      events_.emplace(folder_->path("tensorboard"), wall_time_s(), state_.step + 1);
    write_file_atomically(folder_->path("run.toml"), effective_toml(p_.run));
  }
  if (!done()) loop();
  TrainResult result = finish();
  world_.barrier();  // the run has ended for all when it has for one
  if (folder_ != nullptr) add_figures(folder_->path("metrics.jsonl"), result);
  return result;
}

/// A rank that only computes.
TrainResult train_along(const RunFile& run, const TrainOptions& options) {
  const Beginning beginning = hear_first_rank(*options.world);
  TrainResult result;
  result.was_done = beginning.done;
  if (beginning.done) return result;
  std::optional<checkpoint::Checkpoint> from;
  if (!beginning.checkpoint.empty()) from.emplace(beginning.checkpoint);
  Preflight preflight = inspect_run(run, beginning.precision, options.world->rank());
  if (!preflight.problems.empty()) throw preflight.problems.front();
  Run training(std::move(preflight), options, nullptr, from);
  from.reset();
  return training.run();
}

}  // namespace

TrainResult train(const RunFile& file, const TrainOptions& options) {
  const RunFile run = on_own_device(file, options.world);
  device::get_device("cpu");  // before the first tensor: memory is held and counted
  if (run.config.threads > 0) at::set_num_threads(static_cast<int>(run.config.threads));
  check_ranks(run, options.world == nullptr ? 1 : options.world->size());
  if (options.world != nullptr && options.world->rank() > 0) return train_along(run, options);
  RunFolder folder(run.config.out);
  checkpoint::clean_up_transactions(checkpoint::disk(), run.config.out, "export");
  remove_abandoned_temporaries(run.config.out);
  remove_abandoned_temporaries(fs::path(run.config.out) / "cache");
  const std::optional<fs::path> path = checkpoint_to_resume(run.config.out, options.resume);
  std::optional<checkpoint::Checkpoint> from;
  std::string precision;
  if (path) {
    from.emplace(*path);
    check_same_run(*from, run);
    const TrainState state = train_state_from_json(from->train_state(), path->string());
    if (run.config.precision.recipe == "auto") precision = state.precision;
    // An older export is one of fewer steps; copied files may look so too, and exporting again loses nothing.
    const auto newer_than_checkpoint = [&path](const fs::path& file) {
      std::error_code missing;
      const auto time = fs::last_write_time(file, missing);
      return !missing && time >= fs::last_write_time(*path / "manifest.json", missing) && !missing;
    };
    const bool exported = !run.config.hf_export.enabled ||
                          newer_than_checkpoint(folder.path("export") / "config.json");
    const bool reported =
        !run.config.log.report || newer_than_checkpoint(folder.path("report.html"));
    if (state.step >= run.config.schedule.steps && exported && reported) {
      TrainResult result;
      result.was_done = true;
      tell_ranks(options.world, {.done = true});
      result.baselines = read_baselines(run.config);
      add_figures(folder.path("metrics.jsonl"), result);
      return result;
    }
  }
  if (!path && run.config.precision.recipe == "auto")
    precision = precision_of_interrupted(folder.path("run.toml"), run);
  Preflight preflight = inspect_run(run, precision);
  if (!preflight.problems.empty()) throw preflight.problems.front();
  tell_ranks(options.world, {.precision = plan::to_string(preflight.precision.precision),
                             .checkpoint = path ? path->string() : ""});
  const auto bytes = [](int64_t n) { return bytes_text(static_cast<double>(n)); };
  const std::string modules =
      preflight.mtp_parameters == 0
          ? ""
          : fmt::format(", multi-token prediction: {}",
                        mtp_text(preflight.model.spec.num_mtp_layers, preflight.mtp_parameters));
  log::info("model {}: {} parameters{}; {}", preflight.model.spec.family,
            count_text(static_cast<double>(preflight.parameters)), modules,
            preflight.precision.reason);
  log::info("data: {} tokens; the run sees {} ({:.2f} epochs); a step holds {} at its peak",
            count_text(static_cast<double>(preflight.data.train->num_tokens())),
            count_text(static_cast<double>(preflight.total_tokens)), preflight.epochs,
            bytes(preflight.peak_bytes));
  Run training(std::move(preflight), options, &folder, from);
  from.reset();  // its files stay mapped no longer than needed
  return training.run();
}

std::string done_line(const TrainResult& result) {
  std::string text = "done: ";
  if (result.valid_bits_per_byte) {
    text += fmt::format("valid bits per byte {:.3f}", *result.valid_bits_per_byte);
  } else if (result.valid_loss) {
    text += fmt::format("valid loss {:.4f}", *result.valid_loss);
  } else {
    text += fmt::format("loss {:.4f}", result.loss);
  }
  if (result.baselines.empty() || !result.valid_bits_per_byte) return text;
  text += " (";
  for (size_t i = 0; i < result.baselines.size(); ++i) {
    text += fmt::format("{}{} {:.3f}", i == 0 ? "" : ", ", result.baselines[i].name,
                        result.baselines[i].bits_per_byte);
  }
  return text + " on the same files)";
}

}  // namespace trireme::train
