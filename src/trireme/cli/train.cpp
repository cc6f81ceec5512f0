#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/interrupt.h"
#include "trireme/cli/command.h"
#include "trireme/cli/ranks.h"
#include "trireme/device/device.h"
#include "trireme/infer/generator.h"
#include "trireme/train/beginning.h"
#include "trireme/train/trainer.h"

namespace trireme::cli {

namespace {

struct TrainArguments {
  std::string run_file;
  std::vector<std::string> sets;
  std::string resume = "auto";
  std::string device;
  std::string plugin;
  bool dry_run = false;
  bool print_schema = false;
  int threads_as_ranks = 1;  // trireme launch --threads
};

std::vector<train::ReportSample> sample(nn::Model& model, const data::Tokenizer& tokenizer,
                                        const train::RunConfig& run) {
  std::vector<std::string> prompts = run.sample.prompts;
  if (prompts.empty()) return {};
  std::vector<std::vector<int32_t>> ids;
  for (const std::string& prompt : prompts) {
    ids.push_back(tokenizer.encode(prompt));
    // An empty prompt starts a document.
    if (ids.back().empty() && tokenizer.eos_id()) ids.back().push_back(*tokenizer.eos_id());
  }
  infer::GenerationOptions options;
  options.max_new_tokens = run.sample.tokens;
  options.sampling.temperature = run.sample.temperature;
  options.sampling.top_p = run.sample.top_p;
  options.sampling.seed = static_cast<uint64_t>(run.seed);
  if (tokenizer.eos_id()) options.stop_ids.push_back(*tokenizer.eos_id());
  const std::vector<infer::Completion> completions =
      infer::generate(model, &tokenizer, ids, options);
  std::vector<train::ReportSample> samples;
  for (size_t i = 0; i < prompts.size(); ++i) samples.push_back({prompts[i], completions[i].text});
  return samples;
}

OrderedJson to_json(const train::TrainResult& result, const std::string& out) {
  OrderedJson json = {{"out", out},
                      {"step", result.step},
                      {"tokens", result.tokens},
                      {"loss", result.loss},
                      {"was_done", result.was_done}};
  if (result.valid_loss) json["valid_loss"] = *result.valid_loss;
  if (result.valid_bits_per_byte) json["valid_bits_per_byte"] = *result.valid_bits_per_byte;
  for (const train::Baseline& baseline : result.baselines)
    json["baselines"][baseline.name] = baseline.bits_per_byte;
  for (const train::ReportSample& text : result.samples)
    json["samples"].push_back({{"prompt", text.prompt}, {"text", text.text}});
  return json;
}

void run_train(const TrainArguments& arguments, const GlobalOptions& options) {
  if (arguments.print_schema) {
    fmt::print("{}", train::schema_markdown());
    return;
  }
  TRIREME_USER_CHECK(!arguments.run_file.empty(), kConfig, "examples/ has run files to start from",
                     "no run file is given: trireme train RUN.toml");
  std::vector<std::string> sets = arguments.sets;
  if (!arguments.device.empty()) sets.push_back("device.name=" + arguments.device);
  if (!arguments.plugin.empty()) sets.push_back("device.plugin=" + arguments.plugin);
  const train::RunFile run = train::load_run_file(arguments.run_file, sets);
  if (arguments.dry_run) {
    device::get_device("cpu");
    train::Preflight preflight = train::inspect_run(run);
    train::inspect_continuation(arguments.resume, preflight);
    if (options.json) {
      print_json(train::to_json(preflight));
    } else {
      fmt::print("{}", train::describe(preflight));
    }
    // The listing names them all; the first gives the status that the run would have ended with.
    if (!preflight.problems.empty()) throw preflight.problems.front();
    return;
  }
  train::check_ranks(run, num_ranks(arguments.threads_as_ranks));
  install_interrupt_handlers();
  device::get_device("cpu");  // before the first tensor
  train::TrainResult result;
  bool is_first = true;
  run_as_ranks(arguments.threads_as_ranks, run.config.parallel.timeout_s, [&](comm::World* world) {
    train::TrainOptions train_options;
    train_options.resume = arguments.resume;
    train_options.quiet = options.quiet;
    train_options.world = world;
    train_options.version = TRIREME_VERSION;
    train_options.sample = sample;
    const train::TrainResult of_rank = train::train(run, train_options);
    if (world == nullptr || world->rank() == 0) {
      result = of_rank;
    } else if (arguments.threads_as_ranks == 1) {
      is_first = false;
    }
  });
  if (!is_first) return;  // rank 0 says how the run ended
  if (options.json) {
    print_json(to_json(result, run.config.out));
    return;
  }
  for (const train::ReportSample& text : result.samples)
    fmt::print("--- {}{}\n", text.prompt, text.text);
  if (result.was_done) {
    fmt::print("this run is done already: {} steps in {} (report: {}/report.html)\n", result.step,
               run.config.out, run.config.out);
  }
  fmt::print("{}\n", train::done_line(result));
}

}  // namespace

void add_train(CLI::App& app, GlobalOptions& options) {
  CLI::App* command = app.add_subcommand("train", "train a model as a run file says");
  auto arguments = std::make_shared<TrainArguments>();
  command->add_option("RUN.toml", arguments->run_file, "the run file (docs/run_file.md)");
  command
      ->add_option("--set", arguments->sets,
                   "table.key=value, over the run file; any number of times")
      ->allow_extra_args(false);
  command->add_option(
      "--device", arguments->device,
      "what computes: cpu, sim, or what a plug-in brings (as --set device.name=...)");
  command->add_option("--plugin", arguments->plugin,
                      "the library that brings the device (as --set device.plugin=...)");
  command
      ->add_option(
          "--resume", arguments->resume,
          "auto: continue what out holds; no: start only a new run; or a checkpoint's path")
      ->capture_default_str();
  command->add_flag(
      "--dry-run", arguments->dry_run,
      "print the effective run, its plan, what it needs and what would fail; train nothing");
  command->add_flag("--print-schema", arguments->print_schema,
                    "print docs/run_file.md: every key, its default and meaning");
  // Of `trireme launch --threads` alone: an empty group is in no help.
  command->add_option("--ranks-as-threads", arguments->threads_as_ranks)
      ->check(CLI::Range(1, 4096))
      ->group("");
  add_global_options(*command, options,
                     "trireme train run.toml --set schedule.steps=500 --set optim.lr=1e-3");
  command->callback([arguments, &options] { run_train(*arguments, options); });
}

}  // namespace trireme::cli
