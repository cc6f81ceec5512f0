#include "trireme/checkpoint/fp8_export.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/checkpoint/weight_files.h"

namespace trireme::checkpoint {

namespace {

constexpr const char* kQuantizationKey = "quantization_config";
constexpr const char* kPowersOfTwo = "ue8m0";

bool is_block_linear(model::Role role) {
  using model::Role;
  switch (role) {
    case Role::kQuery:
    case Role::kKey:
    case Role::kValue:
    case Role::kAttentionOut:
    case Role::kGate:
    case Role::kUp:
    case Role::kDown:
    case Role::kQueryDown:
    case Role::kKeyValueDown:
    case Role::kKeyValueUp:
    case Role::kExpertGate:
    case Role::kExpertUp:
    case Role::kExpertDown:
      return true;
    case Role::kTokenEmbedding:
    case Role::kPositionEmbedding:
    case Role::kNormWeight:
    case Role::kNormBias:
    case Role::kQkNorm:
    case Role::kBias:
    case Role::kHead:
    case Role::kSink:
    case Role::kLatentNorm:
    case Role::kRouter:
    case Role::kSelectionBias:
    case Role::kExpertGateBias:
    case Role::kExpertUpBias:
    case Role::kExpertDownBias:
    case Role::kSharedExpertGate:
    case Role::kMtpProjection:
      return false;
  }
  return false;
}

model::Role role_of(const model::ModelSpec& spec, const model::DiskTensor& tensor) {
  return spec.parameters[static_cast<size_t>(tensor.pieces.front().parameter)].role;
}

/// transformers without a GPU takes the size of the blocks from the number of scales.
bool is_cut_evenly(int64_t extent, int64_t block) {
  return extent <= block || extent % block == 0;
}

/// Runs `make` and names the tensor in its errors.
template <typename Make>
at::Tensor named(const std::string& name, Make make) {
  try {
    return make();
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("'{}': {}", name, error.what()), error.hint(),
                error.where());
  }
}

}  // namespace

bool is_fp8_weight(const model::ModelSpec& spec, const model::DiskTensor& tensor) {
  return tensor.shape.size() == 2 && is_block_linear(role_of(spec, tensor));
}

void require_fp8_layout(const model::ModelSpec& spec,
                        const std::vector<model::DiskTensor>& tensors) {
  std::vector<const model::DiskTensor*> uneven;
  for (const model::DiskTensor& tensor : tensors) {
    if (!is_block_linear(role_of(spec, tensor))) continue;
    TRIREME_USER_CHECK(tensor.shape.size() == 2 && !tensor.transposed, kConfig,
                       "leave --fp8 out, or say --dtype bfloat16",
                       "the family \"{}\" has no form of fp8 in blocks: '{}' of {} is not stored "
                       "[out, in]",
                       spec.family, tensor.name, shape_text(tensor.shape));
    if (!is_cut_evenly(tensor.shape[0], kFp8Block.rows) ||
        !is_cut_evenly(tensor.shape[1], kFp8Block.columns))
      uneven.push_back(&tensor);
  }
  if (uneven.empty()) return;
  log::warning(
      "{} weights, as '{}' of {}, are not whole blocks of {} x {}: transformers without a GPU does "
      "not read these rightly",
      uneven.size(), uneven.front()->name, shape_text(uneven.front()->shape), kFp8Block.rows,
      kFp8Block.columns);
}

std::pair<TensorToWrite, TensorToWrite> to_fp8(const TensorToWrite& weight, bool powers_of_two,
                                               const TensorToWrite* kept) {
  TensorToWrite values{weight.name, Dtype::kF8E4m3, weight.shape, {}};
  TensorToWrite scales{
      weight.name + kScaleSuffix, Dtype::kF32, scale_shape(weight.shape, kFp8Block), {}};
  const auto kept_scales = kept == nullptr ? std::function<at::Tensor()>() : kept->make;
  values.release = scales.release =
      [weight = weight.release, kept = kept == nullptr ? std::function<void()>() : kept->release] {
        if (weight) weight();
        if (kept) kept();
      };
  const auto scales_of = [powers_of_two, kept_scales](const at::Tensor& plain) {
    ScaleRule rule{powers_of_two};
    if (kept_scales) rule.kept = kept_scales().to(at::kFloat).contiguous();
    return fp8_scales(plain, kFp8Block, rule);
  };
  // The values are written first and leave their scales behind, so that the weight is made once.
  const auto left = std::make_shared<at::Tensor>();
  values.make = [make = weight.make, name = weight.name, left, scales_of] {
    return named(name, [&] {
      const at::Tensor plain = make();
      *left = scales_of(plain);
      return quantise_fp8(plain, *left, kFp8Block);
    });
  };
  scales.make = [make = weight.make, name = weight.name, left, scales_of] {
    return named(name, [&] {
      return left->defined() ? std::exchange(*left, at::Tensor()) : scales_of(make());
    });
  };
  return {std::move(values), std::move(scales)};
}

OrderedJson fp8_config(const model::ModelSpec& spec, const std::vector<model::DiskTensor>& tensors,
                       bool powers_of_two) {
  using model::Role;
  constexpr std::string_view kWeight = ".weight";
  OrderedJson others = OrderedJson::array({"lm_head"});  // also where it is tied, and no tensor
  for (const model::DiskTensor& tensor : tensors) {
    const Role role = role_of(spec, tensor);
    const bool linear = role == Role::kHead || role == Role::kRouter ||
                        role == Role::kSharedExpertGate || role == Role::kMtpProjection;
    if (!linear || !tensor.name.ends_with(kWeight)) continue;
    const std::string module = tensor.name.substr(0, tensor.name.size() - kWeight.size());
    if (module != "lm_head") others.push_back(module);
  }
  OrderedJson config = {{"activation_scheme", "dynamic"},
                        {"fmt", "e4m3"},
                        {"modules_to_not_convert", others},
                        {"quant_method", "fp8"}};
  if (powers_of_two) config["scale_fmt"] = kPowersOfTwo;
  config["weight_block_size"] = {kFp8Block.rows, kFp8Block.columns};
  return config;
}

bool declares_powers_of_two(const std::string& config_json) {
  const Json config = parse_json(config_json, "config.json", ErrorCode::kConfig);
  const auto declared = config.find(kQuantizationKey);
  return declared != config.end() && declared->is_object() &&
         declared->value("scale_fmt", "") == kPowersOfTwo;
}

OrderedJson with_key(const OrderedJson& config, const std::string& key, const OrderedJson& value) {
  std::vector<std::string> keys;
  for (const auto& [name, member] : config.items()) keys.push_back(name);
  const bool sorted = std::ranges::is_sorted(keys);
  OrderedJson result = OrderedJson::object();
  for (const auto& [name, member] : config.items()) {
    if (sorted && !result.contains(key) && name > key) result[key] = value;
    if (name != key) result[name] = member;
  }
  result[key] = value;
  return result;
}

std::string without_quantization(const std::string& config_json) {
  OrderedJson config = parse_ordered_json(config_json, "config.json", ErrorCode::kConfig);
  return config.erase(kQuantizationKey) == 0 ? config_json : config.dump(2) + "\n";
}

}  // namespace trireme::checkpoint
