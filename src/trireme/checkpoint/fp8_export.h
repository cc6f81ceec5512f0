// Weights of a model written as fp8 in blocks, as DeepSeek-V3 publishes them, and what config.json says about it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/checkpoint/block_scaled.h"
#include "trireme/checkpoint/checkpoint.h"
#include "trireme/model/disk_layout.h"
#include "trireme/model/model_spec.h"

namespace trireme::checkpoint {

/// Blocks of 128 x 128, as all published models have them.
inline constexpr BlockSize kFp8Block = {};

/// True of the linear weights of the blocks: attention, MLPs and experts, shared ones too. Not of embeddings, head, norms, routers, gates
/// of shared experts and multi-token prediction's projection.
bool is_fp8_weight(const model::ModelSpec& spec, const model::DiskTensor& tensor);

/// The tensors of `spec` as fp8 is written: experts one by one. Error{kConfig} for a family whose linear weights are stored [in, out].
void require_fp8_layout(const model::ModelSpec& spec,
                        const std::vector<model::DiskTensor>& tensors);

/// A weight [rows, columns] to write, as fp8 and as its scales, to be made in this order by one thread: the values leave their scales
/// behind, and the weight is made once. Scales that are asked for first make it themselves. `kept`, if there, makes scales that are kept
/// where they fit, and `powers_of_two` is of those that are made, as ScaleRule has it.
std::pair<TensorToWrite, TensorToWrite> to_fp8(const TensorToWrite& weight,
                                               bool powers_of_two = false,
                                               const TensorToWrite* kept = nullptr);

/// config.json's "quantization_config". It names the linear modules that are not quantised: loaders quantise the others unasked.
OrderedJson fp8_config(const model::ModelSpec& spec, const std::vector<model::DiskTensor>& tensors,
                       bool powers_of_two = false);

/// Whether `config_json` says that scales are powers of two ("scale_fmt": "ue8m0").
bool declares_powers_of_two(const std::string& config_json);

/// `config` with the key where it belongs if the keys are sorted, else last.
OrderedJson with_key(const OrderedJson& config, const std::string& key, const OrderedJson& value);

/// config.json of the same model dequantised; the same text if it declares no quantization.
std::string without_quantization(const std::string& config_json);

}  // namespace trireme::checkpoint
