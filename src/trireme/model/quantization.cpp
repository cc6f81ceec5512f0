#include "trireme/model/quantization.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "trireme/model/config_reader.h"

namespace trireme::model {

namespace {

constexpr const char* kKey = "quantization_config";
constexpr const char* kHint =
    "save the model with plain weights (bfloat16, float16 or float32), or in blocks of fp8 as "
    "DeepSeek-V3 does";

void read_block_size(ConfigReader& config, QuantizationSpec& spec) {
  const std::vector<double> sizes = config.numbers("weight_block_size");
  if (!config.written("weight_block_size")) return;
  const auto whole = [](double size) {
    return size >= 1 && size <= 1e6 && size == std::floor(size);
  };
  if (sizes.size() != 2 || !whole(sizes[0]) || !whole(sizes[1])) {
    // null or a scalar: one scale a tensor.
    config.fail("weight_block_size", "is not two positive whole numbers", kHint);
  }
  spec.block_rows = static_cast<int64_t>(sizes[0]);
  spec.block_columns = static_cast<int64_t>(sizes[1]);
}

}  // namespace

std::optional<QuantizationSpec> read_quantization(ConfigReader& config, const std::string& family) {
  auto reader = config.object(kKey);
  if (!reader) return std::nullopt;
  QuantizationSpec spec;
  const std::string method = reader->text("quant_method", "");
  // Which modules are quantised shows in the type of their tensors. How a loader should go about it is its own affair.
  reader->ignore({"modules_to_not_convert", "ignored_layers", "dequantize"});
  if (method == "fp8") {
    if (const std::string format = reader->text("fmt", "e4m3"); format != "e4m3")
      reader->fail("fmt", fmt::format("is \"{}\", which is not covered", format), "\"e4m3\" is");
    // Scales that are powers of two are scales like others, as long as they are stored as numbers.
    if (const std::string scale = reader->text("scale_fmt", "float");
        scale != "float" && scale != "ue8m0")
      reader->fail("scale_fmt", fmt::format("is \"{}\", which is not covered", scale),
                   "\"float\" and \"ue8m0\" are");
    // How activations are quantised in a product; "static" brings tensors of their scales along.
    if (const std::string scheme = reader->text("activation_scheme", "dynamic");
        scheme != "dynamic")
      reader->fail("activation_scheme", fmt::format("is \"{}\", which is not covered", scheme),
                   "\"dynamic\" is");
    reader->require("modules_to_convert", nullptr,
                    "modules that are quantised beside the linear ones");
    reader->require("expert_dtype", "fp8", "experts of another type");
    read_block_size(*reader, spec);
  } else if (method == "mxfp4") {
    spec.method = QuantMethod::kMxfp4;
    if (family != "gpt_oss")
      config.fail(
          kKey, fmt::format("is of \"mxfp4\", which is not covered for the family \"{}\"", family),
          kHint);
  } else {
    reader->fail(
        "quant_method",
        method.empty()
            ? "is missing"
            : fmt::format("is \"{}\": weights that are quantised so are not covered", method),
        kHint);
  }
  reader->finish();
  return spec;
}

std::string describe(const QuantizationSpec& quantization) {
  if (quantization.method == QuantMethod::kMxfp4) return "mxfp4";
  return fmt::format("fp8 in blocks of {} x {}", quantization.block_rows,
                     quantization.block_columns);
}

}  // namespace trireme::model
