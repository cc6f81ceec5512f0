#include "trireme/checkpoint/compare.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>
#include <set>

#include "trireme/base/hash.h"
#include "trireme/checkpoint/tensor_file.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

/// A path's tensors by name, whatever kind of path it is.
struct OpenedPath {
  fs::path path;
  std::vector<std::shared_ptr<const TensorFile>> files;
  std::map<std::string, std::pair<const TensorFile*, const TensorInfo*>> tensors;
  std::map<std::string, std::string> promised;  ///< name -> xxh3 of a checkpoint's manifest

  void add(const fs::path& file_path) {
    files.push_back(std::make_shared<const TensorFile>(file_path));
    for (const TensorInfo& info : files.back()->header().tensors) {
      const bool first = tensors.emplace(info.name, std::pair(files.back().get(), &info)).second;
      TRIREME_USER_CHECK(first, kData, "remove files that do not belong to the model",
                         "{}: '{}' is in two files", path.string(), info.name);
    }
  }
};

OpenedPath open_path(const fs::path& path) {
  OpenedPath opened;
  TRIREME_USER_CHECK(fs::exists(path), kData, "check the path", "there is no {}", path.string());
  if (fs::is_regular_file(path)) {
    opened.path = path;
    opened.add(path);
    return opened;
  }
  const bool ours =
      fs::exists(path / kManifestName) || find_latest(path) || find_latest(path / "checkpoints");
  if (ours) {
    const Checkpoint checkpoint(path);  // checks sizes and headers against the manifest
    opened.path = checkpoint.path();
    for (const FileEntry& file : checkpoint.manifest().files) {
      if (file.name.ends_with(".safetensors")) opened.add(opened.path / file.name);
    }
    for (const TensorEntry& entry : checkpoint.manifest().tensors)
      opened.promised[entry.info.name] = entry.xxh3;
    return opened;
  }
  opened.path = path;
  std::vector<fs::path> shards;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
  }
  std::sort(shards.begin(), shards.end());
  TRIREME_USER_CHECK(!shards.empty(), kData,
                     "name a checkpoint, a Hugging Face directory or a .safetensors file",
                     "{} has neither {} nor .safetensors files", path.string(), kManifestName);
  for (const fs::path& shard : shards) opened.add(shard);
  return opened;
}

std::string hash_of(const TensorFile& file, const TensorInfo& info) {
  return hash_text(xxh3(file.bytes_of(info)));
}

/// Fills in how far two tensors of one type and shape, of different bytes, are apart.
void measure(const at::Tensor& a, const at::Tensor& b, Difference& difference) {
  const at::Tensor x = a.to(at::kDouble);
  const at::Tensor y = b.to(at::kDouble);
  const at::Tensor differs = x.ne(y).logical_and(x.isnan().logical_and(y.isnan()).logical_not());
  difference.num_elements = differs.sum().item<int64_t>();
  if (difference.num_elements == 0) return;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const at::Tensor distance =
      at::where(differs, at::abs(x.sub(y)), 0.0).nan_to_num(kInfinity, kInfinity);
  const at::Tensor scale = at::maximum(at::abs(x), at::abs(y));
  const at::Tensor relative =
      at::where(differs, distance.div(scale), 0.0).nan_to_num(kInfinity, kInfinity);
  difference.max_absolute = distance.max().item<double>();
  difference.max_relative = relative.max().item<double>();
}

}  // namespace

TensorListing list_tensors(const fs::path& path) {
  const OpenedPath opened = open_path(path);
  TensorListing listing;
  listing.path = opened.path;
  for (const auto& [name, place] : opened.tensors) {
    const auto& [file, info] = place;
    std::string hash = hash_of(*file, *info);
    const auto promised = opened.promised.find(name);
    TRIREME_USER_CHECK(promised == opened.promised.end() || promised->second == hash, kData,
                       "trireme checkpoint verify says what is damaged; use an older checkpoint",
                       "{}: tensor '{}' is damaged: its bytes do not match its checksum",
                       file->path().string(), name);
    listing.tensors.push_back({*info, file->path().filename().string(), std::move(hash)});
  }
  listing.digest = digest_of(listing.tensors);
  return listing;
}

std::vector<Difference> compare_tensors(const fs::path& a, const fs::path& b) {
  const OpenedPath left = open_path(a);
  const OpenedPath right = open_path(b);
  std::set<std::string> names;
  for (const auto& [name, place] : left.tensors) names.insert(name);
  for (const auto& [name, place] : right.tensors) names.insert(name);
  std::vector<Difference> differences;
  for (const std::string& name : names) {
    const auto x = left.tensors.find(name);
    const auto y = right.tensors.find(name);
    if (x == left.tensors.end() || y == right.tensors.end()) {
      differences.push_back({name, x == left.tensors.end() ? "only in B" : "only in A"});
      continue;
    }
    const auto& [x_file, x_info] = x->second;
    const auto& [y_file, y_info] = y->second;
    if (x_info->dtype != y_info->dtype) {
      differences.push_back({name, fmt::format("dtype {} and {}", dtype_name(x_info->dtype),
                                               dtype_name(y_info->dtype))});
    } else if (x_info->shape != y_info->shape) {
      differences.push_back({name, fmt::format("shape {} and {}", shape_text(x_info->shape),
                                               shape_text(y_info->shape))});
    } else if (!std::ranges::equal(x_file->bytes_of(*x_info), y_file->bytes_of(*y_info))) {
      Difference difference{name, "values"};
      measure(x_file->tensor(*x_info), y_file->tensor(*y_info), difference);
      differences.push_back(difference);
    }
  }
  return differences;
}

}  // namespace trireme::checkpoint
