// trireme data prepare | inspect | corpus
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/log.h"
#include "trireme/cli/command.h"
#include "trireme/data/default_corpus.h"
#include "trireme/data/prepare.h"
#include "trireme/data/summary.h"
#include "trireme/data/tokenizer.h"

namespace trireme::cli {

namespace {

/// One line that is rewritten on a terminal, and nothing when piped.
class ProgressLine {
 public:
  explicit ProgressLine(const GlobalOptions& options)
      : shown_(!options.quiet && isatty(STDERR_FILENO) != 0) {}
  ~ProgressLine() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  void show(const std::string& text) const {
    if (shown_) std::fprintf(stderr, "\r\x1b[K%s", text.c_str());
  }

 private:
  bool shown_;
};

struct PrepareArguments {
  std::vector<std::string> inputs;
  std::string tokenizer;
  std::string out;
  std::string loss_mask = "none";
  std::string chat_template;
  data::PrepareOptions options;
};

struct InspectArguments {
  std::vector<std::string> inputs;
  std::string tokenizer;
  data::DocumentFormat format;
};

std::vector<std::filesystem::path> expand(const std::vector<std::string>& patterns) {
  std::vector<std::filesystem::path> files;
  for (const auto& pattern : patterns) {
    const auto found = expand_glob(pattern);
    TRIREME_USER_CHECK(!found.empty(), kData,
                       "check the path; a folder is written as \"folder/**/*.txt\"",
                       "no file matches \"{}\"", pattern);
    files.insert(files.end(), found.begin(), found.end());
  }
  return files;
}

OrderedJson json_of(const data::PreparedPart& part) {
  return {{"path", part.prefix.string()}, {"documents", part.documents}, {"tokens", part.tokens},
          {"predicted", part.predicted},  {"bytes", part.bytes},         {"max_id", part.max_id}};
}

void print_part(const data::PreparedPart& part) {
  fmt::print("{}.bin: {} documents, {} tokens from {} bytes\n", part.prefix.string(),
             part.documents, part.tokens, part.bytes);
  if (part.predicted < part.tokens) fmt::print("  {} of the tokens are answers\n", part.predicted);
}

void run_prepare(const PrepareArguments& arguments, const GlobalOptions& global) {
  install_interrupt_handlers();
  const auto files = expand(arguments.inputs);
  const auto tokenizer = data::load_tokenizer(arguments.tokenizer);
  data::PrepareResult result;
  {
    const ProgressLine line(global);
    data::PrepareOptions options = arguments.options;
    if (arguments.loss_mask == "answers") {
      options.format.conversations = true;
      options.chat = data::load_chat_template(arguments.tokenizer, arguments.chat_template);
      TRIREME_USER_CHECK(
          options.chat != nullptr, kConfig,
          "put the model's chat_template.jinja beside the tokenizer, or name one with "
          "--chat-template",
          "--tokenizer {}: it has no chat template", arguments.tokenizer);
    }
    options.progress = [&line](const data::PrepareProgress& progress) {
      line.show(fmt::format("file {} of {}, {} tokens", progress.files_done, progress.files,
                            progress.tokens));
    };
    result = data::prepare(files, *tokenizer, arguments.out, options);
  }
  if (global.json) {
    OrderedJson json = {{"files", files.size()},
                        {"duplicates", result.duplicates},
                        {"train", json_of(result.train)}};
    if (!result.valid.prefix.empty()) json["valid"] = json_of(result.valid);
    print_json(json);
    return;
  }
  print_part(result.train);
  if (!result.valid.prefix.empty()) print_part(result.valid);
  if (result.duplicates > 0) fmt::print("{} duplicates left out\n", result.duplicates);
}

void run_inspect(const InspectArguments& arguments, const GlobalOptions& global) {
  std::unique_ptr<data::Tokenizer> tokenizer;
  if (!arguments.tokenizer.empty()) tokenizer = data::load_tokenizer(arguments.tokenizer);
  OrderedJson all = OrderedJson::array();
  for (const auto& input : arguments.inputs) {
    const auto summary = data::summarize_data(input, arguments.format, tokenizer.get());
    if (global.json) {
      all.push_back(data::to_json(summary));
    } else {
      std::fputs(data::to_text(summary).c_str(), stdout);
    }
  }
  if (global.json) print_json({{"inputs", all}});
}

void run_corpus(data::CorpusOptions options, const GlobalOptions& global) {
  install_interrupt_handlers();
  OrderedJson corpus;
  {
    const ProgressLine line(global);
    options.progress = [&line](const std::string& phase, double share) {
      line.show(fmt::format("{} {:.0f} %", phase, share * 100));
    };
    corpus = data::make_corpus(options);
  }
  if (global.json) return print_json(corpus);
  const auto& train = corpus["train"];
  const auto& valid = corpus["valid"];
  fmt::print(
      "{}: {} tokens from {:.1f} MB to train on, {} from {:.1f} MB held out, {} duplicate files "
      "left out\n",
      options.out.string(), train["tokens"].get<int64_t>(), train["bytes"].get<double>() / 1e6,
      valid["tokens"].get<int64_t>(), valid["bytes"].get<double>() / 1e6,
      corpus["duplicates"].get<int64_t>());
}

void add_prepare(CLI::App& data_command, GlobalOptions& global) {
  auto arguments = std::make_shared<PrepareArguments>();
  CLI::App* command =
      data_command.add_subcommand("prepare", "tokenize text or JSONL into a .bin/.idx pair");
  command
      ->add_option("inputs", arguments->inputs,
                   "files or globs: text, .jsonl, each also .gz or .zst")
      ->required();
  command
      ->add_option("--tokenizer", arguments->tokenizer, "tokenizer.json, its folder, or \"bytes\"")
      ->required();
  command->add_option("--out", arguments->out, "path of the result without .bin")->required();
  command
      ->add_option("--jsonl-field", arguments->options.format.jsonl_field,
                   "field that holds the text")
      ->capture_default_str();
  command->add_option(
      "--separator", arguments->options.format.separator,
      "string between the documents of a text file; without it a file is a document");
  command->add_option("--valid-fraction", arguments->options.valid_fraction,
                      "share of the documents that goes to OUT-valid");
  command
      ->add_option(
          "--loss-mask", arguments->loss_mask,
          "answers: lines are conversations ({\"messages\": [...]}), and a mask says which "
          "tokens the assistant says")
      ->check(CLI::IsMember({"none", "answers"}))
      ->capture_default_str();
  command->add_option("--chat-template", arguments->chat_template,
                      "a Jinja file in place of the tokenizer's own template");
  command->add_flag("--deduplicate", arguments->options.deduplicate,
                    "leave out documents seen before");
  command->add_option("--threads", arguments->options.num_threads, "0: all");
  add_global_options(
      *command, global,
      "trireme data prepare --tokenizer tokenizer.json --out data/books 'books/**/*.txt'");
  command->callback([arguments, &global] { run_prepare(*arguments, global); });
}

void add_inspect(CLI::App& data_command, GlobalOptions& global) {
  auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = data_command.add_subcommand(
      "inspect", "documents, lengths and a sample of data sets or text files");
  command->add_option("inputs", arguments->inputs, ".bin/.idx pairs, text or JSONL files")
      ->required();
  command->add_option("--tokenizer", arguments->tokenizer,
                      "decodes tokens, or counts them in text");
  command->add_option("--jsonl-field", arguments->format.jsonl_field, "field that holds the text")
      ->capture_default_str();
  command->add_option("--separator", arguments->format.separator,
                      "string between the documents of a text file");
  add_global_options(*command, global,
                     "trireme data inspect data/books --tokenizer tokenizer.json");
  command->callback([arguments, &global] { run_inspect(*arguments, global); });
}

void add_corpus(CLI::App& data_command, GlobalOptions& global) {
  auto options = std::make_shared<data::CorpusOptions>();
  CLI::App* command = data_command.add_subcommand(
      "corpus",
      "gather a corpus from folders: deduplicate, split by file, train a tokenizer, prepare");
  command->add_option("sources", options->sources, "folders, searched to any depth")->required();
  command->add_option("--out", options->out, "folder for the corpus")->required();
  command->add_option("--extension", options->extensions, "files to take")->capture_default_str();
  command->add_option("--valid-fraction", options->valid_fraction, "share of the files held out")
      ->capture_default_str();
  command->add_option("--vocab-size", options->vocab_size, "of the tokenizer")
      ->capture_default_str();
  command->add_option("--threads", options->num_threads, "0: all");
  add_global_options(*command, global, "trireme data corpus --out corpus /usr/lib/python3");
  command->callback([options, &global] { run_corpus(*options, global); });
}

}  // namespace

void add_data(CLI::App& app, GlobalOptions& options) {
  CLI::App* command = app.add_subcommand("data", "prepare data sets and look into them");
  command->require_subcommand(1);
  add_global_options(*command, options, "trireme data prepare --help");
  add_prepare(*command, options);
  add_inspect(*command, options);
  add_corpus(*command, options);
}

}  // namespace trireme::cli
