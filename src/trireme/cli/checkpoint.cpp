// trireme checkpoint list | verify | digest | diff
#include <fmt/core.h>

#include <cmath>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/checkpoint/compare.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/cli/command.h"

namespace trireme::cli {

namespace {

/// JSON has no infinity.
OrderedJson finite_or_null(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr);
}

void list(const std::string& path, const GlobalOptions& options) {
  const auto summaries = checkpoint::list_checkpoints(path);
  TRIREME_USER_CHECK(!summaries.empty(), kData, "name a run's folder, or its checkpoints/ folder",
                     "{} has no checkpoints", path);
  OrderedJson entries = OrderedJson::array();
  for (const auto& summary : summaries) {
    entries.push_back({{"step", summary.step},
                       {"path", summary.path.string()},
                       {"bytes", summary.bytes},
                       {"tensors", summary.num_tensors},
                       {"digest", summary.digest},
                       {"problem", summary.problem}});
    if (options.json) continue;
    if (summary.problem.empty()) {
      fmt::print("{}  {:.1f} MB  {} tensors  {}\n", summary.path.string(),
                 static_cast<double>(summary.bytes) / 1e6, summary.num_tensors, summary.digest);
    } else {
      fmt::print("{}  damaged: {}\n", summary.path.string(), summary.problem);
    }
  }
  if (options.json) print_json({{"checkpoints", entries}});
}

void verify(const std::string& path, const GlobalOptions& options) {
  const auto damages = checkpoint::Checkpoint::verify(path);
  OrderedJson entries = OrderedJson::array();
  for (const auto& damage : damages) {
    entries.push_back(
        {{"file", damage.file}, {"tensor", damage.tensor}, {"reason", damage.reason}});
    if (!options.json) {
      fmt::print("{}{}{}: {}\n", damage.file, damage.tensor.empty() ? "" : ": tensor ",
                 damage.tensor, damage.reason);
    }
  }
  if (options.json) print_json({{"ok", damages.empty()}, {"damaged", entries}});
  TRIREME_USER_CHECK(damages.empty(), kData, "use an older checkpoint, or copy this one again",
                     "{} is damaged in {} places", path, damages.size());
  if (!options.json) fmt::print("ok\n");
}

void digest(const std::string& path, const GlobalOptions& options) {
  const auto listing = checkpoint::list_tensors(path);
  OrderedJson entries = OrderedJson::array();
  for (const auto& tensor : listing.tensors) {
    entries.push_back({{"name", tensor.info.name},
                       {"dtype", checkpoint::dtype_name(tensor.info.dtype)},
                       {"shape", tensor.info.shape},
                       {"xxh3", tensor.xxh3}});
    if (!options.json) {
      fmt::print("{} {} {} {}\n", tensor.info.name, checkpoint::dtype_name(tensor.info.dtype),
                 checkpoint::shape_text(tensor.info.shape), tensor.xxh3);
    }
  }
  if (options.json) {
    print_json({{"digest", listing.digest}, {"path", listing.path.string()}, {"tensors", entries}});
  } else {
    fmt::print("{}\n", listing.digest);
  }
}

void diff(const std::string& a, const std::string& b, const GlobalOptions& options) {
  const auto differences = checkpoint::compare_tensors(a, b);
  OrderedJson entries = OrderedJson::array();
  for (const auto& difference : differences) {
    entries.push_back({{"name", difference.name},
                       {"reason", difference.reason},
                       {"elements", difference.num_elements},
                       {"max_absolute", finite_or_null(difference.max_absolute)},
                       {"max_relative", finite_or_null(difference.max_relative)}});
    if (options.json) continue;
    if (difference.reason == "values") {
      fmt::print("{}: {} elements differ, by at most {:.3g} (relative {:.3g})\n", difference.name,
                 difference.num_elements, difference.max_absolute, difference.max_relative);
    } else {
      fmt::print("{}: {}\n", difference.name, difference.reason);
    }
  }
  if (options.json) print_json({{"equal", differences.empty()}, {"differences", entries}});
  TRIREME_USER_CHECK(differences.empty(), kData, "", "{} and {} differ in {} tensors", a, b,
                     differences.size());
  if (!options.json) fmt::print("equal\n");
}

}  // namespace

void add_checkpoint(CLI::App& app, GlobalOptions& options) {
  CLI::App* command =
      app.add_subcommand("checkpoint", "List, verify, digest and compare checkpoints");
  command->require_subcommand(1);
  add_global_options(*command, options, "trireme checkpoint list runs/first");
  struct Paths {
    std::string first;
    std::string second;
  };
  const auto paths = std::make_shared<Paths>();
  const auto add = [&](const char* name, const char* description, const char* path_description,
                       const std::string& example) {
    CLI::App* sub = command->add_subcommand(name, description);
    sub->add_option("path", paths->first, path_description)->required();
    add_global_options(*sub, options, example);
    return sub;
  };
  add("list", "Show the checkpoints of a run", "a run's folder, or its checkpoints/",
      "trireme checkpoint list runs/first")
      ->callback([paths, &options] { list(paths->first, options); });
  add("verify", "Check every size and checksum; status 3 if anything is damaged",
      "a checkpoint, or a run's folder for its newest",
      "trireme checkpoint verify runs/first/checkpoints/step-500")
      ->callback([paths, &options] { verify(paths->first, options); });
  add("digest", "Print one line a tensor and a digest of all, without regard to files and layout",
      "a checkpoint, a run's folder, a Hugging Face directory or a .safetensors file",
      "trireme checkpoint digest runs/first")
      ->callback([paths, &options] { digest(paths->first, options); });
  CLI::App* compare =
      add("diff", "Name what differs and by how much; status 3 if anything does",
          "a checkpoint, a run's folder, a Hugging Face directory or a .safetensors file",
          "trireme checkpoint diff runs/first runs/second");
  compare->add_option("other", paths->second, "what to compare it with")->required();
  compare->callback([paths, &options] { diff(paths->first, paths->second, options); });
}

}  // namespace trireme::cli
