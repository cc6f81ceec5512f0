// Scales of fp8 that export would not choose: powers of two as DeepSeek-V3.1 has them, and any others.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "trireme/base/file.h"
#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/model_source.h"
#include "trireme/checkpoint/test_directory.h"
#include "trireme/checkpoint/weight_files.h"

namespace trireme::checkpoint {
namespace {

using ::testing::HasSubstr;

Json llama_config() {
  return {{"model_type", "llama"},        {"vocab_size", 32},       {"hidden_size", 256},
          {"intermediate_size", 384},     {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"max_position_embeddings", 8}, {"dtype", "bfloat16"}};
}

struct Published {
  std::string config;
  Tensors tensors;
};

/// Bytes up to that of `largest` in every block, and a scale of `scale_of` (a float) for each.
template <typename Scale>
Published published(const Json& quantization, int64_t largest, Scale scale_of) {
  at::manual_seed(3);
  Json config = llama_config();
  const model::ModelSpec spec = model::spec_from_config(config.dump(), "config.json");
  Published result;
  result.tensors = make_tensors(spec, model::DiskLayout::kFiles, false, false);
  for (auto& [name, tensor] : Tensors(result.tensors)) {
    if (name.find("_proj") == std::string::npos) continue;
    const std::vector<int64_t> shape = tensor.sizes().vec();
    const at::Tensor signs = at::randint(0, 2, shape).mul(128);
    result.tensors[name] =
        at::randint(0, largest + 1, shape).add(signs).to(at::kByte).view(at::kFloat8_e4m3fn);
    at::Tensor scales = at::empty({shape[0] / 128, shape[1] / 128});
    for (int64_t i = 0; i < scales.numel(); ++i) scales.view(-1)[i] = scale_of(i);
    result.tensors[name + kScaleSuffix] = scales;
  }
  config["quantization_config"] = {
      {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}};
  config["quantization_config"].update(quantization);
  result.config = config.dump(2) + "\n";
  return result;
}

/// The directory itself, and a checkpoint of it, exported as fp8.
void expect_same_bytes(const TestFolder& folder, const Json& scale_fmt) {
  import_huggingface(folder / "hf", folder / "ours");
  for (const std::string from : {"hf", "ours"}) {
    const ModelSource source = open_model(folder / from);
    const auto to = folder / ("from_" + from);
    export_huggingface(
        to, source.spec, source.parameters, source.texts,
        {.dtype = source.stored_dtype, .form = source.form, .fp8 = true, .scales = source.scales});
    EXPECT_EQ(read_file(folder / "hf" / "model.safetensors"), read_file(to / "model.safetensors"));
    const Json config = parse_json(read_file(to / "config.json"), "config.json");
    EXPECT_EQ(config.at("quantization_config").value("scale_fmt", Json()), scale_fmt) << from;
  }
}

TEST(HuggingFaceScales, PowersOfTwoComeBack) {
  // Far below 448, where export by itself would choose smaller scales.
  for (const int64_t largest : {int64_t{0x7e}, int64_t{0x61}}) {
    const Published model = published({{"scale_fmt", "ue8m0"}}, largest, [](int64_t i) {
      return std::ldexp(1.0f, -10 - static_cast<int>(i % 7));
    });
    const TestFolder folder;
    write_directory(folder / "hf", model.config, model.tensors);
    expect_same_bytes(folder, "ue8m0");
  }
}

TEST(HuggingFaceScales, AnyScalesComeBack) {
  const TestFolder folder;
  const Published model = published(
      Json::object(), 0x70, [](int64_t i) { return 1.0f / (240.0f + 3 * static_cast<float>(i)); });
  write_directory(folder / "hf", model.config, model.tensors);
  expect_same_bytes(folder, Json());
}

TEST(HuggingFaceScales, WeightsThatMovedGetPowersOfTwo) {
  const TestFolder folder;
  const Published model =
      published({{"scale_fmt", "ue8m0"}}, 0x7e, [](int64_t) { return 0x1p-10f; });
  write_directory(folder / "hf", model.config, model.tensors);
  const ModelSource source = open_model(folder / "hf");
  std::vector<NamedTensor> parameters;
  for (const TensorToWrite& parameter : source.parameters)
    parameters.push_back({parameter.name, parameter.make().to(at::kFloat) * 3});
  export_huggingface(
      folder / "tripled", source.spec, parameters, source.texts,
      {.dtype = Dtype::kBf16, .form = source.form, .fp8 = true, .scales = source.scales});
  // 448 x 3 x 2^-10 is held by 2^-8, not by 2^-9.
  for (const auto& [name, tensor] : read_tensors(folder / "tripled")) {
    if (!name.ends_with(kScaleSuffix)) continue;
    EXPECT_TRUE((tensor == 0x1p-8f).all().item<bool>()) << name;
  }
}

TEST(HuggingFaceScales, OtherBlocksAreNamed) {
  const TestFolder folder;
  Published model =
      published({{"weight_block_size", {256, 128}}}, 0x7e, [](int64_t) { return 0.01f; });
  for (auto& [name, tensor] : model.tensors) {
    if (name.ends_with(kScaleSuffix))
      tensor = at::full({(tensor.size(0) + 1) / 2, tensor.size(1)}, 0.01f);
  }
  write_directory(folder / "hf", model.config, model.tensors);
  ::testing::internal::CaptureStderr();
  import_huggingface(folder / "hf", folder / "ours");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("the scales of 'model.layers.0.self_attn.q_proj.weight' are not kept"));
  EXPECT_TRUE(open_model(folder / "ours").scales.empty());
}

}  // namespace
}  // namespace trireme::checkpoint
