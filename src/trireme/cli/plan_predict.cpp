#include "trireme/cli/plan_predict.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/suggest.h"
#include "trireme/plan/score.h"
#include "trireme/plan/validate_parallel.h"

namespace trireme::cli {

namespace {

struct ScoreArguments {
  std::string truth;
  std::vector<std::string> clusters;
  bool rows = false;
};

std::vector<plan::TruthFile> read_truth(const std::string& folder) {
  std::error_code failed;
  std::filesystem::directory_iterator entries(folder, failed);
  TRIREME_USER_CHECK(!failed, kData, "give a folder of .csv files", "--truth {}: {}", folder,
                     failed.message());
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : entries) {
    if (entry.path().extension() == ".csv") paths.push_back(entry.path());
  }
  TRIREME_USER_CHECK(!paths.empty(), kData, "give a folder of .csv files",
                     "--truth {}: there is no .csv file", folder);
  std::ranges::sort(paths);
  std::vector<plan::TruthFile> files;
  for (const std::filesystem::path& path : paths)
    files.push_back({path.stem().string(), read_file(path.string())});
  return files;
}

void set_size(const std::string& text, plan::Parallel& parallel) {
  static const std::map<std::string, int64_t plan::Parallel::*> sizes = {
      {"dp", &plan::Parallel::dp},       {"zero", &plan::Parallel::zero},
      {"shard", &plan::Parallel::shard}, {"tp", &plan::Parallel::tp},
      {"pp", &plan::Parallel::pp},       {"chunks", &plan::Parallel::chunks},
      {"cp", &plan::Parallel::cp},       {"ep", &plan::Parallel::ep},
      {"etp", &plan::Parallel::etp}};
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  std::vector<std::string> names;
  names.reserve(sizes.size());
  for (const auto& entry : sizes) names.push_back(entry.first);
  TRIREME_USER_CHECK(equals != std::string::npos && sizes.contains(name), kConfig,
                     suggestion(name, names), "--parallel {}: write a size as tp=8", text);
  const std::string digits = text.substr(equals + 1);
  int64_t value = -1;
  const auto [end, failed] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  constexpr int64_t kMost = 1 << 20;
  TRIREME_USER_CHECK(failed == std::errc() && end == digits.data() + digits.size() && value >= 0 &&
                         value <= kMost && (value > 0 || name == "zero" || name == "shard"),
                     kConfig, "give a whole number", "--parallel {}: \"{}\" is no size", text,
                     digits);
  parallel.*sizes.at(name) = value;
}

void score(const ScoreArguments& arguments, const GlobalOptions& options) {
  const plan::ProfileLibrary library = load_profiles(arguments.clusters);
  const plan::Score result = plan::score(read_truth(arguments.truth), library);
  if (options.json) {
    print_json(plan::score_json(result, arguments.rows));
  } else {
    fmt::print("{}", plan::describe(result, arguments.rows));
  }
}

}  // namespace

plan::ProfileLibrary load_profiles(const std::vector<std::string>& files) {
  plan::ProfileLibrary library = plan::shipped_profiles();
  for (const std::string& file : files) library.add(read_file(file), file);
  return library;
}

plan::PlannedRun planned_on_cluster(const model::ModelSpec& spec, plan::Strategy strategy,
                                    const ClusterArguments& arguments) {
  const plan::ProfileLibrary library = load_profiles(arguments.profiles);
  plan::PlannedRun run;
  run.spec = spec;
  for (const std::string& text : arguments.parallel) set_size(text, strategy.parallel);
  run.strategy = strategy;
  // Lanes are of the exact reduction, which the plan does not need.
  plan::Strategy checked = strategy;
  while (checked.lanes < checked.parallel.dp) checked.lanes *= 2;
  const std::vector<plan::ParallelProblem> problems = plan::validate_parallel(spec, checked);
  TRIREME_USER_CHECK(problems.empty(), kConfig, "", "{}", problems.front().reason);
  run.cluster = library.cluster(arguments.cluster);
  run.stack = library.stack(arguments.stack);
  if (arguments.stack == "trireme")
    run.stack.gradient_bytes = static_cast<double>(strategy.sum_bytes());
  const plan::Parallel& parallel = strategy.parallel;
  run.own_memory = arguments.stack == "trireme" && plan::programs_say(parallel);
  run.sharding.sequence_parallel = parallel.tp > 1;
  plan::use_profiles(library, "", run);
  return run;
}

void add_plan_score(CLI::App& plan, GlobalOptions& options) {
  auto arguments = std::make_shared<ScoreArguments>();
  CLI::App* command =
      plan.add_subcommand("score", "predictions beside published measurements, by source");
  command->add_option("--truth", arguments->truth, "folder of .csv files of published runs")
      ->required();
  command->add_option("--clusters", arguments->clusters,
                      "profiles that say which cluster a device's text means; they come first");
  command->add_flag("--rows", arguments->rows, "every row with its prediction");
  add_global_options(*command, options, "trireme plan score --truth ground_truth --json");
  command->callback([arguments, &options] { score(*arguments, options); });
}

}  // namespace trireme::cli
