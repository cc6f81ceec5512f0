#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/log.h"
#include "trireme/cli/command.h"
#include "trireme/data/open_dataset.h"
#include "trireme/device/device.h"
#include "trireme/infer/evaluation.h"
#include "trireme/infer/loaded_model.h"

namespace trireme::cli {

namespace {

struct EvalArguments {
  std::string model;
  std::vector<std::string> data;
  std::string ids;
  std::string tasks;
  std::string precision = "fp32";
  DeviceArguments device;
  std::string tokenizer;
  std::string packing = "documents";
  int64_t seq_len = 0;
  int64_t rows = 8;
  int64_t max_windows = 0;
};

OrderedJson number_or_null(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr);
}

void print_evaluation(const infer::Evaluation& evaluation, OrderedJson extra,
                      const GlobalOptions& options) {
  if (options.json) {
    OrderedJson document = {{"loss", number_or_null(evaluation.loss())},
                            {"tokens", evaluation.num_tokens},
                            {"perplexity", number_or_null(evaluation.perplexity())},
                            {"bits_per_byte", number_or_null(evaluation.bits_per_byte())}};
    document.update(extra);
    print_json(document);
    return;
  }
  fmt::print("loss {:.4f} nats per token over {} tokens, perplexity {:.2f}", evaluation.loss(),
             evaluation.num_tokens, evaluation.perplexity());
  if (evaluation.num_bytes > 0) fmt::print(", {:.4f} bits per byte", evaluation.bits_per_byte());
  fmt::print("\n");
}

void run_eval(const EvalArguments& arguments, const GlobalOptions& options) {
  const int modes = !arguments.data.empty() + !arguments.ids.empty() + !arguments.tasks.empty();
  TRIREME_USER_CHECK(modes == 1, kConfig, "trireme eval MODEL --data FILES",
                     "give exactly one of --data, --ids and --tasks");
  install_interrupt_handlers();  // an interrupted evaluation leaves no temporary folder
  device::get_device("cpu");     // before the first tensor: memory is held and counted
  infer::LoadedModel loaded =
      infer::load_model(arguments.model, infer::parse_precision(arguments.precision),
                        open_device(arguments.device).torch_device());
  if (!arguments.tokenizer.empty()) loaded.tokenizer = data::load_tokenizer(arguments.tokenizer);

  if (!arguments.ids.empty()) {
    const auto sequences = infer::parse_id_lines(read_file(arguments.ids), arguments.ids);
    const auto losses = infer::sequence_losses(*loaded.model, sequences);
    infer::Evaluation evaluation;
    for (size_t i = 0; i < losses.size(); ++i) {
      for (const float loss : losses[i]) evaluation.loss_sum += loss;
      evaluation.num_tokens += static_cast<int64_t>(losses[i].size());
      if (loaded.tokenizer != nullptr) {
        for (size_t t = 1; t < sequences[i].size(); ++t) {
          if (!loaded.tokenizer->is_special(sequences[i][t])) {
            evaluation.num_bytes +=
                static_cast<int64_t>(loaded.tokenizer->id_to_bytes(sequences[i][t]).size());
          }
        }
      }
    }
    print_evaluation(evaluation, {{"losses", losses}}, options);
    return;
  }
  if (!arguments.tasks.empty()) {
    const auto items = infer::parse_task_lines(read_file(arguments.tasks), arguments.tasks);
    OrderedJson list = OrderedJson::array();
    for (const infer::TaskResult& task :
         infer::evaluate_tasks(*loaded.model, loaded.require_tokenizer(), items)) {
      list.push_back({{"name", task.name},
                      {"acc", task.acc},
                      {"acc_norm", task.acc_norm},
                      {"acc_bytes", task.acc_bytes},
                      {"count", task.count},
                      {"contexts_cut", task.contexts_cut}});
      if (!options.json) {
        fmt::print("{}: acc {:.4f}, acc_norm {:.4f} over {}\n", task.name, task.acc, task.acc_norm,
                   task.count);
      }
      if (task.contexts_cut > 0) {
        log::warning(
            "{}: the contexts of {} of {} questions were cut at the beginning: with a choice they "
            "are longer than the model's context of {} tokens",
            task.name, task.contexts_cut, task.count, loaded.model->spec().max_positions);
      }
    }
    if (options.json) print_json({{"tasks", list}});
    return;
  }

  data::DataOptions data_options;
  data_options.seq_len = arguments.seq_len > 0
                             ? arguments.seq_len
                             : std::min<int64_t>(loaded.model->spec().max_positions, 1024);
  TRIREME_USER_CHECK(data_options.seq_len <= loaded.model->spec().max_positions, kConfig,
                     "make it smaller", "seq-len = {}, the model's context is {}",
                     data_options.seq_len, loaded.model->spec().max_positions);
  data_options.packing = data::parse_packing(arguments.packing);
  // Tokenized text goes to a folder of its own, gone when this command ends.
  const char* name = "trireme-eval-XXXXXX";  // mkdtemp puts letters in place of the X
  std::string pattern = (std::filesystem::temp_directory_path() / name).string();
  TRIREME_USER_CHECK(mkdtemp(pattern.data()) != nullptr, kData,
                     "set TMPDIR to a folder that can be written to", "cannot make the folder {}",
                     pattern);
  const std::filesystem::path cache = pattern;
  const std::shared_ptr<void> remove_cache(nullptr, [cache](void*) {
    std::error_code ignored;
    std::filesystem::remove_all(cache, ignored);
  });
  data_options.cache = cache;
  std::vector<data::DataInput> inputs;
  for (const std::string& path : arguments.data) inputs.push_back({path, 0});
  const auto dataset = data::open_inputs(inputs, data_options, loaded.tokenizer.get());
  const auto evaluation = infer::evaluate_dataset(
      *loaded.model, *dataset, arguments.rows, arguments.max_windows,
      [](int64_t done, int64_t all) { log::verbose("{} of {} windows", done, all); });
  print_evaluation(evaluation, {{"bytes", evaluation.num_bytes}}, options);
}

}  // namespace

void add_eval(CLI::App& app, GlobalOptions& options) {
  CLI::App* command = app.add_subcommand(
      "eval", "loss, perplexity and bits per byte of a model, or accuracy on tasks");
  auto arguments = std::make_shared<EvalArguments>();
  command
      ->add_option("MODEL", arguments->model,
                   "a Hugging Face directory, a checkpoint or a run's folder")
      ->required();
  command->add_option("--data", arguments->data,
                      "text, .jsonl[.gz|.zst] or .bin/.idx prefixes; globs work");
  command->add_option("--ids", arguments->ids, "a file with one JSON array of token ids a line");
  command->add_option("--tasks", arguments->tasks,
                      "a JSON-lines file of multiple-choice questions (docs/formats/tasks.md)");
  command->add_option("--precision", arguments->precision, "fp32 or bf16")->capture_default_str();
  add_device_options(*command, arguments->device);
  command->add_option("--tokenizer", arguments->tokenizer, "in place of the model's own");
  command->add_option("--packing", arguments->packing, "documents or stream")
      ->capture_default_str();
  command
      ->add_option("--seq-len", arguments->seq_len,
                   "window length; 0: the model's context, at most 1024")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--rows", arguments->rows, "windows in a forward pass")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--max-windows", arguments->max_windows, "stop after so many windows; 0: all")
      ->check(CLI::NonNegativeNumber);
  add_global_options(*command, options, "trireme eval runs/first/export --data 'valid/*.txt'");
  command->callback([arguments, &options] { run_eval(*arguments, options); });
}

}  // namespace trireme::cli
