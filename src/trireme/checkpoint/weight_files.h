// The weight files of a Hugging Face directory: model.safetensors, or shards with an index. What is quantised in them is shown as
// the plain tensor that it stands for.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trireme/checkpoint/safetensors.h"
#include "trireme/model/quantization.h"

namespace trireme::checkpoint {

class TensorFile;

inline constexpr const char* kWeightsName = "model.safetensors";
inline constexpr const char* kWeightsIndexName = "model.safetensors.index.json";
inline constexpr const char* kScaleSuffix =
    "_scale_inv";  ///< of fp8 blocks' scales, behind the weight's name

/// A tensor and the file that holds it.
struct PlacedTensor {
  std::shared_ptr<const TensorFile> file;
  const TensorInfo* info = nullptr;
};

/// One weight. Cheap to copy; keeps its files mapped. Thread-safety: const calls from any thread.
class StoredWeight {
 public:
  explicit StoredWeight(PlacedTensor plain);
  /// Of fp8: [..., rows, columns] beside scales of scale_shape(). Of MXFP4: blocks [experts, rows, groups, 16] beside scales [experts,
  /// rows, groups], which stand for [experts, groups x 32, rows].
  StoredWeight(PlacedTensor values, PlacedTensor scales,
               const model::QuantizationSpec& quantization);

  const std::vector<int64_t>& shape() const { return shape_; }
  Dtype dtype() const;  ///< of what is read: kF32 where it is dequantised
  bool quantised() const { return scales_.file != nullptr; }
  const std::filesystem::path& path() const;  ///< of the file

  /// All of it: a view of the memory map, or dequantised. Error{kData} naming the tensor and the
  /// block for a scale that is none, and for numbers that are not finite.
  at::Tensor whole() const;
  /// `count` of dimension 0 from `first` on.
  at::Tensor rows(int64_t first, int64_t count) const;
  /// The scales as they are stored; undefined if plain.
  at::Tensor scales() const;
  /// Lets go of the mapped memory that reading has taken.
  void release() const;
  /// Same shape, type and bytes. Reads both, and lets go of them.
  bool same_bytes(const StoredWeight& other) const;

 private:
  PlacedTensor values_;
  PlacedTensor scales_;  ///< without a file if plain
  model::QuantizationSpec quantization_;
  std::vector<int64_t> shape_;
};

/// The weights of directory `path` by name. Error{kData}: no safetensors there (pickles are refused with a hint), an index that does not fit,
/// and, where `quantization` is declared, weights without scales, scales without weights, or of a wrong type or shape, each by its name.
std::map<std::string, StoredWeight> open_weights(
    const std::filesystem::path& path, const std::optional<model::QuantizationSpec>& quantization);

}  // namespace trireme::checkpoint
