// A run's folder: whose it is, and what an earlier process left there.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "trireme/checkpoint/checkpoint.h"
#include "trireme/train/run_config.h"

namespace trireme::train {

/// Holds `out` for one process. Thread-safety: one thread. Ownership: the lock ends with the object, or with the
/// process, however it ends.
class RunFolder {
 public:
  /// Makes the folder and locks it. Error{kConfig} naming the other process if it is taken, Error{kData} if the
  /// folder cannot be written to.
  explicit RunFolder(const std::filesystem::path& out);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  std::filesystem::path path(const std::string& name) const { return out_ / name; }
  std::filesystem::path checkpoints() const { return out_ / "checkpoints"; }

 private:
  std::filesystem::path out_;
  int fd_ = -1;
};

/// The checkpoint that a run continues from: `resume` is "auto" (the newest of `out`, if there is one), "no", or a
/// path. Error{kConfig} if that would mix two runs in one folder; Error{kData} for a path that holds none.
std::optional<std::filesystem::path> checkpoint_to_resume(const std::filesystem::path& out,
                                                          const std::string& resume);

/// What precision "auto" took for a run that ended before its first checkpoint, as its effective run file says; "" if there
/// is none, or it is of another run.
std::string precision_of_interrupted(const std::filesystem::path& run_toml, const RunFile& run);

/// Error{kConfig} naming every key in which the checkpoint's run differs from this one.
void check_same_run(const checkpoint::Checkpoint& checkpoint, const RunFile& run);

}  // namespace trireme::train
