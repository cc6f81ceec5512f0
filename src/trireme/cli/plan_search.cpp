// trireme plan search
#include <fmt/core.h>

#include <memory>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/log.h"
#include "trireme/cli/plan_predict.h"
#include "trireme/cli/stage_line.h"
#include "trireme/plan/program_limits.h"
#include "trireme/plan/search_report.h"
#include "trireme/train/run_config.h"
#include "trireme/train/run_setup.h"

namespace trireme::cli {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

struct SearchArguments {
  std::string run_file;
  std::vector<std::string> sets;
  std::string cluster;
  std::string stack;
  std::vector<std::string> profiles;
  int64_t accelerators = 0;
  int64_t batch = 0;
  int64_t seq_len = 0;
  std::vector<std::string> fixed;
  std::vector<std::string> varied;
  double reserve_gib = 0.0;
  int top = 5;
  int threads = 0;
  double within = 2.0;
  bool trainable = false;
  bool no_advice = false;
  std::string out;
  double tokens = 0.0;
  double price = 0.0;
  std::string reliability;
  double checkpoint_s = -1.0;
};

std::string text_of(const plan::SearchProgress& progress) {
  std::string text =
      progress.bounded < progress.groups
          ? fmt::format("bounds {} of {} groups", progress.bounded, progress.groups)
          : fmt::format("{} candidates open, {} priced", progress.open, progress.priced);
  if (progress.best_s > 0.0) text += fmt::format(", best {:.4f} s", progress.best_s);
  return text;
}

std::pair<std::string, std::string> key_and_value(const std::string& option,
                                                  const std::string& text) {
  const size_t equals = text.find('=');
  TRIREME_USER_CHECK(equals != std::string::npos && equals > 0, kConfig,
                     fmt::format("write {} tp=8", option), "{} {}: there is no value", option,
                     text);
  return {text.substr(0, equals), text.substr(equals + 1)};
}

void check(const SearchArguments& arguments) {
  TRIREME_USER_CHECK(arguments.accelerators >= 1, kConfig, "--accelerators 64",
                     "--accelerators {}: say how many the run may use", arguments.accelerators);
  TRIREME_USER_CHECK(arguments.batch >= 0 && arguments.seq_len >= 0, kConfig,
                     "give a size of at least 1", "--batch {} --seq-len {}", arguments.batch,
                     arguments.seq_len);
  TRIREME_USER_CHECK(arguments.within >= 1.0, kConfig, "--front-within 2", "--front-within {}",
                     arguments.within);
  TRIREME_USER_CHECK(arguments.top >= 1, kConfig, "--top 5", "--top {}", arguments.top);
  TRIREME_USER_CHECK(
      arguments.reserve_gib >= 0.0 && arguments.price >= 0.0 && arguments.tokens >= 0.0, kConfig,
      "give numbers that are not negative", "--reserve-gib {} --price {} --tokens {}",
      arguments.reserve_gib, arguments.price, arguments.tokens);
  TRIREME_USER_CHECK(arguments.price == 0.0 || arguments.tokens > 0.0, kConfig, "add --tokens 1e12",
                     "--price {}: of how many tokens?", arguments.price);
}

/// Model and batch of the run file on the cluster.
plan::PlannedRun run_of(const SearchArguments& arguments, const train::RunFile& file,
                        const model::ModelSpec& spec, const plan::ProfileLibrary& library) {
  plan::PlannedRun run;
  run.spec = spec;
  run.cluster = library.cluster(arguments.cluster);
  run.stack = library.stack(arguments.stack);
  run.strategy = train::strategy_of(file.config, spec);
  // "auto" measures the machine that it runs on; of a cluster the profile says it.
  if (file.config.precision.recipe == "auto") {
    const auto& peaks = run.cluster.device.peak_flops;
    const auto peak = [&](plan::ComputeType type) {
      const auto found = peaks.find(type);
      return found == peaks.end() ? 0.0 : found->second;
    };
    if (peak(plan::ComputeType::kBf16) > peak(plan::ComputeType::kFp32))
      run.strategy.precision = plan::Precision::kBf16;
  }
  TRIREME_USER_CHECK(run.strategy.seq_len <= spec.max_positions, kConfig,
                     "shorten it, or raise max_position_embeddings in the config",
                     "data.seq_len = {} exceeds the model's {} positions", run.strategy.seq_len,
                     spec.max_positions);
  plan::use_profiles(library, "", run);
  return run;
}

plan::SearchSpace space_of(const SearchArguments& arguments, const plan::PlannedRun& run) {
  plan::SearchSpace space = plan::search_space(run, arguments.accelerators);
  for (const std::string& text : arguments.varied) {
    const auto [key, values] = key_and_value("--vary", text);
    plan::vary(space, key, values);
  }
  for (const std::string& text : arguments.fixed) {
    const auto [key, value] = key_and_value("--parallel", text);
    plan::fix(space, key, value);
  }
  return arguments.trainable ? plan::of_training(std::move(space)) : space;
}

/// The run file with what the candidate decides.
train::RunFile run_file_of(train::RunFile file, const plan::SearchSpace& space,
                           const plan::Candidate& candidate, const std::string& from) {
  train::RunConfig& config = file.config;
  const auto derived = [&](const char* key) {
    file.origins[key] = {train::Origin::Kind::kDerived, from};
  };
  config.batch.micro = candidate.micro;
  config.batch.lanes = candidate.dp;
  config.parallel.dp = candidate.dp;
  config.parallel.zero = candidate.zero;
  config.parallel.pp = candidate.pp;
  config.parallel.schedule = plan::to_string(candidate.schedule);
  config.parallel.chunks = candidate.chunks;
  config.parallel.tp = candidate.tp;
  config.parallel.cp = candidate.cp;
  config.parallel.cp_kind = plan::to_string(candidate.cp_kind);
  config.parallel.etp = 1;
  config.parallel.ep = candidate.ep;
  config.parallel.shard = 0;
  config.memory.recompute = space.recompute[static_cast<size_t>(candidate.recompute)].names;
  config.memory.offload_activations = {"none"};
  config.memory.offload_optimizer = false;
  config.memory.delay_weight_gradients = false;
  config.precision.recipe = plan::to_string(candidate.precision);
  for (const char* key :
       {"batch.micro", "batch.lanes", "parallel.dp", "parallel.zero", "parallel.pp",
        "parallel.schedule", "parallel.chunks", "parallel.tp", "parallel.cp", "parallel.cp_kind",
        "parallel.ep", "memory.recompute", "memory.offload_activations", "memory.offload_optimizer",
        "memory.delay_weight_gradients", "precision.recipe"})
    derived(key);
  return file;
}

/// Why `train` does not run it today; empty: it does.
std::string missing(const train::RunFile& file, const model::ModelSpec& spec,
                    const plan::SearchSpace& space, const plan::Candidate& candidate) {
  std::string text;
  const auto add = [&](bool missing, const std::string& what) {
    if (missing) text += (text.empty() ? "" : ", ") + what;
  };
  add(candidate.etp > 1, fmt::format("etp = {}", candidate.etp));
  add((candidate.dp & (candidate.dp - 1)) != 0,
      fmt::format("dp = {} (no power of two)", candidate.dp));
  const plan::RecomputeChoice& recompute =
      space.recompute[static_cast<size_t>(candidate.recompute)];
  add(recompute.names.empty(), fmt::format("recompute {}", recompute.name));
  add(candidate.precision == plan::SearchPrecision::kFp8, "precision fp8");
  add(candidate.overlap != plan::OverlapChoice::kAsStack,
      fmt::format("overlap {}", plan::to_string(candidate.overlap)));
  if (!text.empty()) return text;
  // As `train` will check it.
  const plan::Strategy strategy =
      train::strategy_of(run_file_of(file, space, candidate, "").config, spec);
  std::vector<std::string> reasons = plan::validate(spec, strategy);
  if (reasons.empty()) reasons = plan::program_limits(spec, strategy);
  return reasons.empty() ? "" : reasons.front();
}

void write_run_file(const SearchArguments& arguments, const train::RunFile& file,
                    const model::ModelSpec& spec, const plan::SearchSpace& space,
                    const plan::Candidate& candidate) {
  const train::RunFile chosen =
      run_file_of(file, space, candidate,
                  fmt::format("trireme plan search --cluster {} --accelerators {}",
                              arguments.cluster, arguments.accelerators));
  const std::string lacking = missing(file, spec, space, candidate);
  TRIREME_USER_CHECK(lacking.empty(), kConfig, "change what the run file says beside its layout",
                     "--out {}: train refuses the best one with this run file: {}", arguments.out,
                     lacking);
  write_file_atomically(arguments.out, train::effective_toml(chosen));
}

void search(const SearchArguments& arguments, const GlobalOptions& options) {
  check(arguments);
  install_interrupt_handlers();
  std::vector<std::string> sets = arguments.sets;
  if (arguments.batch > 0) sets.push_back(fmt::format("batch.sequences={}", arguments.batch));
  if (arguments.seq_len > 0) sets.push_back(fmt::format("data.seq_len={}", arguments.seq_len));
  const train::RunFile file = train::load_run_file(arguments.run_file, sets);
  const model::ModelSpec spec = train::spec_of(file);
  const plan::ProfileLibrary library = load_profiles(arguments.profiles);
  const plan::PlannedRun run = run_of(arguments, file, spec, library);
  const plan::ReliabilityProfile& reliability = library.reliability(arguments.reliability);
  const plan::SearchSpace space = space_of(arguments, run);
  const bool of_trireme = arguments.stack == "trireme";

  StageLine line(options.quiet);
  std::string what = "search";
  plan::SearchOptions search_options;
  search_options.best = arguments.top;
  search_options.reserve_bytes = arguments.reserve_gib * kGiB;
  search_options.threads = arguments.threads;
  search_options.pareto_within = arguments.within;
  search_options.progress = [&](const plan::SearchProgress& progress) {
    if (line.is_due(what)) line.show(fmt::format("{}: {}", what, text_of(progress)));
    return !interrupted();
  };
  const double begin = steady_clock().now_s();
  const plan::SearchResult result = plan::search(run, of_trireme, space, search_options);
  plan::SearchReport report{run, space, result, {}, {}, {}, {}, steady_clock().now_s() - begin};

  if (!result.best.empty()) {
    const plan::Priced& best = result.best.front();
    if (!arguments.no_advice && result.complete) {
      report.around = plan::neighbours(run, of_trireme, space, best);
      what = "what would help";
      report.help = plan::what_would_help(run, of_trireme, space, search_options, best);
    }
    if (arguments.tokens > 0.0) {
      const double accelerators = static_cast<double>(space.accelerators);
      // Float32 weights and both moments.
      const double bytes = 12.0 * static_cast<double>(spec.num_parameters());
      const double checkpoint = arguments.checkpoint_s >= 0.0
                                    ? arguments.checkpoint_s
                                    : bytes / (accelerators * reliability.checkpoint_bytes_per_s);
      report.time = plan::time_to_tokens(
          arguments.tokens,
          static_cast<double>(run.strategy.sequences) * static_cast<double>(run.strategy.seq_len),
          best.step_s, accelerators, reliability, checkpoint, arguments.price);
    }
    if (!missing(file, spec, space, best.candidate).empty() && result.complete && !interrupted()) {
      what = "what train can run";
      plan::SearchOptions one = search_options;
      one.best = 1;
      one.pareto = false;
      plan::SearchSpace training = plan::of_training(space);
      const plan::SearchResult found = plan::search(run, of_trireme, training, one);
      if (!found.best.empty())
        report.trainable = plan::Trainable{std::move(training), found.best.front()};
    }
  }
  const bool stopped = interrupted() || !result.complete;
  if (options.json) {
    print_json(plan::search_json(report));
  } else {
    fmt::print("{}", plan::describe(report));
  }
  if (stopped)
    throw Error(ErrorCode::kInterrupted, "interrupted: what was found until then is not the best",
                "narrow the search with --parallel");
  TRIREME_USER_CHECK(!result.best.empty(), kConfig,
                     "more accelerators or memory, a shorter sequence, a smaller batch, or fewer "
                     "fixed dimensions",
                     "nothing fits on {} x {}: short is {}", space.accelerators,
                     run.cluster.device.name, plan::shortage(report));
  if (arguments.out.empty()) return;
  const plan::Candidate& best = result.best.front().candidate;
  const std::string lacking = missing(file, spec, space, best);
  if (lacking.empty()) {
    write_run_file(arguments, file, spec, space, best);
    log::info("{} has the best one", arguments.out);
    return;
  }
  TRIREME_USER_CHECK(report.trainable, kConfig, "more accelerators, or wait until train has them",
                     "--out {}: the best one needs {}, which train does not have yet, and nothing "
                     "that train can run fits",
                     arguments.out, lacking);
  const plan::Trainable& second = *report.trainable;
  write_run_file(arguments, file, spec, second.space, second.best.candidate);
  log::warning(
      "the best one needs {}, which train does not have yet; {} has the best that it can run: {}, "
      "{:.4f} s a step ({:+.1f} %)",
      lacking, arguments.out, plan::describe(second.space, second.best.candidate),
      second.best.step_s, 100.0 * (second.best.step_s / result.best.front().step_s - 1.0));
}

}  // namespace

void add_plan_search(CLI::App& plan, GlobalOptions& options) {
  auto arguments = std::make_shared<SearchArguments>();
  CLI::App* command = plan.add_subcommand(
      "search", "the fastest way to run a model on a cluster, and what it would take to be faster");
  command->add_option("run", arguments->run_file, "a run file: its model and its batch")
      ->required();
  command->add_option("--set", arguments->sets, "table.key=value, overrides the run file");
  command->add_option("--cluster", arguments->cluster, "a name of profiles/clusters")->required();
  command->add_option("--accelerators", arguments->accelerators, "how many of its accelerators")
      ->required();
  command->add_option("--batch", arguments->batch, "sequences a step, over the run file's");
  command->add_option("--seq-len", arguments->seq_len, "tokens a sequence, over the run file's");
  command->add_option(
      "--parallel", arguments->fixed,
      "fixes a dimension: tp=8, pp=16, zero=1, micro=2, schedule=zbv, recompute=full");
  command->add_option(
      "--vary", arguments->varied,
      "values to try: precision=bf16,fp8, overlap=none,stack,all, sp=0,1, tp=1,2,4");
  command->add_option("--reserve-gib", arguments->reserve_gib, "memory of a rank to leave free");
  command->add_option("--stack", arguments->stack, "as this training software would run it")
      ->default_val("trireme");
  command->add_option("--profiles", arguments->profiles,
                      "more profiles (.toml); they come before those of the program");
  command->add_option("--top", arguments->top, "how many of the best")->default_val(5);
  command
      ->add_option("--front-within", arguments->within,
                   "time against memory up to so many times the best step")
      ->default_val(2.0);
  command->add_option("--threads", arguments->threads, "0: as many as there are CPUs");
  command->add_flag("--trainable", arguments->trainable, "only what `trireme train` can run today");
  command->add_flag("--no-advice", arguments->no_advice,
                    "leave out what would help, and the best one with one thing changed");
  command->add_option("--out", arguments->out,
                      "write the best that `trireme train` can run as a run file");
  command->add_option("--tokens", arguments->tokens, "a goal, for the days that it takes");
  command->add_option("--price", arguments->price, "of an accelerator and hour, for the cost");
  command
      ->add_option("--reliability", arguments->reliability,
                   "how often accelerators fail: a name of profiles/reliability")
      ->default_val("llama3-h100");
  command->add_option("--checkpoint-s", arguments->checkpoint_s,
                      "seconds that a checkpoint holds the run up, over the profile's");
  add_global_options(
      *command, options,
      "trireme plan search run.toml --cluster dgx-h100 --accelerators 64 --out best.toml");
  command->callback([arguments, &options] { search(*arguments, options); });
}

}  // namespace trireme::cli
