#include "trireme/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "trireme/base/error.h"
#include "trireme/base/file.h"

namespace trireme::train {

namespace fs = std::filesystem;

RunFolder::RunFolder(const fs::path& out) : out_(out) {
  std::error_code error;
  fs::create_directories(out, error);
  TRIREME_USER_CHECK(fs::is_directory(out), kData,
                     "choose another out, or check who may write there",
                     "out = \"{}\": cannot make the folder: {}", out.string(),
                     error ? error.message() : std::string("something else has that name"));
  const fs::path lock = out / ".lock";
  fd_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  TRIREME_USER_CHECK(fd_ >= 0, kData, "choose another out, or check who may write there",
                     "out = \"{}\": cannot write there: {}", out.string(), std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    char text[32] = {};
    const ssize_t n = ::pread(fd_, text, sizeof(text) - 1, 0);
    ::close(fd_);
    throw Error(ErrorCode::kConfig,
                fmt::format("out = \"{}\": another run is writing there (process {})", out.string(),
                            n > 0 ? std::string(text, static_cast<size_t>(n)) : "unknown"),
                "wait for it, stop it, or choose another out");
  }
  const std::string pid = std::to_string(::getpid());
  // Only for the message above; the lock itself needs no content.
  if (::ftruncate(fd_, 0) == 0) [[maybe_unused]]
    const ssize_t n = ::pwrite(fd_, pid.data(), pid.size(), 0);
}

RunFolder::~RunFolder() {
  if (fd_ >= 0) ::close(fd_);
}

std::optional<fs::path> checkpoint_to_resume(const fs::path& out, const std::string& resume) {
  const std::optional<fs::path> newest = fs::is_directory(out / "checkpoints")
                                             ? checkpoint::find_latest(out / "checkpoints")
                                             : std::nullopt;
  if (resume == "auto") return newest;
  if (resume == "no") {
    TRIREME_USER_CHECK(!newest, kConfig, "choose another out, or remove the old run's folder",
                       "--resume no: out = \"{}\" holds a run already ({})", out.string(),
                       newest->filename().string());
    return std::nullopt;
  }
  const fs::path chosen = checkpoint::resolve_checkpoint(resume);
  if (newest) {
    const auto step = [](const fs::path& path) {
      return std::strtoll(path.filename().string().substr(5).c_str(), nullptr, 10);
    };
    const bool same_folder =
        fs::weakly_canonical(chosen.parent_path()) == fs::weakly_canonical(out / "checkpoints");
    TRIREME_USER_CHECK(same_folder ? step(*newest) <= step(chosen) : false, kConfig,
                       "choose another out, or remove the newer checkpoints",
                       "--resume {}: out = \"{}\" holds {} of a run already", resume, out.string(),
                       newest->filename().string());
  }
  return chosen;
}

namespace {

/// The run's values to compare with those that a run of before took: where its file leaves the weight of multi-token
/// prediction open, that run may have left modules out for itself. The models' configs are compared all the same.
RunConfig comparable(const RunFile& run, const RunConfig& theirs) {
  RunConfig ours = run.config;
  if (!is_written(run, "loss.mtp_weight") && theirs.loss.mtp_weight == 0.0)
    ours.loss.mtp_weight = 0.0;
  return ours;
}

}  // namespace

std::string precision_of_interrupted(const fs::path& run_toml, const RunFile& run) {
  if (!fs::exists(run_toml)) return "";
  try {
    const RunConfig theirs = parse_run_file(read_file(run_toml), run_toml.string()).config;
    RunConfig ours = comparable(run, theirs);
    ours.precision.recipe = theirs.precision.recipe;
    const bool same = differing_keys(theirs, ours).empty() && theirs.precision.recipe != "auto";
    return same ? theirs.precision.recipe : "";
  } catch (const Error&) {
    return "";  // a file of somebody's own: measured anew
  }
}

void check_same_run(const checkpoint::Checkpoint& checkpoint, const RunFile& run) {
  const std::string text = checkpoint.text("run.toml");
  TRIREME_USER_CHECK(!text.empty(), kData,
                     "to train on from these weights, write model.init = \"the path\"",
                     "{}: this checkpoint was not made by a training run; it cannot be resumed",
                     checkpoint.path().string());
  RunConfig theirs = parse_run_file(text, (checkpoint.path() / "run.toml").string()).config;
  RunConfig ours = comparable(run, theirs);
  // The precision that "auto" took is part of the checkpoint and is kept.
  const std::string taken = checkpoint.train_state().value("precision", "");
  for (RunConfig* config : {&theirs, &ours}) {
    if (config->precision.recipe == "auto") config->precision.recipe = taken;
  }
  const std::vector<std::string> differing = differing_keys(theirs, ours);
  if (differing.empty()) return;
  std::string list;
  for (const std::string& key : differing) list += (list.empty() ? "" : "; ") + key;
  throw Error(ErrorCode::kConfig,
              fmt::format("{} was made by a different run: {}", checkpoint.path().string(), list),
              "choose another out to start a new run; model.init = \"" +
                  checkpoint.path().string() + "\" starts it from these weights");
}

}  // namespace trireme::train
