#include "trireme/checkpoint/checkpoint.h"

#include <algorithm>
#include <charconv>

#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/suggest.h"
#include "trireme/checkpoint/checkpoint_share.h"
#include "trireme/checkpoint/manifest.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/checkpoint/tensor_stream.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr const char* kResumeHint =
    "move that folder away and run the same command again: it continues from the checkpoint before "
    "it";

std::string hash_of(std::span<const std::byte> bytes) {
  return hash_text(xxh3(bytes));
}

/// N of "step-N", or -1.
int64_t step_of(const std::string& name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix) || name.size() == kPrefix.size()) return -1;
  int64_t step = -1;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size();
  const auto result = std::from_chars(begin, end, step);
  return result.ec == std::errc() && result.ptr == end && step_folder_name(step) == name ? step
                                                                                         : -1;
}

uint64_t text_bytes(const CheckpointState& state) {
  uint64_t bytes = 0;
  for (const auto& [name, text] : state.texts) bytes += text.size();
  return bytes;
}

std::string message_of(const fs::path& path, const Damage& damage) {
  return damage.tensor.empty()
             ? fmt::format("the checkpoint {} is damaged: {}: {}", path.string(), damage.file,
                           damage.reason)
             : fmt::format("the checkpoint {} is damaged: {}: tensor '{}': {}", path.string(),
                           damage.file, damage.tensor, damage.reason);
}

}  // namespace

std::vector<std::pair<int64_t, fs::path>> step_folders(const fs::path& folder) {
  std::vector<std::pair<int64_t, fs::path>> steps;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const int64_t step = step_of(entry.path().filename().string());
    if (step >= 0 && entry.is_directory(ignored)) steps.emplace_back(step, entry.path());
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::string step_folder_name(int64_t step) {
  return fmt::format("step-{}", step);
}

Manifest write_checkpoint(const fs::path& path, std::vector<TensorToWrite> tensors,
                          const CheckpointState& state, const SaveOptions& options) {
  Storage& storage = options.storage ? *options.storage : disk();
  uint64_t bytes = text_bytes(state);
  for (const TensorToWrite& tensor : tensors) bytes += byte_size(tensor);
  FolderTransaction transaction(storage, path);
  check_free_space(storage, transaction.folder(), bytes);
  return commit_checkpoint(
      transaction,
      write_share(storage, transaction.folder(), std::move(tensors), options.shard_bytes), state);
}

std::vector<TensorToWrite> to_write(const std::vector<NamedTensor>& tensors) {
  std::vector<TensorToWrite> result;
  result.reserve(tensors.size());
  for (const NamedTensor& named : tensors) {
    result.push_back({named.name, dtype_of(named.tensor.scalar_type()), named.tensor.sizes().vec(),
                      [tensor = named.tensor] { return tensor; }});
  }
  return result;
}

Manifest write_checkpoint(const fs::path& path, const std::vector<NamedTensor>& tensors,
                          const CheckpointState& state, const SaveOptions& options) {
  return write_checkpoint(path, to_write(tensors), state, options);
}

struct Checkpoint::Impl {
  fs::path path;
  Manifest manifest;
  std::map<std::string, std::unique_ptr<TensorFile>> shards;
  std::map<std::string, std::pair<const TensorEntry*, const TensorInfo*>>
      tensors;  // entry, place in its shard

  /// Opens everything that opens; returns what is wrong.
  std::vector<Damage> open() {
    manifest = parse_manifest(read_file(path / kManifestName), (path / kManifestName).string());
    std::vector<Damage> damages;
    std::map<std::string, std::vector<const TensorEntry*>> by_file;
    for (const TensorEntry& tensor : manifest.tensors) by_file[tensor.file].push_back(&tensor);
    for (const FileEntry& file : manifest.files) {
      std::error_code error;
      const uint64_t size = fs::file_size(path / file.name, error);
      if (error) {
        damages.push_back({file.name, "", "missing"});
        continue;
      }
      if (size != file.bytes) {
        damages.push_back(
            {file.name, "", fmt::format("has {} bytes instead of {}", size, file.bytes)});
        continue;
      }
      if (by_file.contains(file.name)) open_shard(file.name, by_file.at(file.name), damages);
    }
    return damages;
  }

  void open_shard(const std::string& name, const std::vector<const TensorEntry*>& entries,
                  std::vector<Damage>& damages) {
    std::unique_ptr<TensorFile> shard;
    try {
      shard = std::make_unique<TensorFile>(path / name);
    } catch (const Error& error) {
      damages.push_back({name, "", error.what()});
      return;
    }
    std::map<std::string, const TensorInfo*> infos;
    for (const TensorInfo& info : shard->header().tensors) infos[info.name] = &info;
    if (infos.size() != entries.size()) {
      damages.push_back(
          {name, "", fmt::format("holds {} tensors instead of {}", infos.size(), entries.size())});
    }
    for (const TensorEntry* entry : entries) {
      const auto found = infos.find(entry->info.name);
      if (found == infos.end()) {
        damages.push_back({name, entry->info.name, "missing"});
      } else if (found->second->dtype != entry->info.dtype ||
                 found->second->shape != entry->info.shape) {
        damages.push_back(
            {name, entry->info.name,
             fmt::format("is {} {} instead of {} {}", dtype_name(found->second->dtype),
                         shape_text(found->second->shape), dtype_name(entry->info.dtype),
                         shape_text(entry->info.shape))});
      } else {
        tensors[entry->info.name] = {entry, found->second};
      }
    }
    shards[name] = std::move(shard);
  }

  std::vector<Damage> check_sums() const {
    std::vector<Damage> damages;
    std::map<std::string, int> damaged_tensors;
    for (const auto& [name, place] : tensors) {
      const auto& [entry, info] = place;
      if (hash_of(shards.at(entry->file)->bytes_of(*info)) == entry->xxh3) continue;
      damages.push_back({entry->file, name, "its bytes do not match its checksum"});
      ++damaged_tensors[entry->file];
    }
    for (const FileEntry& file : manifest.files) {
      const auto shard = shards.find(file.name);
      std::error_code error;
      if (shard == shards.end() && fs::file_size(path / file.name, error) != file.bytes)
        continue;  // known already
      if (damaged_tensors.contains(file.name)) continue;
      const std::string hash = shard != shards.end()
                                   ? hash_of(shard->second->bytes())
                                   : hash_of(MappedFile(path / file.name).bytes());
      if (hash != file.xxh3)
        damages.push_back({file.name, "", "its bytes do not match its checksum"});
    }
    return damages;
  }
};

Checkpoint::Checkpoint(const fs::path& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = resolve_checkpoint(path);
  const std::vector<Damage> damages = impl_->open();
  if (!damages.empty()) {
    throw Error(ErrorCode::kData, message_of(impl_->path, damages.front()), kResumeHint);
  }
}

Checkpoint::~Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;

const fs::path& Checkpoint::path() const {
  return impl_->path;
}
const Manifest& Checkpoint::manifest() const {
  return impl_->manifest;
}
bool Checkpoint::has(const std::string& name) const {
  return impl_->tensors.contains(name);
}

void Checkpoint::check_tensor(const TensorEntry& entry) const {
  const TensorFile& shard = *impl_->shards.at(entry.file);
  if (hash_text(hash_of_map(shard.bytes_of(*impl_->tensors.at(entry.info.name).second))) !=
      entry.xxh3) {
    throw Error(
        ErrorCode::kData,
        message_of(path(), {entry.file, entry.info.name, "its bytes do not match its checksum"}),
        kResumeHint);
  }
}

at::Tensor Checkpoint::tensor(const std::string& name, bool verify) const {
  const auto found = impl_->tensors.find(name);
  if (found == impl_->tensors.end()) {
    std::vector<std::string> names;
    for (const auto& [known, place] : impl_->tensors) names.push_back(known);
    const std::string nearest = nearest_name(name, names);
    throw Error(
        ErrorCode::kData,
        fmt::format("the checkpoint {} has no tensor '{}'", path().string(), name),
        nearest.empty()
            ? "it was written by a run of another model or optimizer"
            : fmt::format("it has '{}'; was it written by a run of another model?", nearest));
  }
  const auto& [entry, info] = found->second;
  if (verify) check_tensor(*entry);
  return impl_->shards.at(entry->file)->tensor(*info);
}

void Checkpoint::release(const std::string& name) const {
  const auto& [entry, info] = impl_->tensors.at(name);
  release_pages(impl_->shards.at(entry->file)->bytes_of(*info));
}

std::vector<NamedTensor> Checkpoint::tensors(bool verify) const {
  std::vector<NamedTensor> tensors;
  for (const TensorEntry& entry : manifest().tensors) {
    tensors.push_back({entry.info.name, tensor(entry.info.name, verify)});
  }
  return tensors;
}

std::string Checkpoint::text(const std::string& file_name) const {
  for (const FileEntry& file : manifest().files) {
    if (file.name != file_name) continue;
    std::string text = read_file(path() / file_name);
    if (hash_of(std::as_bytes(std::span(text))) != file.xxh3) {
      throw Error(ErrorCode::kData,
                  message_of(path(), {file_name, "", "its bytes do not match its checksum"}),
                  kResumeHint);
    }
    return text;
  }
  return "";
}

std::vector<Damage> Checkpoint::verify() const {
  return impl_->check_sums();
}

std::vector<Damage> Checkpoint::verify(const fs::path& path) {
  Impl checkpoint;
  checkpoint.path = resolve_checkpoint(path);
  std::vector<Damage> damages;
  try {
    damages = checkpoint.open();
  } catch (const Error& error) {
    return {{kManifestName, "", error.what()}};
  }
  for (Damage& damage : checkpoint.check_sums()) damages.push_back(std::move(damage));
  return damages;
}

std::vector<CheckpointSummary> list_checkpoints(const fs::path& folder) {
  auto steps = step_folders(folder);
  if (steps.empty()) steps = step_folders(folder / "checkpoints");
  std::vector<CheckpointSummary> summaries;
  for (const auto& [step, path] : steps) {
    CheckpointSummary summary;
    summary.path = path;
    summary.step = step;
    try {
      const Manifest manifest =
          parse_manifest(read_file(path / kManifestName), (path / kManifestName).string());
      summary.bytes = manifest.total_bytes();
      summary.num_tensors = static_cast<int64_t>(manifest.tensors.size());
      summary.digest = manifest.digest;
      const Checkpoint opened(path);
    } catch (const Error& error) {
      summary.problem = error.what();
    }
    summaries.push_back(std::move(summary));
  }
  return summaries;
}

std::optional<fs::path> find_latest(const fs::path& checkpoints) {
  const auto steps = step_folders(checkpoints);
  if (steps.empty()) return std::nullopt;
  return steps.back().second;
}

fs::path resolve_checkpoint(const fs::path& path) {
  TRIREME_USER_CHECK(fs::exists(path), kData, "check the path", "there is no {}", path.string());
  if (fs::exists(path / kManifestName) || step_of(path.filename().string()) >= 0) return path;
  for (const fs::path& folder : {path / "checkpoints", path}) {
    if (const auto latest = find_latest(folder)) return *latest;
  }
  throw Error(ErrorCode::kData, fmt::format("{} is not a checkpoint and has none", path.string()),
              "name a folder step-N/, or a run's folder with checkpoints/ in it");
}

}  // namespace trireme::checkpoint
