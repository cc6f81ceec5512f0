// What `checkpoint digest` and `checkpoint diff` show: the tensors of a path, and what two paths differ in.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "trireme/checkpoint/checkpoint.h"

namespace trireme::checkpoint {

/// The tensors of a path as they are stored.
struct TensorListing {
  std::filesystem::path path;        ///< what was opened, resolved
  std::vector<TensorEntry> tensors;  ///< sorted by name; hashes computed from the bytes on disk now
  std::string digest;
};

/// Lists a checkpoint of ours (a run's folder: its newest), a Hugging Face directory or one .safetensors file.
/// Reads everything. Error{kData} if it cannot be opened; a checkpoint's stale checksum is an error too.
TensorListing list_tensors(const std::filesystem::path& path);

/// One tensor that two paths do not agree in.
struct Difference {
  std::string name;
  std::string reason = "";  ///< "only in A", "only in B", "dtype ...", "shape ...", "values"
  int64_t num_elements =
      0;  ///< that differ; 0 unless reason is "values" (then 0 if only signs of zeros or NaNs)
  double max_absolute = 0;  ///< infinite where a NaN or an infinity is on one side only
  double max_relative = 0;  ///< |a - b| / max(|a|, |b|)
};

/// What differs, in the order of names; empty if names, types, shapes and bytes are equal.
std::vector<Difference> compare_tensors(const std::filesystem::path& a,
                                        const std::filesystem::path& b);

}  // namespace trireme::checkpoint
