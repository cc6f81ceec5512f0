#include "trireme/cli/command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "trireme/base/log.h"

namespace trireme::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Outcome {
  int status;
  std::string out;
  std::string err;
};

Outcome run_trireme(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "trireme");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int status = run(static_cast<int>(argv.size()), argv.data());
  std::string out = testing::internal::GetCapturedStdout();
  std::string err = testing::internal::GetCapturedStderr();
  log::set_level(log::Level::kInfo);
  return {status, out, err};
}

TEST(CommandTest, HelpAndVersionAreSuccess) {
  const Outcome help = run_trireme({"--help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_THAT(help.out, HasSubstr("doctor"));
  EXPECT_EQ(help.err, "");
  const Outcome version = run_trireme({"--version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_THAT(version.out, StartsWith("trireme "));
}

/// The commands that a help text lists.
std::vector<std::string> listed_commands(const std::string& help) {
  std::vector<std::string> names;
  const size_t begin = help.find("\nSubcommands:\n");
  if (begin == std::string::npos) return names;
  std::istringstream lines(help.substr(begin + 14));
  for (std::string line; std::getline(lines, line) && line.starts_with("  ");) {
    if (line.size() > 2 && line[2] != ' ') names.push_back(line.substr(2, line.find(' ', 2) - 2));
  }
  return names;
}

/// Visits a command and all below it; returns how many there are.
int expect_helpful(const std::vector<std::string>& command) {
  std::vector<std::string> arguments = command;
  arguments.push_back("--help");
  const Outcome outcome = run_trireme(arguments);
  EXPECT_EQ(outcome.status, 0);
  const std::string name = fmt::format("{}", fmt::join(command, " "));
  if (!command.empty()) {
    EXPECT_THAT(outcome.out, HasSubstr("Example:")) << name;
    EXPECT_THAT(outcome.out, HasSubstr("--json")) << name;
    EXPECT_THAT(outcome.out, HasSubstr("--quiet")) << name;
  }
  int count = 1;
  for (const std::string& below : listed_commands(outcome.out)) {
    std::vector<std::string> longer = command;
    longer.push_back(below);
    count += expect_helpful(longer);
  }
  return count;
}

TEST(CommandTest, EveryCommandHasHelpWithAnExampleAndJson) {
  EXPECT_GT(expect_helpful({}), 30);  // itself, 11 commands, and those below them
}

TEST(CommandTest, NoCommandNamesTheCommands) {
  const Outcome outcome = run_trireme({});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, StartsWith("error: trireme: a command is missing\n  hint: known: "));
}

TEST(CommandTest, UnknownCommandSuggestsTheNearest) {
  const Outcome outcome = run_trireme({"docto"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.err,
            "error: trireme: unknown command 'docto'\n  hint: did you mean 'doctor'?\n");
}

TEST(CommandTest, UnknownSecondCommandSuggestsTheNearest) {
  const Outcome outcome = run_trireme({"bench", "gem"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.err,
            "error: trireme bench: unknown command 'gem'\n  hint: did you mean 'gemm'?\n");
  const Outcome missing = run_trireme({"bench"});
  EXPECT_EQ(missing.status, 2);
  EXPECT_THAT(missing.err, HasSubstr("trireme bench: a command is missing"));
}

TEST(CommandTest, UnknownOptionSuggestsTheNearestEvenWithJson) {
  const Outcome outcome = run_trireme({"doctor", "--json", "--quite"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(outcome.err,
            "error: trireme doctor: unknown option '--quite'\n  hint: did you mean '--quiet'?\n");
}

TEST(CommandTest, WrongValuesNameTheOption) {
  const Outcome range = run_trireme({"bench", "gemm", "--seconds", "-1"});
  EXPECT_EQ(range.status, 2);
  EXPECT_THAT(range.err, HasSubstr("--seconds"));
  EXPECT_THAT(range.err, HasSubstr("hint: see 'trireme bench gemm --help'"));
  const Outcome choice = run_trireme({"bench", "gemm", "--precision", "fp7"});
  EXPECT_EQ(choice.status, 2);
  EXPECT_THAT(choice.err, HasSubstr("fp7"));
  const Outcome shape = run_trireme({"bench", "gemm", "--shape", "16x16"});
  EXPECT_EQ(shape.status, 2);
  EXPECT_THAT(shape.err, HasSubstr("16x16"));
  const Outcome required = run_trireme({"bench", "tokenize"});
  EXPECT_EQ(required.status, 2);
  EXPECT_THAT(required.err, HasSubstr("files"));
}

TEST(CommandTest, VerboseSaysWhereAnErrorArose) {
  const std::vector<std::string> arguments = {"bench", "gemm", "--shape", "16x16"};
  EXPECT_THAT(run_trireme(arguments).err, ::testing::Not(HasSubstr("bench.cpp")));
  std::vector<std::string> verbose = arguments;
  verbose.push_back("--verbose");
  EXPECT_THAT(run_trireme(verbose).err, HasSubstr("cli/bench.cpp:"));
}

TEST(CommandTest, JsonIsOneDocumentOnStdout) {
  const Outcome outcome =
      run_trireme({"bench", "gemm", "--shape", "16x16x16", "--seconds", "0.001", "--json"});
  EXPECT_EQ(outcome.status, 0);
  const Json document = parse_json(outcome.out, "stdout");
  EXPECT_TRUE(document.contains("machine"));
  ASSERT_EQ(document["results"].size(), 2u);
  for (const Json& result : document["results"]) {
    EXPECT_EQ(result["unit"], "GFLOP/s");
    EXPECT_GT(result["median"], 0);
    EXPECT_LE(result["min"], result["median"]);
    EXPECT_LE(result["median"], result["max"]);
  }
  EXPECT_EQ(document["results"][0]["name"], "gemm.fp32.16x16x16");
}

}  // namespace
}  // namespace trireme::cli
