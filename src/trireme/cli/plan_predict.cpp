#include "trireme/cli/plan_predict.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/plan/score.h"

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

plan::PlannedRun planned_on_cluster(const model::ModelSpec& spec, const plan::Strategy& strategy,
                                    const ClusterArguments& arguments) {
  const plan::ProfileLibrary library = load_profiles(arguments.profiles);
  plan::PlannedRun run;
  run.spec = spec;
  run.strategy = strategy;
  run.cluster = library.cluster(arguments.cluster);
  run.stack = library.stack(arguments.stack);
  const plan::Parallel& parallel = strategy.parallel;
  // What programs cannot say yet is held as other software holds it (docs/design/0016).
  run.own_memory = arguments.stack == "trireme" && parallel.tp * parallel.cp * parallel.ep == 1 &&
                   parallel.zero < 3;
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
