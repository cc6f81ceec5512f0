#include "trireme/checkpoint/weight_files.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <set>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/json.h"
#include "trireme/checkpoint/block_scaled.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/checkpoint/tensor_stream.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr const char* kHint =
    "is it complete, and config.json the one that the weights were saved with?";

std::map<std::string, PlacedTensor> open_files(const fs::path& path) {
  std::vector<fs::path> files;
  std::map<std::string, std::string> index;
  if (fs::exists(path / kWeightsIndexName)) {
    const std::string origin = (path / kWeightsIndexName).string();
    const Json document = parse_json(read_file(path / kWeightsIndexName), origin);
    const auto map = document.find("weight_map");
    TRIREME_USER_CHECK(map != document.end() && map->is_object(), kData, "save the model again",
                       "{} has no weight_map", origin);
    std::set<std::string> names;
    for (const auto& [tensor, file] : map->items()) {
      const bool plain = file.is_string() && file.get<std::string>().find('/') == std::string::npos;
      TRIREME_USER_CHECK(plain, kData, "save the model again", "{}: '{}' has no plain file name",
                         origin, tensor);
      index[tensor] = file.get<std::string>();
      names.insert(index[tensor]);
    }
    for (const std::string& name : names) files.push_back(path / name);
  } else if (fs::exists(path / kWeightsName)) {
    files.push_back(path / kWeightsName);
  } else {
    const bool pickled =
        fs::exists(path / "pytorch_model.bin") || fs::exists(path / "pytorch_model.bin.index.json");
    TRIREME_USER_CHECK(
        !pickled, kData,
        "loading a pickle runs code from it; save the model again with save_pretrained(), which "
        "writes safetensors",
        "{} has only pickled weights (pytorch_model.bin)", path.string());
    throw Error(
        ErrorCode::kData,
        fmt::format("{} has neither {} nor {}", path.string(), kWeightsName, kWeightsIndexName),
        "name a Hugging Face directory with safetensors weights");
  }
  std::map<std::string, PlacedTensor> tensors;
  for (const fs::path& file_path : files) {
    TRIREME_USER_CHECK(fs::exists(file_path), kData, "copy or download the missing shard",
                       "{} is named by the index and missing", file_path.string());
    const auto file = std::make_shared<const TensorFile>(file_path);
    for (const TensorInfo& info : file->header().tensors) {
      if (!index.empty()) {
        const auto listed = index.find(info.name);
        if (listed != index.end() && listed->second != file_path.filename().string()) continue;
      }
      tensors[info.name] = {file, &info};
    }
  }
  for (const auto& [name, file] : index) {
    TRIREME_USER_CHECK(tensors.contains(name), kData, "copy or download the shard again",
                       "{} lacks the tensor '{}' that the index puts there", (path / file).string(),
                       name);
  }
  return tensors;
}

std::string in_file(const PlacedTensor& tensor) {
  return fmt::format("{}: '{}'", tensor.file->path().string(), tensor.info->name);
}

BlockSize block_of(const model::QuantizationSpec& quantization) {
  return {quantization.block_rows, quantization.block_columns};
}

void require_shape(const PlacedTensor& scales, const std::vector<int64_t>& shape,
                   const PlacedTensor& values, const model::QuantizationSpec& quantization) {
  TRIREME_USER_CHECK(scales.info->shape == shape, kData, kHint,
                     "{} is {} and should be {} beside '{}' of {} ({})", in_file(scales),
                     shape_text(scales.info->shape), shape_text(shape), values.info->name,
                     shape_text(values.info->shape), model::describe(quantization));
}

/// Takes fp8 weights and their scales out of `placed`.
void pair_fp8(std::map<std::string, PlacedTensor>& placed,
              const model::QuantizationSpec& quantization,
              std::map<std::string, StoredWeight>& weights) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : placed) {
    if (tensor.info->dtype == Dtype::kF8E4m3) names.push_back(name);
  }
  for (const std::string& name : names) {
    const PlacedTensor values = placed.extract(name).mapped();
    TRIREME_USER_CHECK(values.info->shape.size() >= 2 && values.info->shape.size() <= 3, kData,
                       kHint, "{} is {}: only matrices are stored as fp8 in blocks",
                       in_file(values), shape_text(values.info->shape));
    auto scales = placed.extract(name + kScaleSuffix);
    TRIREME_USER_CHECK(!scales.empty(), kData, kHint, "{} lacks its scales '{}'", in_file(values),
                       name + kScaleSuffix);
    const Dtype dtype = scales.mapped().info->dtype;
    TRIREME_USER_CHECK(dtype == Dtype::kF32 || dtype == Dtype::kBf16 || dtype == Dtype::kF16, kData,
                       "scales are stored as F32", "{} is of type {}", in_file(scales.mapped()),
                       dtype_name(dtype));
    require_shape(scales.mapped(), scale_shape(values.info->shape, block_of(quantization)), values,
                  quantization);
    weights.emplace(name, StoredWeight(values, scales.mapped(), quantization));
  }
  for (const auto& [name, tensor] : placed) {
    TRIREME_USER_CHECK(!name.ends_with(kScaleSuffix), kData, kHint,
                       "{} are scales, but there is no '{}' of type F8_E4M3", in_file(tensor),
                       name.substr(0, name.size() - std::string(kScaleSuffix).size()));
  }
}

/// Takes MXFP4 blocks and their scales out of `placed`.
void pair_mxfp4(std::map<std::string, PlacedTensor>& placed,
                const model::QuantizationSpec& quantization,
                std::map<std::string, StoredWeight>& weights) {
  const std::string blocks_suffix = "_blocks";
  const std::string scales_suffix = "_scales";
  std::vector<std::string> stems;
  for (const auto& [name, tensor] : placed) {
    if (name.ends_with(blocks_suffix))
      stems.push_back(name.substr(0, name.size() - blocks_suffix.size()));
  }
  for (const std::string& stem : stems) {
    const PlacedTensor values = placed.extract(stem + blocks_suffix).mapped();
    auto scales = placed.extract(stem + scales_suffix);
    TRIREME_USER_CHECK(!scales.empty(), kData, kHint, "{} lacks its scales '{}'", in_file(values),
                       stem + scales_suffix);
    for (const PlacedTensor& tensor : {values, scales.mapped()}) {
      TRIREME_USER_CHECK(tensor.info->dtype == Dtype::kU8, kData, kHint,
                         "{} is of type {} and should be U8", in_file(tensor),
                         dtype_name(tensor.info->dtype));
    }
    std::vector<int64_t> shape = values.info->shape;
    constexpr int64_t kMostGroups = std::numeric_limits<int64_t>::max() / kMxfp4Block;
    TRIREME_USER_CHECK(shape.size() == 4 && shape[3] == kMxfp4Bytes && shape[2] <= kMostGroups,
                       kData, kHint, "{} is {} and should be [experts, rows, groups, {}]",
                       in_file(values), shape_text(shape), kMxfp4Bytes);
    shape.pop_back();
    require_shape(scales.mapped(), shape, values, quantization);
    weights.emplace(stem, StoredWeight(values, scales.mapped(), quantization));
  }
  for (const auto& [name, tensor] : placed) {
    TRIREME_USER_CHECK(!name.ends_with(scales_suffix), kData, kHint,
                       "{} are scales, but there is no '{}'", in_file(tensor),
                       name.substr(0, name.size() - scales_suffix.size()) + blocks_suffix);
  }
}

}  // namespace

StoredWeight::StoredWeight(PlacedTensor plain)
    : values_(std::move(plain)), shape_(values_.info->shape) {}

StoredWeight::StoredWeight(PlacedTensor values, PlacedTensor scales,
                           const model::QuantizationSpec& quantization)
    : values_(std::move(values)),
      scales_(std::move(scales)),
      quantization_(quantization),
      shape_(values_.info->shape) {
  if (quantization.method == model::QuantMethod::kMxfp4)
    shape_ = {shape_.at(0), shape_.at(2) * kMxfp4Block, shape_.at(1)};
}

Dtype StoredWeight::dtype() const {
  return quantised() ? Dtype::kF32 : values_.info->dtype;
}

const fs::path& StoredWeight::path() const {
  return values_.file->path();
}

at::Tensor StoredWeight::whole() const {
  return quantised() ? rows(0, shape_.at(0)) : values_.file->tensor(*values_.info);
}

at::Tensor StoredWeight::rows(int64_t first, int64_t count) const {
  const at::Tensor values = values_.file->tensor(*values_.info).narrow(0, first, count);
  if (!quantised()) return values;
  const at::Tensor scales = scales_.file->tensor(*scales_.info);
  try {
    if (quantization_.method == model::QuantMethod::kMxfp4) {
      const int64_t first_block = first * scales.size(1) * scales.size(2);
      return dequantise_mxfp4(values, scales.narrow(0, first, count), first_block)
          .transpose(-1, -2);
    }
    if (values.dim() == 2) return dequantise_fp8(values, scales, block_of(quantization_), first);
    at::Tensor stack = at::empty(values.sizes(), at::kFloat);
    for (int64_t i = 0; i < count; ++i)
      stack.select(0, i).copy_(dequantise_fp8(values.select(0, i), scales.select(0, first + i),
                                              block_of(quantization_)));
    return stack;
  } catch (const Error& error) {
    throw Error(error.code(),
                fmt::format("{} with '{}': {}", in_file(values_), scales_.info->name, error.what()),
                error.hint(), error.where());
  }
}

at::Tensor StoredWeight::scales() const {
  return quantised() ? scales_.file->tensor(*scales_.info) : at::Tensor();
}

void StoredWeight::release() const {
  for (const PlacedTensor& part : {values_, scales_}) {
    if (part.file) release_pages(part.file->bytes_of(*part.info));
  }
}

bool StoredWeight::same_bytes(const StoredWeight& other) const {
  const auto same = [](const PlacedTensor& a, const PlacedTensor& b) {
    if (!a.file || !b.file) return !a.file && !b.file;
    return a.info->dtype == b.info->dtype && a.info->shape == b.info->shape &&
           std::ranges::equal(a.file->bytes_of(*a.info), b.file->bytes_of(*b.info));
  };
  const bool result = same(values_, other.values_) && same(scales_, other.scales_);
  release();
  other.release();
  return result;
}

std::map<std::string, StoredWeight> open_weights(
    const fs::path& path, const std::optional<model::QuantizationSpec>& quantization) {
  std::map<std::string, PlacedTensor> placed = open_files(path);
  std::map<std::string, StoredWeight> weights;
  if (quantization && quantization->method == model::QuantMethod::kFp8Blocks)
    pair_fp8(placed, *quantization, weights);
  if (quantization && quantization->method == model::QuantMethod::kMxfp4)
    pair_mxfp4(placed, *quantization, weights);
  for (const auto& [name, tensor] : placed) {
    const bool fresh = weights.emplace(name, StoredWeight(tensor)).second;
    TRIREME_USER_CHECK(fresh, kData, kHint, "{} is stored twice, quantised and not",
                       in_file(tensor));
  }
  return weights;
}

}  // namespace trireme::checkpoint
