// The sub-commands of `trireme plan` that use profiles.
#pragma once

#include <string>
#include <vector>

#include "trireme/cli/command.h"
#include "trireme/plan/prediction.h"

namespace trireme::cli {

/// The shipped profiles and those of `files`, which come first. Error{kConfig} as ProfileLibrary::add().
plan::ProfileLibrary load_profiles(const std::vector<std::string>& files);

/// Of a run file: its model and strategy on a cluster, as Trireme runs it.
struct ClusterArguments {
  std::string cluster;  ///< empty: not asked for
  std::string stack;
  std::vector<std::string> profiles;
  /// "tp=8": sizes of the [parallel] table, also those that training does not have yet.
  std::vector<std::string> parallel;
};
plan::PlannedRun planned_on_cluster(const model::ModelSpec& spec, plan::Strategy strategy,
                                    const ClusterArguments& arguments);

/// `trireme plan calibrate`.
void add_plan_calibrate(CLI::App& plan, GlobalOptions& options);

/// `trireme plan score`.
void add_plan_score(CLI::App& plan, GlobalOptions& options);
/// `trireme plan search`.
void add_plan_search(CLI::App& plan, GlobalOptions& options);

}  // namespace trireme::cli
