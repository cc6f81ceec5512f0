// Writes checkpoints behind the training loop's back: save() copies the state into host memory and
// returns; a thread of its own writes, syncs, renames and removes the oldest. Several ranks write one checkpoint together, each the
// tensors that it is given, on a file system that all of them see.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "trireme/checkpoint/checkpoint.h"

namespace trireme::checkpoint {

/// How much there is to write.
struct Extent {
  uint64_t bytes = 0;
  uint64_t tensors = 0;
  Extent& operator+=(const Extent& other) {
    bytes += other.bytes;
    tensors += other.tensors;
    return *this;
  }
};
Extent extent_of(const std::vector<NamedTensor>& tensors);

/// The checkpoints of one run; each of its ranks has one.
/// Thread-safety: called from the step thread only. Ownership: owns its thread and the copies;
/// borrows storage. Asynchrony: save() blocks for the copy, and for the previous save if that still
/// runs; wait() until all is on disk.
class CheckpointWriter {
 public:
  struct Options {
    std::filesystem::path
        folder;    ///< <out>/checkpoints; rank 0 makes it if it is missing, before others' writers
    int keep = 3;  ///< newest to keep; at least 1
    int64_t shard_bytes = int64_t{4} << 30;
    Storage* storage = nullptr;  ///< nullptr: the real disk
    int rank = 0;
    int ranks = 1;
    std::function<void()> check =
        {};  ///< called by rank 0's thread while others write; throws if they cannot come
  };

  /// Rank 0 makes the folder and removes what killed runs left half written. Error{kData} if it cannot be
  /// written to, or is not to be seen from here.
  explicit CheckpointWriter(Options options);
  /// Waits for a running save; a failure that nobody asked about is logged.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Starts the checkpoint step-<state.step>. First rethrows the failure of an earlier save, if any
  /// (once), then checks the free space: Error{kData} with what is needed and what is free. Tensors
  /// may be written to as soon as it returns. A failed save leaves all earlier checkpoints
  /// untouched.
  void save(const std::vector<NamedTensor>& tensors, CheckpointState state);

  // The same of several ranks: rank 0's begin(), then every rank's save_share().

  /// The hidden folder of the checkpoint of a step, into which all ranks write their tensors, `all` together. Rethrows
  /// and checks as save() does, and blocks for the previous save.
  std::filesystem::path begin(int64_t step, const Extent& all);
  /// Starts writing this rank's tensors into what rank 0's begin() made; rank 0 then waits for the others', also in the background, and
  /// completes the checkpoint. `state` is rank 0's. A failure of any rank is rethrown by rank 0 too.
  void save_share(const std::filesystem::path& folder, const std::vector<NamedTensor>& tensors,
                  CheckpointState state);

  /// Blocks until the running save is on disk; throws its failure.
  void wait();

  bool busy() const;

  /// The newest checkpoint that this writer completed, or an empty path.
  std::filesystem::path last_completed() const;

  /// Seconds the last save() kept its caller once the one before was on disk, and seconds its write took in the background (0 while
  /// running).
  double last_stall_s() const;
  double last_write_s() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trireme::checkpoint
