// Checkpoints of our own: a folder step-N/ with layout-free safetensors shards, the texts a model
// needs (config.json, tokenizer.json ...) and manifest.json with sizes and xxh3 checksums of all of
// it.
//
// Invariant: a folder named step-N is complete; everything is written to a temporary, synced and
// renamed. Format: docs/formats/checkpoint.md. Tensors are whole (never a rank's piece), named as
// Hugging Face names them; optimizer state is named "optimizer.<state>.<parameter>".
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/checkpoint/safetensors.h"
#include "trireme/checkpoint/storage.h"

namespace trireme::checkpoint {

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kOptimizerPrefix =
    "optimizer.";  ///< names of everything that is not a parameter

/// A tensor and its name. Parameters carry their plain Hugging Face name (ParameterSpec::name).
struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

/// A tensor made when its turn to be written comes: for models larger than memory.
struct TensorToWrite {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  std::function<at::Tensor()>
      make;  ///< called once; returns that shape, contiguous or not, any device; of that type, or of
             ///< another floating type, which is converted piece by piece as it is written
  /// If there are any, what is written, so that memory for one of them is enough: what lies one after the other along dimension 0,
  /// made in turn. `make`, if there too, makes all of it for other readers.
  std::vector<std::function<at::Tensor()>> pieces = {};
  /// May be empty. Lets go of the mapped memory behind what was made; what is read again comes back
  /// from the file.
  std::function<void()> release = {};
};

/// Everything of a checkpoint that is not a tensor.
struct CheckpointState {
  int64_t step = 0;
  Json train;  ///< the train loop's own state (tokens, sampler position, schedule, fingerprint
               ///< ...); any JSON
  std::map<std::string, std::string>
      texts;  ///< file name -> content: "config.json", "tokenizer.json" ...
};

struct SaveOptions {
  int64_t shard_bytes = int64_t{4}
                        << 30;  ///< data of one file; a larger tensor gets a file of its own
  Storage* storage = nullptr;   ///< nullptr: the real disk
};

struct FileEntry {
  std::string name;
  uint64_t bytes = 0;
  std::string xxh3;
};

struct TensorEntry {
  TensorInfo info;
  std::string file;
  std::string xxh3;  ///< of the tensor's little-endian contiguous bytes
};

/// manifest.json.
struct Manifest {
  int64_t step = 0;
  std::vector<FileEntry> files;      ///< all but the manifest itself
  std::vector<TensorEntry> tensors;  ///< sorted by name
  Json train;
  std::string digest;  ///< of all tensors, see digest_of
  uint64_t total_bytes() const;
};

/// The digest of all: over the lines "name dtype shape xxh3" in the order of names, so that neither
/// files nor shard sizes enter. `tensors` in any order.
std::string digest_of(const std::vector<TensorEntry>& tensors);

/// Writes one checkpoint as folder `path`, atomically; an existing checkpoint there is replaced in
/// one step. Blocking. Error{kData} naming the reason (full disk, read-only ...); what was there
/// stays.
Manifest write_checkpoint(const std::filesystem::path& path, std::vector<TensorToWrite> tensors,
                          const CheckpointState& state, const SaveOptions& options = {});
Manifest write_checkpoint(const std::filesystem::path& path,
                          const std::vector<NamedTensor>& tensors, const CheckpointState& state,
                          const SaveOptions& options = {});

/// Tensors that exist, as they are.
std::vector<TensorToWrite> to_write(const std::vector<NamedTensor>& tensors);

/// What is wrong with a checkpoint. `tensor` is empty where it concerns a whole file.
struct Damage {
  std::string file;
  std::string tensor;
  std::string reason;
};

/// An opened checkpoint. Tensors are read-only views of memory maps that live as long as any of
/// them. Thread-safety: const calls from any thread.
class Checkpoint {
 public:
  /// Opens a checkpoint folder, or the newest one below a run's folder (see resolve_checkpoint).
  /// Checks the manifest's own checksum, all files' sizes and all shard headers; Error{kData} names
  /// file and tensor.
  explicit Checkpoint(const std::filesystem::path& path);
  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;

  const std::filesystem::path& path() const;
  const Manifest& manifest() const;
  int64_t step() const { return manifest().step; }
  const Json& train_state() const { return manifest().train; }
  bool has(const std::string& name) const;
  /// A read-only view of the map; copy it before writing. With `verify` its checksum is checked
  /// first. Error{kData} if absent or damaged.
  at::Tensor tensor(const std::string& name, bool verify = true) const;
  /// Error{kData} if a tensor's bytes do not match its checksum. `entry`: one of the manifest. Reads all of it.
  void check_tensor(const TensorEntry& entry) const;
  /// Lets go of the memory that reading a tensor has taken; views of it stay valid.
  void release(const std::string& name) const;
  /// All tensors in the order of the manifest.
  std::vector<NamedTensor> tensors(bool verify = true) const;
  /// The content of a text file, "" if the checkpoint has none of that name; its checksum is
  /// checked.
  std::string text(const std::string& file_name) const;
  /// Checks every checksum; empty if all is well. Reads everything.
  std::vector<Damage> verify() const;
  /// The same for a checkpoint that may not even open. Throws only if there is no checkpoint at
  /// all.
  static std::vector<Damage> verify(const std::filesystem::path& path);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// One checkpoint of a folder, as `checkpoint list` shows it.
struct CheckpointSummary {
  std::filesystem::path path;
  int64_t step = 0;
  uint64_t bytes = 0;
  int64_t num_tensors = 0;
  std::string digest;   ///< as the manifest says
  std::string problem;  ///< empty if the manifest and the sizes are well
};

/// step-N folders below `folder`, ascending by N. Also accepts a run's folder (its checkpoints/).
std::vector<CheckpointSummary> list_checkpoints(const std::filesystem::path& folder);

/// (N, path) of the step-N folders directly in `folder`, ascending by N; opens none of them.
std::vector<std::pair<int64_t, std::filesystem::path>> step_folders(
    const std::filesystem::path& folder);

/// The step-N folder with the largest N below `checkpoints`, or nothing. It is complete; whether
/// its bytes are still what was written is checked on opening.
std::optional<std::filesystem::path> find_latest(const std::filesystem::path& checkpoints);

/// The checkpoint folder that a user's path means: itself, the newest of `path`/checkpoints/ or of
/// `path`. Error{kData} if there is none.
std::filesystem::path resolve_checkpoint(const std::filesystem::path& path);

/// "step-N".
std::string step_folder_name(int64_t step);

}  // namespace trireme::checkpoint
