// Hugging Face directories with fp8 in blocks (DeepSeek-V3) and MXFP4 experts (gpt_oss): read, written, damaged.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "trireme/base/file.h"
#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/huggingface.h"
#include "trireme/checkpoint/model_source.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/checkpoint/tensor_stream.h"
#include "trireme/checkpoint/test_directory.h"
#include "trireme/checkpoint/weight_files.h"

namespace trireme::checkpoint {
namespace {

using model::DiskLayout;
using model::ModelSpec;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

/// As DeepSeek-V3's config.json has it.
Json fp8_declared() {
  return {{"quantization_config",
           {{"activation_scheme", "dynamic"},
            {"fmt", "e4m3"},
            {"quant_method", "fp8"},
            {"weight_block_size", {128, 128}}}}};
}

/// Matrices of more than one block, none a multiple of it.
Json deepseek_config() {
  Json config = config_of("deepseek_v3", {{"hidden_size", 192},
                                          {"intermediate_size", 300},
                                          {"moe_intermediate_size", 130},
                                          {"q_lora_rank", 136},
                                          {"num_nextn_predict_layers", 1}});
  config.update(fp8_declared());
  return config;
}

/// What DeepSeek-V3's files hold as fp8, by name.
bool is_fp8_name(const std::string& name) {
  return name.ends_with(".weight") && name.find("_proj") != std::string::npos &&
         name.find("eh_proj") == std::string::npos;
}

at::Tensor per_element(const at::Tensor& scales, const at::Tensor& weight) {
  return scales.repeat_interleave(128, -2)
      .repeat_interleave(128, -1)
      .slice(-2, 0, weight.size(-2))
      .slice(-1, 0, weight.size(-1));
}

/// The plain reference: block by block with torch's own conversion.
std::pair<at::Tensor, at::Tensor> quantised(const at::Tensor& weight) {
  const at::Tensor whole = weight.to(at::kFloat);
  const int64_t rows = (whole.size(0) + 127) / 128, columns = (whole.size(1) + 127) / 128;
  at::Tensor scales = at::empty({rows, columns});
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const at::Tensor block = whole.slice(0, 128 * i, std::min(whole.size(0), 128 * i + 128))
                                   .slice(1, 128 * j, std::min(whole.size(1), 128 * j + 128));
      scales[i][j] = block.abs().max() / 448.0f;
    }
  }
  return {(whole / per_element(scales, whole)).to(at::kFloat8_e4m3fn), scales};
}

Tensors with_fp8(const Tensors& plain) {
  Tensors tensors;
  for (const auto& [name, tensor] : plain) {
    if (!is_fp8_name(name)) {
      tensors[name] = tensor;
      continue;
    }
    std::tie(tensors[name], tensors[name + "_scale_inv"]) = quantised(tensor);
  }
  return tensors;
}

at::Tensor dequantised(const Tensors& tensors, const std::string& name) {
  const at::Tensor& weight = tensors.at(name);
  return weight.to(at::kFloat) * per_element(tensors.at(name + "_scale_inv"), weight);
}

struct Fp8Model {
  ModelSpec spec;
  std::string config;
  Tensors tensors;
};

Fp8Model make_deepseek_model() {
  at::manual_seed(11);
  Fp8Model model;
  model.config = deepseek_config().dump(2) + "\n";
  model.spec = model::spec_from_config(model.config, "config.json");
  Tensors plain = make_tensors(model.spec, DiskLayout::kFiles, true, true);
  for (auto& [name, tensor] : plain) {
    if (is_fp8_name(name)) tensor = (at::randn(tensor.sizes()) * 0.02).to(at::kBFloat16);
  }
  model.tensors = with_fp8(plain);
  return model;
}

Fp8Model deepseek_model() {
  static const Fp8Model model = make_deepseek_model();
  return model;
}

std::string streamed(const TensorToWrite& tensor) {
  std::string bytes;
  stream_tensor(tensor, [&](std::span<const std::byte> piece) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  });
  return bytes;
}

std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.to(at::kFloat).contiguous();
  return {static_cast<const char*>(whole.const_data_ptr()), whole.nbytes()};
}

TEST(HuggingFaceFp8, DequantisesWhatIsStored) {
  const TestFolder folder;
  const Fp8Model model = deepseek_model();
  write_directory(folder / "hf", model.config, model.tensors);
  const HuggingFaceModel opened = open_huggingface(folder / "hf");
  ASSERT_TRUE(opened.spec.quantization.has_value());
  EXPECT_EQ(opened.stored_dtype, Dtype::kBf16);
  EXPECT_TRUE(opened.form.other_dtypes.empty());
  EXPECT_THAT(opened.texts.at("config.json"), Not(HasSubstr("quantization_config")));
  EXPECT_THAT(opened.spec.config_json, Not(HasSubstr("quantization_config")));
  for (const std::string name :
       {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
        "model.layers.2.self_attn.o_proj.weight"})
    EXPECT_TRUE(at::equal(made(opened.parameters, name), dequantised(model.tensors, name))) << name;
  const at::Tensor stack = made(opened.parameters, "model.layers.1.mlp.experts.down_proj");
  ASSERT_EQ(stack.sizes(), (std::vector<int64_t>{4, 192, 130}));
  for (int64_t expert = 0; expert < 4; ++expert) {
    const std::string name = fmt::format("model.layers.1.mlp.experts.{}.down_proj.weight", expert);
    EXPECT_TRUE(at::equal(stack[expert], dequantised(model.tensors, name))) << name;
  }
  for (const std::string name : {"model.embed_tokens.weight", "model.layers.2.eh_proj.weight"})
    EXPECT_TRUE(at::equal(made(opened.parameters, name), model.tensors.at(name))) << name;
  for (const TensorToWrite& parameter : opened.parameters)
    EXPECT_EQ(streamed(parameter), bytes_of(parameter.make())) << parameter.name;
}

TEST(HuggingFaceFp8, StreamsExpertsAndRowsInTurn) {
  const TestFolder folder;
  const Json config = {{"model_type", "llama"},       {"vocab_size", 32},
                       {"hidden_size", 1024},         {"intermediate_size", 9000},
                       {"num_hidden_layers", 1},      {"num_attention_heads", 4},
                       {"max_position_embeddings", 8}};
  Json declared = config;
  declared.update(fp8_declared());
  const ModelSpec spec = model::spec_from_config(config.dump(), "config.json");
  Tensors tensors = make_tensors(spec, DiskLayout::kFiles, false, false);
  const std::string name = "model.layers.0.mlp.gate_proj.weight";
  tensors[name] = at::randint(0, 127, {9000, 1024}).to(at::kByte).view(at::kFloat8_e4m3fn);
  tensors[name + "_scale_inv"] = at::rand({71, 8});
  write_directory(folder / "hf", declared.dump(), tensors);
  const HuggingFaceModel opened = open_huggingface(folder / "hf");
  for (const TensorToWrite& parameter : opened.parameters) {
    if (parameter.name != name) {
      EXPECT_TRUE(parameter.pieces.empty()) << "a view of the file needs no pieces";
      continue;
    }
    EXPECT_EQ(parameter.pieces.size(), 3u);  // 9000 x 1024 numbers, 2^22 at a time
    for (const auto& make : parameter.pieces) EXPECT_LE(make().numel(), kPieceElements);
    EXPECT_EQ(streamed(parameter), bytes_of(dequantised(tensors, name)));
  }

  const Fp8Model model = deepseek_model();
  write_directory(folder / "experts", model.config, model.tensors);
  for (const TensorToWrite& parameter : open_huggingface(folder / "experts").parameters) {
    if (parameter.shape.size() != 3) continue;
    EXPECT_EQ(parameter.pieces.size(), 4u) << parameter.name;
    for (const auto& make : parameter.pieces) EXPECT_EQ(make().size(0), 1) << parameter.name;
  }
}

TEST(HuggingFaceFp8, ImportThenExportGivesTheSameBytes) {
  const TestFolder folder;
  const Fp8Model model = deepseek_model();
  write_directory(folder / "hf", model.config, model.tensors);
  import_huggingface(folder / "hf", folder / "ours");
  for (const std::string from : {"ours", "hf"}) {
    const ModelSource source = open_model(folder / from);
    const auto to = folder / ("from_" + from);
    export_huggingface(to, source.spec, source.parameters, source.texts,
                       {.dtype = source.stored_dtype, .form = source.form, .fp8 = true});
    EXPECT_EQ(read_file(folder / "hf" / "model.safetensors"), read_file(to / "model.safetensors"));
    Json config = parse_json(read_file(to / "config.json"), "config.json");
    Json& quantization = config.at("quantization_config");
    EXPECT_THAT(quantization.at("modules_to_not_convert").get<std::vector<std::string>>(),
                ::testing::UnorderedElementsAre("lm_head", "model.layers.1.mlp.gate",
                                                "model.layers.2.mlp.gate", "model.layers.2.eh_proj",
                                                "model.layers.2.shared_head.head"));
    quantization.erase("modules_to_not_convert");
    EXPECT_EQ(quantization, fp8_declared().at("quantization_config"));
    EXPECT_EQ(config.at("dtype"), "bfloat16");
  }
  // What was exported is read, and exported again as it was, its config too.
  const ModelSource again = open_model(folder / "from_ours");
  export_huggingface(folder / "again", again.spec, again.parameters, again.texts,
                     {.dtype = again.stored_dtype, .form = again.form, .fp8 = true});
  for (const char* file : {"config.json", "model.safetensors"})
    EXPECT_EQ(read_file(folder / "from_ours" / file), read_file(folder / "again" / file)) << file;
}

TEST(HuggingFaceFp8, ExportsPlainWeightsUnlessAsked) {
  const TestFolder folder;
  const Fp8Model model = deepseek_model();
  write_directory(folder / "hf", model.config, model.tensors);
  import_huggingface(folder / "hf", folder / "ours");
  const ModelSource source = open_model(folder / "ours");
  export_huggingface(folder / "plain", source.spec, source.parameters, source.texts,
                     {.dtype = source.stored_dtype, .form = source.form});
  EXPECT_THAT(read_file(folder / "plain" / "config.json"), Not(HasSubstr("quantization_config")));
  for (const auto& [name, tensor] : read_tensors(folder / "plain")) {
    EXPECT_FALSE(name.ends_with(kScaleSuffix)) << name;
    if (!is_fp8_name(name)) continue;
    EXPECT_TRUE(at::equal(tensor, dequantised(model.tensors, name).to(at::kBFloat16))) << name;
  }
}

TEST(HuggingFaceFp8, CutsIntoShards) {
  const TestFolder folder;
  const Fp8Model model = deepseek_model();
  write_directory(folder / "hf", model.config, model.tensors);
  const ModelSource source = open_model(folder / "hf");
  const ExportResult result = export_huggingface(
      folder / "cut", source.spec, source.parameters, source.texts,
      {.dtype = Dtype::kBf16, .shard_bytes = 100'000, .form = source.form, .fp8 = true});
  EXPECT_EQ(result.num_tensors, static_cast<int64_t>(model.tensors.size()));
  const Json index = parse_json(read_file(folder / "cut" / kWeightsIndexName), "index");
  EXPECT_EQ(index["metadata"]["total_size"], result.bytes);
  int64_t parameters = 0;  // scales are none
  for (const auto& [name, tensor] : model.tensors)
    parameters += name.ends_with(kScaleSuffix) ? 0 : tensor.numel();
  EXPECT_EQ(index["metadata"]["total_parameters"], parameters);
  const HuggingFaceModel opened = open_huggingface(folder / "cut");
  for (size_t i = 0; i < opened.parameters.size(); ++i) {
    EXPECT_TRUE(at::equal(opened.parameters[i].make(), source.parameters[i].make()))
        << opened.parameters[i].name;
  }
}

TEST(HuggingFaceFp8, NamesWhatDoesNotFit) {
  const TestFolder folder;
  const Fp8Model model = deepseek_model();
  const std::string name = "model.layers.1.mlp.experts.2.up_proj.weight";
  int number = 0;
  const auto problem = [&](const std::string& config, auto change) {
    Tensors tensors = model.tensors;
    change(tensors);
    const auto where = folder / std::to_string(number++);
    write_directory(where, config, tensors);
    return problem_of(where);
  };
  EXPECT_EQ(problem(model.config, [](Tensors&) {}), "");
  EXPECT_THAT(problem(model.config, [&](Tensors& t) { t.erase(name + "_scale_inv"); }),
              HasSubstr("'" + name + "' lacks its scales '" + name + "_scale_inv'"));
  EXPECT_THAT(problem(model.config, [&](Tensors& t) { t.erase(name); }),
              HasSubstr("'" + name + "_scale_inv' are scales, but there is no '" + name + "'"));
  EXPECT_THAT(
      problem(model.config, [&](Tensors& t) { t[name] = at::zeros({130, 192}, at::kBFloat16); }),
      HasSubstr("'" + name + "_scale_inv' are scales, but there is no '" + name + "'"));
  EXPECT_THAT(problem(model.config, [&](Tensors& t) { t[name + "_scale_inv"] = at::ones({1, 2}); }),
              HasSubstr("'" + name + "_scale_inv' is [1, 2] and should be [2, 2]"));
  EXPECT_THAT(problem(model.config,
                      [&](Tensors& t) { t[name + "_scale_inv"] = at::ones({2, 2}, at::kByte); }),
              HasSubstr("'" + name + "_scale_inv' is of type U8"));
  EXPECT_THAT(
      problem(model.config,
              [&](Tensors& t) { t["model.norm.weight"] = at::zeros({192}, at::kFloat8_e4m3fn); }),
      HasSubstr("'model.norm.weight' is [192]"));
  EXPECT_THAT(problem(model.config,
                      [&](Tensors& t) {
                        t[name] = at::zeros({192, 130}, at::kByte).view(at::kFloat8_e4m3fn);
                      }),
              HasSubstr(name + " is [192, 130] and should be [130, 192]"));

  Json undeclared = deepseek_config();
  undeclared.erase("quantization_config");
  EXPECT_THAT(problem(undeclared.dump(), [](Tensors&) {}), HasSubstr("is of type F8_E4M3"));
  Json other = deepseek_config();
  other["quantization_config"] = {{"quant_method", "awq"}, {"bits", 4}};
  EXPECT_THAT(problem(other.dump(), [](Tensors&) {}), HasSubstr("\"awq\""));
  Json smaller = deepseek_config();
  smaller["quantization_config"]["weight_block_size"] = {64, 64};
  EXPECT_THAT(problem(smaller.dump(), [](Tensors&) {}), HasSubstr("fp8 in blocks of 64 x 64"));
}

TEST(HuggingFaceFp8, NamesTheScaleThatIsNone) {
  const TestFolder folder;
  Fp8Model model = deepseek_model();
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  at::Tensor scales = model.tensors.at(name + "_scale_inv").clone();
  scales[1][2] = std::numeric_limits<float>::quiet_NaN();
  model.tensors[name + "_scale_inv"] = scales;
  write_directory(folder / "hf", model.config, model.tensors);
  try {
    import_huggingface(folder / "hf", folder / "ours");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("'" + name + "_scale_inv'"), HasSubstr("[1, 2]")));
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "ours"));
}

TEST(HuggingFaceFp8, NamesTheNumberThatIsNone) {
  const TestFolder folder;
  Fp8Model model = deepseek_model();
  const std::string name = "model.layers.1.mlp.experts.2.down_proj.weight";
  at::Tensor bytes = model.tensors.at(name).view(at::kByte).clone();
  bytes[150][129] = 0xff;
  model.tensors[name] = bytes.view(at::kFloat8_e4m3fn);
  write_directory(folder / "hf", model.config, model.tensors);
  try {
    import_huggingface(folder / "hf", folder / "ours");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("'" + name + "'"),
                                    HasSubstr("block [1, 1] has values that are not finite")));
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "ours"));
}

TEST(HuggingFaceFp8, RefusesToWriteWhatIsNotFinite) {
  const TestFolder folder;
  Fp8Model model = deepseek_model();
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  model.tensors.erase(name + "_scale_inv");
  model.tensors[name] =
      at::full({192, 300}, std::numeric_limits<double>::infinity(), at::kBFloat16);
  write_directory(folder / "hf", model.config, model.tensors);
  const ModelSource source = open_model(folder / "hf");
  try {
    export_huggingface(folder / "out", source.spec, source.parameters, source.texts, {.fp8 = true});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNumerical);
    EXPECT_THAT(error.what(), HasSubstr("'" + name + "'"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

/// Opens and reads everything; true if it went well, false for an Error of what the user gave.
bool reads(const std::filesystem::path& path) {
  try {
    for (const TensorToWrite& parameter : open_huggingface(path).parameters) parameter.make();
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData) << error.what();
    return false;
  }
}

void damage(const std::filesystem::path& path) {
  const std::string whole = read_file(path / "model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);
  int refused = 0;
  const auto write = [&](const std::string& content) {
    std::ofstream(path / "model.safetensors", std::ios::binary) << content;
    if (!reads(path)) ++refused;
  };
  for (size_t at = 0; at < 8 + header + 64; at += 37) {
    std::string flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << (at % 8)));
    write(flipped);
  }
  EXPECT_GT(refused, 20) << "most of the header matters";
  for (const size_t size :
       {size_t{0}, size_t{7}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    refused = 0;
    write(whole.substr(0, size));
    EXPECT_EQ(refused, 1) << size;
  }
  write(whole);
  EXPECT_TRUE(reads(path));
}

TEST(HuggingFaceFp8, DamageIsAnErrorAndNothingWorse) {
  const TestFolder folder;
  const Fp8Model model = deepseek_model();
  write_directory(folder / "hf", model.config, model.tensors);
  damage(folder / "hf");
}

TEST(HuggingFaceFp8, EveryFamilyOfLinearWeightsCanBeWritten) {
  for (const std::string& family : model::moe_families()) {
    const TestFolder folder;
    const ModelSpec spec = model::spec_from_config(config_of(family).dump(), "config.json");
    // In either layout; fp8 is written expert by expert.
    for (const DiskLayout layout : {DiskLayout::kFiles, DiskLayout::kModules}) {
      const auto from = folder / fmt::format("{}", static_cast<int>(layout));
      write_directory(from, spec.config_json, make_tensors(spec, layout, true, true));
      const ModelSource source = open_model(from);
      const auto to = folder / fmt::format("fp8-{}", static_cast<int>(layout));
      const auto write = [&] {
        export_huggingface(to, source.spec, source.parameters, source.texts,
                           {.dtype = Dtype::kBf16, .form = source.form, .fp8 = true});
      };
      if (family == "gpt_oss") {
        EXPECT_THROW(write(), Error);
        continue;
      }
      write();
      const Tensors tensors = read_tensors(to);
      for (const auto& [name, tensor] : tensors) {
        if (name.ends_with(kScaleSuffix)) continue;
        const bool router = name.ends_with(".gate.weight") || name.ends_with("_gate.weight");
        const bool linear = tensor.dim() == 2 && !router && name != "lm_head.weight" &&
                            name != "model.embed_tokens.weight";
        EXPECT_EQ(tensor.scalar_type() == at::kFloat8_e4m3fn, linear) << name;
        EXPECT_EQ(tensors.contains(name + kScaleSuffix), linear) << name;
        const Json config = parse_json(read_file(to / "config.json"), "config.json");
        if (router) {
          EXPECT_THAT(config.at("quantization_config")
                          .at("modules_to_not_convert")
                          .get<std::vector<std::string>>(),
                      Contains(name.substr(0, name.size() - 7)));
        }
      }
      // Nothing but rounding: to four significant bits, or below 2^-6 of a scale to multiples of its 2^-9.
      const HuggingFaceModel opened = open_huggingface(to);
      for (size_t i = 0; i < opened.parameters.size(); ++i) {
        const at::Tensor got = opened.parameters[i].make().to(at::kFloat);
        const at::Tensor want = source.parameters[i].make().to(at::kFloat);
        const double largest = want.abs().max().item<double>();
        const at::Tensor bound = want.abs() / 16 + largest / 448 * 0x1p-10 + 1e-6 * largest;
        EXPECT_TRUE(((got - want).abs() <= bound).all().item<bool>()) << opened.parameters[i].name;
      }
    }
  }
}

// ---- MXFP4 ----

Json gpt_oss_config() {
  return config_of("gpt_oss",
                   {{"hidden_size", 64},
                    {"intermediate_size", 32},
                    {"quantization_config",
                     {{"modules_to_not_convert", {"model.layers.*.self_attn", "lm_head"}},
                      {"quant_method", "mxfp4"}}}});
}

const std::string kExperts = "model.layers.1.mlp.experts.";

Tensors gpt_oss_tensors(const ModelSpec& spec) {
  at::manual_seed(12);
  Tensors tensors = make_tensors(spec, DiskLayout::kFiles, false, false);
  for (const std::string layer : {"0", "1"}) {
    const std::string experts = "model.layers." + layer + ".mlp.experts.";
    for (const auto& [name, rows, groups] :
         {std::tuple<std::string, int64_t, int64_t>{"gate_up_proj", 64, 2}, {"down_proj", 64, 1}}) {
      tensors.erase(experts + name);
      tensors[experts + name + "_blocks"] =
          at::randint(0, 256, {3, rows, groups, 16}).to(at::kByte);
      tensors[experts + name + "_scales"] = at::randint(110, 130, {3, rows, groups}).to(at::kByte);
    }
  }
  return tensors;
}

/// [experts, rows, columns]: the plain reference, number by number.
at::Tensor mxfp4(const Tensors& tensors, const std::string& name) {
  const at::Tensor table = at::tensor(
      std::vector<double>{0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6});
  const at::Tensor blocks = tensors.at(name + "_blocks").to(at::kLong);
  const at::Tensor codes = at::stack({blocks.bitwise_and(15), blocks.bitwise_right_shift(4)}, -1);
  const at::Tensor scale = at::exp2(tensors.at(name + "_scales").to(at::kDouble) - 127);
  return (table.index({codes}).flatten(-2) * scale.unsqueeze(-1)).flatten(-2).to(at::kFloat);
}

TEST(HuggingFaceMxfp4, DequantisesExperts) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(gpt_oss_config().dump(), "config.json");
  const Tensors tensors = gpt_oss_tensors(spec);
  write_directory(folder / "hf", gpt_oss_config().dump(2) + "\n", tensors);
  const HuggingFaceModel opened = open_huggingface(folder / "hf");
  EXPECT_EQ(opened.stored_dtype, Dtype::kBf16);
  // Rows of gate and up in turn, as transformers' modules hold them once they are dequantised.
  const at::Tensor gate_up = mxfp4(tensors, kExperts + "gate_up_proj");
  EXPECT_TRUE(
      at::equal(made(opened.parameters, kExperts + "gate_proj"), gate_up.slice(1, 0, 64, 2)));
  EXPECT_TRUE(at::equal(made(opened.parameters, kExperts + "up_proj"), gate_up.slice(1, 1, 64, 2)));
  EXPECT_TRUE(at::equal(made(opened.parameters, kExperts + "down_proj"),
                        mxfp4(tensors, kExperts + "down_proj")));
  for (const TensorToWrite& parameter : opened.parameters)
    EXPECT_EQ(streamed(parameter), bytes_of(parameter.make())) << parameter.name;
}

TEST(HuggingFaceMxfp4, ExportsThemAsBfloat16WithoutLoss) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(gpt_oss_config().dump(), "config.json");
  const Tensors tensors = gpt_oss_tensors(spec);
  write_directory(folder / "hf", gpt_oss_config().dump(2) + "\n", tensors);
  import_huggingface(folder / "hf", folder / "ours");
  const ModelSource source = open_model(folder / "ours");
  export_huggingface(folder / "out", source.spec, source.parameters, source.texts,
                     {.dtype = source.stored_dtype, .form = source.form});
  EXPECT_THAT(read_file(folder / "out" / "config.json"), Not(HasSubstr("quantization_config")));
  const Tensors exported = read_tensors(folder / "out");
  for (const std::string name : {"gate_up_proj", "down_proj"}) {
    EXPECT_EQ(exported.at(kExperts + name).scalar_type(), at::kBFloat16);
    EXPECT_TRUE(at::equal(exported.at(kExperts + name).to(at::kFloat),
                          mxfp4(tensors, kExperts + name).transpose(1, 2)));
  }
}

TEST(HuggingFaceMxfp4, NamesWhatDoesNotFit) {
  const TestFolder folder;
  const std::string config = gpt_oss_config().dump();
  const ModelSpec spec = model::spec_from_config(config, "config.json");
  const Tensors whole = gpt_oss_tensors(spec);
  const std::string name = kExperts + "down_proj";
  int number = 0;
  const auto problem = [&](const std::string& text, auto change) {
    Tensors tensors = whole;
    change(tensors);
    const auto where = folder / std::to_string(number++);
    write_directory(where, text, tensors);
    return problem_of(where);
  };
  EXPECT_EQ(problem(config, [](Tensors&) {}), "");
  EXPECT_THAT(problem(config, [&](Tensors& t) { t.erase(name + "_scales"); }),
              HasSubstr("'" + name + "_blocks' lacks its scales '" + name + "_scales'"));
  EXPECT_THAT(problem(config, [&](Tensors& t) { t.erase(name + "_blocks"); }),
              HasSubstr("'" + name + "_scales' are scales, but there is no '" + name + "_blocks'"));
  EXPECT_THAT(
      problem(config, [&](Tensors& t) { t[name + "_scales"] = at::ones({3, 64, 2}, at::kByte); }),
      HasSubstr("'" + name + "_scales' is [3, 64, 2] and should be [3, 64, 1]"));
  EXPECT_THAT(problem(config, [&](Tensors& t) { t[name + "_scales"] = at::ones({3, 64, 1}); }),
              HasSubstr("'" + name + "_scales' is of type F32 and should be U8"));
  EXPECT_THAT(
      problem(config, [&](Tensors& t) { t[name + "_blocks"] = at::ones({3, 64, 16}, at::kByte); }),
      HasSubstr("'" + name + "_blocks' is [3, 64, 16] and should be [experts, rows, groups, 16]"));
  EXPECT_THAT(problem(config, [&](Tensors& t) { t[name] = at::ones({3, 32, 64}, at::kBFloat16); }),
              HasSubstr("'" + name + "' is stored twice"));
  EXPECT_THAT(problem(config,
                      [&](Tensors& t) {
                        t[name + "_blocks"] = at::ones({3, 32, 1, 16}, at::kByte);
                        t[name + "_scales"] = at::ones({3, 32, 1}, at::kByte);
                      }),
              HasSubstr(name + " is [3, 32, 32] and should be [3, 32, 64]"));
  Json undeclared = gpt_oss_config();
  undeclared.erase("quantization_config");
  EXPECT_THAT(problem(undeclared.dump(), [](Tensors&) {}), HasSubstr(".mlp.experts.gate_up_proj"));
}

TEST(HuggingFaceMxfp4, NamesTheNumberThatIsNone) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(gpt_oss_config().dump(), "config.json");
  const Tensors whole = gpt_oss_tensors(spec);
  const std::string name = kExperts + "gate_up_proj";
  for (const int scale : {254, 255}) {
    Tensors tensors = whole;
    tensors[name + "_blocks"] = at::full({3, 64, 2, 16}, 0x44, at::kByte);  // all of them 2
    tensors[name + "_scales"] = tensors[name + "_scales"].clone();
    tensors[name + "_scales"][2][5][1] = scale;
    const auto where = folder / std::to_string(scale);
    write_directory(where / "hf", gpt_oss_config().dump(2), tensors);
    try {
      import_huggingface(where / "hf", where / "ours");
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      // 64 rows of 2 blocks an expert.
      EXPECT_THAT(error.what(), AllOf(HasSubstr("'" + name + "_blocks' with '" + name + "_scales'"),
                                      HasSubstr(fmt::format("block {} ", 2 * 128 + 5 * 2 + 1))));
    }
    EXPECT_FALSE(std::filesystem::exists(where / "ours"));
  }
}

TEST(HuggingFaceMxfp4, DamageIsAnErrorAndNothingWorse) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(gpt_oss_config().dump(), "config.json");
  write_directory(folder / "hf", gpt_oss_config().dump(2), gpt_oss_tensors(spec));
  damage(folder / "hf");
}

}  // namespace
}  // namespace trireme::checkpoint
