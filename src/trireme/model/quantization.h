// How the weights of a Hugging Face directory are quantised, as config.json's quantization_config declares it. It says how files are
// read and nothing of the model: what is read is dequantised. Pure: no I/O, no torch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace trireme::model {

class ConfigReader;

enum class QuantMethod {
  kFp8Blocks,  ///< as DeepSeek-V3 publishes: e4m3 matrices, each beside "<name>_scale_inv" with one scale a block
  kMxfp4  ///< as gpt_oss publishes experts: "<name>_blocks", pairs of e2m1 numbers, and "<name>_scales", one for 32
};

struct QuantizationSpec {
  QuantMethod method = QuantMethod::kFp8Blocks;
  int64_t block_rows = 128;  ///< kFp8Blocks; the last block of a row or column may be smaller
  int64_t block_columns = 128;
  bool operator==(const QuantizationSpec&) const = default;
};

/// The config's "quantization_config"; nothing if absent. Error{kConfig} naming the key for a method or an option that is not covered.
std::optional<QuantizationSpec> read_quantization(ConfigReader& config, const std::string& family);

/// "fp8 in blocks of 128 x 128", "mxfp4".
std::string describe(const QuantizationSpec& quantization);

}  // namespace trireme::model
