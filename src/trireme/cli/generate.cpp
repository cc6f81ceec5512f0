#include <unistd.h>

#include <filesystem>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/cli/command.h"
#include "trireme/device/device.h"
#include "trireme/infer/evaluation.h"
#include "trireme/infer/generator.h"
#include "trireme/infer/loaded_model.h"

namespace trireme::cli {

namespace {

struct GenerateArguments {
  std::string model;
  std::vector<std::string> prompts;
  std::string ids;
  std::string precision = "fp32";
  DeviceArguments device;
  std::string tokenizer;
  bool greedy = false;
  bool ignore_eos = false;
  infer::GenerationOptions options;
};

void run_generate(GenerateArguments arguments, const GlobalOptions& options) {
  TRIREME_USER_CHECK(arguments.prompts.empty() != arguments.ids.empty(), kConfig,
                     "trireme generate MODEL --prompt \"Once upon\"",
                     "give --prompt (several times for several) or --ids");
  if (arguments.greedy) arguments.options.sampling.temperature = 0.0;
  infer::check_sampling_options(arguments.options.sampling);
  device::get_device("cpu");  // before the first tensor: memory is held and counted
  infer::LoadedModel loaded =
      infer::load_model(arguments.model, infer::parse_precision(arguments.precision),
                        open_device(arguments.device).torch_device());
  if (!arguments.tokenizer.empty()) loaded.tokenizer = data::load_tokenizer(arguments.tokenizer);

  std::vector<std::vector<int32_t>> prompts;
  if (!arguments.ids.empty()) {
    prompts = infer::parse_id_lines(read_file(arguments.ids), arguments.ids);
  } else {
    for (const std::string& text : arguments.prompts) {
      std::vector<int32_t> ids = loaded.require_tokenizer().encode(text);
      // An empty prompt starts a document.
      if (ids.empty() && loaded.tokenizer->eos_id()) ids.push_back(*loaded.tokenizer->eos_id());
      prompts.push_back(std::move(ids));
    }
  }
  if (!arguments.ignore_eos) {
    arguments.options.stop_ids = loaded.end_ids;
    if (loaded.tokenizer && loaded.tokenizer->eos_id())
      arguments.options.stop_ids.push_back(*loaded.tokenizer->eos_id());
  }
  // One prompt streams; several would run into each other.
  const bool stream = !options.json && prompts.size() == 1 && loaded.tokenizer != nullptr;
  if (stream && !arguments.prompts.empty()) {
    fmt::print("{}", arguments.prompts[0]);
    std::fflush(stdout);
  }
  const auto completions =
      infer::generate(*loaded.model, loaded.tokenizer.get(), prompts, arguments.options,
                      stream ? infer::StreamCallback([](int64_t, const std::string& piece) {
                        fmt::print("{}", piece);
                        std::fflush(stdout);
                      })
                             : infer::StreamCallback());
  OrderedJson outputs = OrderedJson::array();
  for (size_t i = 0; i < completions.size(); ++i) {
    const infer::Completion& completion = completions[i];
    const std::string prompt = arguments.prompts.empty() ? "" : arguments.prompts[i];
    outputs.push_back(
        {{"prompt", arguments.prompts.empty() ? OrderedJson(prompts[i]) : OrderedJson(prompt)},
         {"ids", completion.ids},
         {"text", completion.text},
         {"finish", infer::to_string(completion.finish)}});
    if (options.json) continue;
    if (stream) {
      fmt::print("\n");
    } else if (loaded.tokenizer != nullptr) {
      fmt::print("{}--- {}\n{}{}\n", i > 0 ? "\n" : "", i + 1, prompt, completion.text);
    } else {
      fmt::print("{}\n", OrderedJson(completion.ids).dump());
    }
  }
  if (options.json) print_json({{"outputs", outputs}});
}

}  // namespace

void add_generate(CLI::App& app, GlobalOptions& options) {
  CLI::App* command = app.add_subcommand("generate", "continue prompts");
  auto arguments = std::make_shared<GenerateArguments>();
  infer::SamplingOptions& sampling = arguments->options.sampling;
  command
      ->add_option("MODEL", arguments->model,
                   "a Hugging Face directory, a checkpoint or a run's folder")
      ->required();
  command
      ->add_option("--prompt", arguments->prompts, "text to continue; may be given several times")
      ->allow_extra_args(false);
  command->add_option("--ids", arguments->ids,
                      "a file with one JSON array of token ids a line, in place of --prompt");
  command
      ->add_option("--max-new-tokens,-n", arguments->options.max_new_tokens,
                   "tokens to generate at most")
      ->capture_default_str();
  command->add_flag("--greedy", arguments->greedy, "always the most likely token");
  command->add_option("--temperature", sampling.temperature, "0: greedy")->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "0: off")->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "1: off")->capture_default_str();
  command->add_option("--min-p", sampling.min_p, "0: off")->capture_default_str();
  command->add_option("--repetition-penalty", sampling.repetition_penalty, "1: off")
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "of the draws")->capture_default_str();
  command
      ->add_option("--stop", arguments->options.stop,
                   "end before this text; may be given several times")
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", arguments->ignore_eos, "go on after the end of a text");
  command->add_option("--precision", arguments->precision, "fp32 or bf16")->capture_default_str();
  add_device_options(*command, arguments->device);
  command->add_option("--tokenizer", arguments->tokenizer, "in place of the model's own");
  add_global_options(*command, options,
                     "trireme generate runs/first --prompt 'def main(' --temperature 0.8");
  command->callback([arguments, &options] { run_generate(*arguments, options); });
}

}  // namespace trireme::cli
