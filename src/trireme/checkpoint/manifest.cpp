#include "trireme/checkpoint/manifest.h"

#include <algorithm>
#include <array>
#include <set>

#include "trireme/base/hash.h"

namespace trireme::checkpoint {

namespace {

constexpr const char* kFormatName = "trireme-checkpoint";

std::string hash_of(std::string_view text) {
  return hash_text(xxh3(std::as_bytes(std::span(text.data(), text.size()))));
}

Dtype parse_dtype(const std::string& name) {
  constexpr std::array kAll = {Dtype::kBool, Dtype::kU8,  Dtype::kI8,   Dtype::kF8E4m3,
                               Dtype::kI16,  Dtype::kF16, Dtype::kBf16, Dtype::kI32,
                               Dtype::kF32,  Dtype::kF64, Dtype::kI64};
  for (const Dtype dtype : kAll) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw std::invalid_argument(fmt::format("unknown dtype '{}'", name));
}

std::string plain_file_name(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
    throw std::invalid_argument(fmt::format("'{}' is not a plain file name", name));
  }
  return name;
}

}  // namespace

uint64_t Manifest::total_bytes() const {
  uint64_t bytes = 0;
  for (const FileEntry& file : files) bytes += file.bytes;
  return bytes;
}

std::string digest_of(const std::vector<TensorEntry>& tensors) {
  std::vector<const TensorEntry*> sorted;
  for (const TensorEntry& tensor : tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorEntry* a, const TensorEntry* b) { return a->info.name < b->info.name; });
  Hasher hasher;
  for (const TensorEntry* tensor : sorted) {
    const std::string line =
        fmt::format("{} {} {} {}\n", tensor->info.name, dtype_name(tensor->info.dtype),
                    Json(tensor->info.shape).dump(), tensor->xxh3);
    hasher.update(std::as_bytes(std::span(line)));
  }
  return hash_text(hasher.digest());
}

std::string format_manifest(const Manifest& manifest) {
  OrderedJson document;
  document["format"] = kFormatName;
  document["version"] = kManifestVersion;
  document["step"] = manifest.step;
  document["digest"] = manifest.digest;
  document["files"] = OrderedJson::array();
  for (const FileEntry& file : manifest.files) {
    document["files"].push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3", file.xxh3}});
  }
  document["tensors"] = OrderedJson::array();
  for (const TensorEntry& tensor : manifest.tensors) {
    document["tensors"].push_back({{"name", tensor.info.name},
                                   {"dtype", dtype_name(tensor.info.dtype)},
                                   {"shape", tensor.info.shape},
                                   {"file", tensor.file},
                                   {"xxh3", tensor.xxh3}});
  }
  document["train"] = manifest.train;
  document["checksum"] = hash_of(document.dump());
  return document.dump(1) + "\n";
}

Manifest parse_manifest(std::string_view text, const std::string& origin) {
  const char* const hint =
      "move that folder away and run the same command again: it continues from the checkpoint "
      "before it";
  OrderedJson document = parse_ordered_json(text, origin);
  TRIREME_USER_CHECK(document.is_object() && document.value("format", Json()) == kFormatName, kData,
                     "name a folder step-N/ that Trireme wrote",
                     "{} is not a checkpoint's manifest", origin);
  const Json version = document.value("version", Json());
  TRIREME_USER_CHECK(version.is_number_integer() && version >= 1 && version <= kManifestVersion,
                     kData, "update Trireme", "{} is of version {}, this program reads up to {}",
                     origin, version.dump(), kManifestVersion);
  const Json checksum = document.value("checksum", Json());
  document.erase("checksum");
  TRIREME_USER_CHECK(checksum == hash_of(document.dump()), kData, hint,
                     "{} is damaged: its content does not match its checksum", origin);
  Manifest manifest;
  try {
    manifest.step = document.at("step").get<int64_t>();
    manifest.digest = document.at("digest").get<std::string>();
    std::set<std::string> file_names;
    for (const auto& entry : document.at("files")) {
      FileEntry file{plain_file_name(entry.at("name").get<std::string>()),
                     entry.at("bytes").get<uint64_t>(), entry.at("xxh3").get<std::string>()};
      if (!file_names.insert(file.name).second)
        throw std::invalid_argument("a file appears twice: " + file.name);
      manifest.files.push_back(std::move(file));
    }
    for (const auto& entry : document.at("tensors")) {
      TensorEntry tensor;
      tensor.info.name = entry.at("name").get<std::string>();
      tensor.info.dtype = parse_dtype(entry.at("dtype").get<std::string>());
      tensor.info.shape = entry.at("shape").get<std::vector<int64_t>>();
      tensor.file = entry.at("file").get<std::string>();
      tensor.xxh3 = entry.at("xxh3").get<std::string>();
      if (!file_names.contains(tensor.file))
        throw std::invalid_argument("an unlisted file: " + tensor.file);
      if (!manifest.tensors.empty() && manifest.tensors.back().info.name >= tensor.info.name) {
        throw std::invalid_argument("tensors out of order: " + tensor.info.name);
      }
      manifest.tensors.push_back(std::move(tensor));
    }
    manifest.train = Json(document.at("train"));
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kData, fmt::format("{} is damaged: {}", origin, error.what()), hint);
  }
  return manifest;
}

}  // namespace trireme::checkpoint
