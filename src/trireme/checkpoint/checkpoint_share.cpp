#include "trireme/checkpoint/checkpoint_share.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>
#include <utility>

#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/manifest.h"
#include "trireme/checkpoint/tensor_file.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr auto kPause = std::chrono::milliseconds(10);
constexpr const char* kStems[] = {"model", "optimizer"};

fs::path posted(const fs::path& folder, int rank, const char* kind) {
  return folder / fmt::format("share-{}.{}", rank, kind);
}

// Whoever sees the name sees all of the content.
void post(Storage& storage, const fs::path& path, std::string_view content) {
  const fs::path unfinished = path.string() + ".part";
  const auto file = storage.create(unfinished);
  file->write(std::as_bytes(std::span(content.data(), content.size())));
  file->sync_and_close();
  storage.rename(unfinished, path);
}

void sort_by_name(std::vector<TensorEntry>& tensors) {
  std::ranges::sort(tensors, {}, [](const TensorEntry& entry) { return entry.info.name; });
}

}  // namespace

Manifest write_share(Storage& storage, const fs::path& folder, std::vector<TensorToWrite> tensors,
                     int64_t shard_bytes, const std::string& mark) {
  TRIREME_CHECK(shard_bytes > 0, "shard_bytes = {}", shard_bytes);
  std::ranges::sort(tensors, {}, &TensorToWrite::name);
  std::map<std::string, std::vector<const TensorToWrite*>> groups;
  for (size_t i = 0; i < tensors.size(); ++i) {
    TRIREME_CHECK(i == 0 || tensors[i - 1].name != tensors[i].name, "two tensors are named '{}'",
                  tensors[i].name);
    groups[kStems[tensors[i].name.starts_with(kOptimizerPrefix) ? 1 : 0]].push_back(&tensors[i]);
  }
  Manifest share;
  for (const char* stem : kStems) {
    const auto shards = cut_into_shards(groups[stem], shard_bytes);
    for (size_t i = 0; i < shards.size(); ++i) {
      WrittenFile written =
          write_tensor_file(storage, folder, shard_name(stem + mark, i, shards.size()), shards[i],
                            {{"format", "pt"}});
      share.files.push_back(std::move(written.file));
      std::ranges::move(written.tensors, std::back_inserter(share.tensors));
    }
  }
  sort_by_name(share.tensors);
  return share;
}

void post_share(Storage& storage, const fs::path& folder, int rank, const Manifest& share) {
  post(storage, posted(folder, rank, "json"), format_manifest(share));
}

void post_failure(Storage& storage, const fs::path& folder, int rank,
                  const std::string& reason) noexcept {
  try {
    const fs::path path = posted(folder, rank, "failed");
    try {
      post(storage, path, reason);
    } catch (const Error&) {
      storage.create(path);  // a full disk still takes a name
    }
  } catch (const std::exception& error) {
    // The folder is gone, or the disk is: whoever waits learns it when this rank ends.
    log::verbose("rank {} cannot say that it failed: {}", rank, error.what());
  }
}

std::vector<Manifest> await_shares(Storage& storage, const fs::path& folder, int writers,
                                   const std::function<void()>& check) {
  std::vector<Manifest> shares;
  while (static_cast<int>(shares.size()) + 1 < writers) {
    const auto rank = static_cast<int>(shares.size()) + 1;
    const fs::path path = posted(folder, rank, "json");
    if (fs::exists(path)) {
      shares.push_back(parse_manifest(read_file(path), path.string()));
      storage.remove_all(path);
      continue;
    }
    for (int other = rank; other < writers; ++other) {
      const fs::path failed = posted(folder, other, "failed");
      if (!fs::exists(failed)) continue;
      const std::string reason = read_file(failed);
      throw Error(ErrorCode::kData,
                  fmt::format("rank {} did not write its part of the checkpoint: {}", other,
                              reason.empty() ? "it says why itself" : reason));
    }
    if (check) check();
    std::this_thread::sleep_for(kPause);
  }
  return shares;
}

Manifest join_shares(Storage& storage, const fs::path& folder, std::vector<Manifest> shares) {
  std::map<std::string, std::vector<std::string>> files;  // by what they hold, by writer
  for (const Manifest& share : shares) {
    for (const FileEntry& file : share.files)
      files[kStems[file.name.starts_with(kStems[0]) ? 0 : 1]].push_back(file.name);
  }
  std::map<std::string, std::string> names;
  for (const auto& [stem, of_stem] : files) {
    for (size_t i = 0; i < of_stem.size(); ++i) {
      names[of_stem[i]] = shard_name(stem, i, of_stem.size());
      storage.rename(folder / of_stem[i], folder / names[of_stem[i]]);
    }
  }
  Manifest all;
  for (Manifest& share : shares) {
    for (FileEntry& file : share.files)
      all.files.push_back({names[file.name], file.bytes, file.xxh3});
    for (TensorEntry& tensor : share.tensors) {
      tensor.file = names[tensor.file];
      all.tensors.push_back(std::move(tensor));
    }
  }
  sort_by_name(all.tensors);
  const auto twice = std::ranges::adjacent_find(
      all.tensors, {}, [](const TensorEntry& entry) { return std::string_view(entry.info.name); });
  TRIREME_CHECK(twice == all.tensors.end(), "two ranks have written '{}'", twice->info.name);
  return all;
}

Manifest commit_checkpoint(FolderTransaction& transaction, Manifest all,
                           const CheckpointState& state) {
  all.step = state.step;
  all.train = state.train;
  for (const auto& [name, text] : state.texts) {
    transaction.write_file(name, text);
    all.files.push_back({name, text.size(), hash_text(xxh3(std::as_bytes(std::span(text))))});
  }
  all.digest = digest_of(all.tensors);
  transaction.write_file(kManifestName, format_manifest(all));
  transaction.commit();
  return all;
}

}  // namespace trireme::checkpoint
