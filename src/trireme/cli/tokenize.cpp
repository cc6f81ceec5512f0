// trireme tokenize train | encode | decode | inspect
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/log.h"
#include "trireme/cli/command.h"
#include "trireme/data/bpe_trainer.h"
#include "trireme/data/tokenizer.h"
#include "trireme/data/tokenizer_report.h"

namespace trireme::cli {
namespace {

struct TokenizeArguments {
  std::vector<std::string> files;
  std::string tokenizer;
  std::string out;
  std::vector<int32_t> ids;
  bool lines = false;
  bool plain = false;
  bool keep_special = false;
  bool no_special = false;
  int threads = 0;
  data::BpeTrainOptions train;
};

constexpr char kStandardInput[] = "-";

std::vector<std::filesystem::path> expand_all(const std::vector<std::string>& patterns) {
  std::vector<std::filesystem::path> files;
  for (const auto& pattern : patterns) {
    if (pattern == kStandardInput || std::filesystem::is_fifo(pattern)) {
      files.emplace_back(pattern);
      continue;
    }
    const auto found = expand_glob(pattern);
    TRIREME_USER_CHECK(!found.empty(), kData, "check the path; ** stands for any depth of folders",
                       "no file matches '{}'", pattern);
    files.insert(files.end(), found.begin(), found.end());
  }
  return files;
}

/// What a pipe or standard input holds.
std::string read_pipe(const std::filesystem::path& path) {
  if (path == kStandardInput)
    return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

/// A bar on a terminal; one line per phase when piped.
class TrainProgress {
 public:
  explicit TrainProgress(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0) {}

  void show(const data::BpeTrainProgress& progress) {
    if (quiet_) return;
    const bool complete = progress.done >= progress.total;
    const bool new_phase = phase_ != progress.phase;
    const auto now = std::chrono::steady_clock::now();
    if (!complete && !new_phase && now - shown_ < std::chrono::milliseconds(100)) return;
    shown_ = now;
    phase_ = progress.phase;
    const double share = progress.total > 0 ? static_cast<double>(progress.done) /
                                                  static_cast<double>(progress.total)
                                            : 1.0;
    const std::string what =
        phase_ == "count" ? fmt::format("counting words  {:.1f} of {:.1f} MB",
                                        static_cast<double>(progress.done) / 1e6,
                                        static_cast<double>(progress.total) / 1e6)
                          : fmt::format("merging pairs   {} of {}", progress.done, progress.total);
    if (terminal_) {
      constexpr int kWidth = 30;
      const int filled = static_cast<int>(share * kWidth);
      std::fprintf(stderr, "\r\x1b[K[%s%s] %3.0f%%  %s%s",
                   std::string(static_cast<size_t>(filled), '=').c_str(),
                   std::string(static_cast<size_t>(kWidth - filled), ' ').c_str(), share * 100,
                   what.c_str(), complete ? "\n" : "");
      std::fflush(stderr);
    } else if (complete) {
      log::info("{}", what);
    }
  }

 private:
  bool quiet_;
  bool terminal_;
  std::string phase_;
  std::chrono::steady_clock::time_point shown_;
};

void run_train(const TokenizeArguments& arguments, const GlobalOptions& global) {
  const auto files = expand_all(arguments.files);
  for (const auto& file : files) {
    TRIREME_USER_CHECK(std::filesystem::is_regular_file(file), kConfig,
                       "write the text to a file first",
                       "a tokenizer is trained on files, not on '{}'", file.string());
  }
  // Training takes minutes: what would fail at its end is looked at now.
  const auto folder = std::filesystem::absolute(arguments.out).parent_path();
  TRIREME_USER_CHECK(std::filesystem::is_directory(folder), kConfig, "create it first",
                     "--out {}: there is no folder {}", arguments.out, folder.string());
  ThreadPool pool(arguments.threads);
  TrainProgress progress(global.quiet);
  const auto tokenizer = data::train_bpe(
      arguments.train, files, pool, [&](const data::BpeTrainProgress& now) { progress.show(now); });
  if (tokenizer->vocab_size() < arguments.train.vocab_size) {
    log::warning("the text has pairs for {} tokens only, not {}", tokenizer->vocab_size(),
                 arguments.train.vocab_size);
  }
  write_file_atomically(arguments.out, tokenizer->to_json());
  if (global.json) {
    print_json({{"path", arguments.out},
                {"vocab_size", tokenizer->vocab_size()},
                {"files", files.size()},
                {"fingerprint", tokenizer->fingerprint()}});
  } else {
    fmt::print("{}: {} tokens from {} files\n", arguments.out, tokenizer->vocab_size(),
               files.size());
  }
}

void run_encode(const TokenizeArguments& arguments, const GlobalOptions& global) {
  const auto tokenizer = data::load_tokenizer(arguments.tokenizer);
  const data::EncodeOptions options{.add_special_tokens = !arguments.no_special,
                                    .parse_special = !arguments.plain};
  const auto files = expand_all(arguments.files);
  ThreadPool pool(arguments.threads);
  data::EncodeReport report(global.json, arguments.lines, files.size() == 1 && !arguments.lines,
                            stdout);
  for (const auto& file : files) {
    if (!std::filesystem::is_regular_file(file)) {
      report.add(file.string(), read_pipe(file), *tokenizer, options, pool);
      continue;
    }
    const MappedFile map(file);
    report.add(file.string(), map.text(), *tokenizer, options, pool);
  }
  report.finish();
}

void run_decode(const TokenizeArguments& arguments, const GlobalOptions& global) {
  const auto tokenizer = data::load_tokenizer(arguments.tokenizer);
  std::vector<std::vector<int32_t>> sequences;
  if (!arguments.ids.empty()) sequences.push_back(arguments.ids);
  for (const auto& file : arguments.files) {
    const bool piped = file == kStandardInput;
    const std::string text = piped ? read_pipe(file) : read_file(file);
    auto found = data::read_id_sequences(text, piped ? "standard input" : file);
    std::move(found.begin(), found.end(), std::back_inserter(sequences));
  }
  TRIREME_USER_CHECK(!sequences.empty(), kConfig, "give --ids 1,2,3 or a file with lists of ids",
                     "there are no ids to decode");
  OrderedJson texts = OrderedJson::array();
  for (const auto& ids : sequences) {
    const std::string text = tokenizer->decode(ids, !arguments.keep_special);
    if (global.json) {
      texts.push_back(text);
    } else {
      fmt::print("{}\n", text);
    }
  }
  if (global.json) print_json({{"texts", texts}});
}

void run_inspect(const TokenizeArguments& arguments, const GlobalOptions& global) {
  const auto tokenizer = data::load_tokenizer(arguments.tokenizer);
  ThreadPool pool(arguments.threads);
  const auto report = data::inspect_tokenizer(*tokenizer, expand_all(arguments.files), pool);
  if (global.json) {
    print_json(data::inspection_json(report));
  } else {
    fmt::print("{}", data::inspection_text(report));
  }
}

}  // namespace

void add_tokenize(CLI::App& app, GlobalOptions& options) {
  auto* command = app.add_subcommand("tokenize", "train a tokenizer, turn text into ids and back");
  command->require_subcommand(1);
  add_global_options(*command, options,
                     "trireme tokenize encode --tokenizer tokenizer.json text.txt");
  auto arguments = std::make_shared<TokenizeArguments>();
  const auto tokenizer_option = [&](CLI::App* sub) {
    sub->add_option("--tokenizer,-t", arguments->tokenizer,
                    "a tokenizer.json, a folder that holds one, or \"bytes\"")
        ->required();
  };
  const auto threads_option = [&](CLI::App* sub) {
    sub->add_option("--threads", arguments->threads, "threads to use; 0: all")
        ->check(CLI::Range(0, 4096));
  };

  auto* train = command->add_subcommand("train", "train byte-level BPE on text files");
  train->add_option("files", arguments->files, "text files or patterns (\"src/**/*.py\")")
      ->required();
  train->add_option("--out,-o", arguments->out, "tokenizer.json to write")->required();
  train
      ->add_option("--vocab-size", arguments->train.vocab_size,
                   "tokens, with bytes and special tokens")
      ->capture_default_str();
  train
      ->add_option("--pattern", arguments->train.pattern,
                   "how text is cut into pieces: gpt2, llama3, qwen2")
      ->capture_default_str();
  train
      ->add_option("--special", arguments->train.special_tokens,
                   "special tokens, in the order of their ids")
      ->delimiter(',')
      ->capture_default_str();
  train
      ->add_option("--min-frequency", arguments->train.min_frequency,
                   "merge pairs seen at least this often")
      ->capture_default_str();
  threads_option(train);
  add_global_options(*train, options,
                     "trireme tokenize train 'src/**/*.py' --vocab-size 8192 --out tokenizer.json");
  train->callback([arguments, &options] { run_train(*arguments, options); });

  auto* encode = command->add_subcommand("encode", "turn text into ids");
  tokenizer_option(encode);
  encode->add_option("files", arguments->files, "text files or patterns; - for standard input")
      ->required();
  encode->add_flag("--lines", arguments->lines,
                   "every line (ended by \\n alone) is a text of its own");
  encode->add_flag("--plain", arguments->plain, "special tokens written in the text are text");
  encode->add_flag("--no-special", arguments->no_special, "add no tokens around the text");
  threads_option(encode);
  add_global_options(*encode, options,
                     "trireme tokenize encode --tokenizer tokenizer.json --json README.md");
  encode->callback([arguments, &options] { run_encode(*arguments, options); });

  auto* decode = command->add_subcommand("decode", "turn ids into text");
  tokenizer_option(decode);
  decode->add_option(
      "files", arguments->files,
      "files with lists of ids, one JSON array a line, or what encode wrote; - for standard input");
  decode->add_option("--ids", arguments->ids, "ids, separated by commas")->delimiter(',');
  decode->add_flag("--keep-special", arguments->keep_special, "write special tokens too");
  add_global_options(*decode, options,
                     "trireme tokenize decode --tokenizer tokenizer.json --ids 72,101,108");
  decode->callback([arguments, &options] { run_decode(*arguments, options); });

  auto* inspect =
      command->add_subcommand("inspect", "what a tokenizer holds, and how well it packs text");
  tokenizer_option(inspect);
  inspect->add_option("files", arguments->files, "text files to measure on");
  threads_option(inspect);
  add_global_options(*inspect, options,
                     "trireme tokenize inspect --tokenizer tokenizer.json README.md");
  inspect->callback([arguments, &options] { run_inspect(*arguments, options); });
}

}  // namespace trireme::cli
