#include "trireme/checkpoint/huggingface.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "trireme/base/file.h"
#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/compare.h"
#include "trireme/checkpoint/faulty_storage.h"
#include "trireme/checkpoint/model_source.h"
#include "trireme/checkpoint/tensor_file.h"

namespace trireme::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr const char* kLlamaConfig = R"({
  "architectures": [
    "LlamaForCausalLM"
  ],
  "dtype": "float32",
  "hidden_size": 8,
  "intermediate_size": 12,
  "max_position_embeddings": 32,
  "model_type": "llama",
  "num_attention_heads": 2,
  "num_hidden_layers": 1,
  "num_key_value_heads": 1,
  "tie_word_embeddings": false,
  "vocab_size": 10
}
)";

constexpr const char* kGpt2Config = R"({
  "architectures": [
    "GPT2LMHeadModel"
  ],
  "dtype": "float32",
  "model_type": "gpt2",
  "n_embd": 8,
  "n_head": 2,
  "n_layer": 1,
  "n_positions": 16,
  "vocab_size": 10
}
)";

/// Names and shapes as transformers stores them (written down from its own files).
using Shapes = std::map<std::string, std::vector<int64_t>>;
const Shapes kLlamaShapes = {{"lm_head.weight", {10, 8}},
                             {"model.embed_tokens.weight", {10, 8}},
                             {"model.layers.0.input_layernorm.weight", {8}},
                             {"model.layers.0.mlp.down_proj.weight", {8, 12}},
                             {"model.layers.0.mlp.gate_proj.weight", {12, 8}},
                             {"model.layers.0.mlp.up_proj.weight", {12, 8}},
                             {"model.layers.0.post_attention_layernorm.weight", {8}},
                             {"model.layers.0.self_attn.k_proj.weight", {4, 8}},
                             {"model.layers.0.self_attn.o_proj.weight", {8, 8}},
                             {"model.layers.0.self_attn.q_proj.weight", {8, 8}},
                             {"model.layers.0.self_attn.v_proj.weight", {4, 8}},
                             {"model.norm.weight", {8}}};
const Shapes kGpt2Shapes = {{"transformer.h.0.attn.c_attn.bias", {24}},
                            {"transformer.h.0.attn.c_attn.weight", {8, 24}},
                            {"transformer.h.0.attn.c_proj.bias", {8}},
                            {"transformer.h.0.attn.c_proj.weight", {8, 8}},
                            {"transformer.h.0.ln_1.bias", {8}},
                            {"transformer.h.0.ln_1.weight", {8}},
                            {"transformer.h.0.ln_2.bias", {8}},
                            {"transformer.h.0.ln_2.weight", {8}},
                            {"transformer.h.0.mlp.c_fc.bias", {32}},
                            {"transformer.h.0.mlp.c_fc.weight", {8, 32}},
                            {"transformer.h.0.mlp.c_proj.bias", {8}},
                            {"transformer.h.0.mlp.c_proj.weight", {32, 8}},
                            {"transformer.ln_f.bias", {8}},
                            {"transformer.ln_f.weight", {8}},
                            {"transformer.wpe.weight", {16, 8}},
                            {"transformer.wte.weight", {10, 8}}};

using Tensors = std::map<std::string, at::Tensor>;

Tensors make_tensors(const Shapes& shapes, at::ScalarType type = at::kFloat) {
  Tensors tensors;
  int64_t number = 0;
  for (const auto& [name, shape] : shapes) {
    int64_t numel = 1;
    for (const int64_t extent : shape) numel *= extent;
    // Small integers and a quarter: exact in every type.
    tensors[name] = ((at::arange(numel) % 61 + 3 * number++) / 4.0).reshape(shape).to(type);
  }
  return tensors;
}

void write_weights(const fs::path& folder, const std::string& file, const Tensors& tensors) {
  fs::create_directories(folder);
  std::vector<TensorToWrite> to_write;
  for (const auto& [name, tensor] : tensors) {
    to_write.push_back(
        {name, dtype_of(tensor.scalar_type()), tensor.sizes().vec(), [t = tensor] { return t; }});
  }
  std::vector<const TensorToWrite*> pointers;
  for (const auto& tensor : to_write) pointers.push_back(&tensor);
  write_tensor_file(disk(), folder, file, pointers, {{"format", "pt"}});
}

void write_directory(const fs::path& folder, const std::string& config, const Tensors& tensors) {
  write_weights(folder, "model.safetensors", tensors);
  write_file_atomically(folder / "config.json", config);
}

at::Tensor made(const std::vector<TensorToWrite>& parameters, const std::string& name) {
  for (const TensorToWrite& parameter : parameters) {
    if (parameter.name == name) return parameter.make();
  }
  ADD_FAILURE() << "no parameter " << name;
  return {};
}

std::string problem_of(const fs::path& folder) {
  try {
    open_huggingface(folder);
  } catch (const Error& error) {
    return std::string(error.what()) + " / " + error.hint();
  }
  return "";
}

void expect_same_files(const fs::path& a, const fs::path& b) {
  for (const auto& entry : fs::directory_iterator(a)) {
    const std::string name = entry.path().filename().string();
    ASSERT_TRUE(fs::exists(b / name)) << name;
    EXPECT_EQ(read_file(a / name), read_file(b / name)) << name;
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(a), {}),
            std::distance(fs::directory_iterator(b), {}));
}

TEST(HuggingFaceTest, ReadsLlamaAsItLies) {
  const TestFolder folder;
  const Tensors tensors = make_tensors(kLlamaShapes);
  write_directory(folder / "hf", kLlamaConfig, tensors);
  const HuggingFaceModel model = open_huggingface(folder / "hf");
  ASSERT_EQ(model.parameters.size(), tensors.size());
  for (size_t i = 0; i < model.parameters.size(); ++i) {
    EXPECT_EQ(model.parameters[i].name, model.spec.parameters[i].name);
    EXPECT_TRUE(at::equal(model.parameters[i].make(), tensors.at(model.parameters[i].name)));
  }
  EXPECT_EQ(model.stored_dtype, Dtype::kF32);
}

TEST(HuggingFaceTest, UnpacksAndTransposesGpt2) {
  const TestFolder folder;
  const Tensors tensors = make_tensors(kGpt2Shapes);
  write_directory(folder / "hf", kGpt2Config, tensors);
  const HuggingFaceModel model = open_huggingface(folder / "hf");
  const auto stored = [&](const std::string& name) {
    return tensors.at("transformer.h.0." + name);
  };
  const auto ours = [&](const std::string& name) {
    return made(model.parameters, "transformer.h.0." + name);
  };
  // Conv1D: y = x W + b with W [in, out]; query, key and value are its columns 0-7, 8-15 and 16-23.
  const at::Tensor packed = stored("attn.c_attn.weight");
  EXPECT_TRUE(at::equal(ours("attn.c_attn.query.weight"), packed.slice(1, 0, 8).t()));
  EXPECT_TRUE(at::equal(ours("attn.c_attn.key.weight"), packed.slice(1, 8, 16).t()));
  EXPECT_TRUE(at::equal(ours("attn.c_attn.value.weight"), packed.slice(1, 16, 24).t()));
  EXPECT_TRUE(at::equal(ours("attn.c_attn.key.bias"), stored("attn.c_attn.bias").slice(0, 8, 16)));
  EXPECT_TRUE(at::equal(ours("mlp.c_fc.weight"), stored("mlp.c_fc.weight").t()));
  EXPECT_TRUE(at::equal(ours("mlp.c_proj.weight"), stored("mlp.c_proj.weight").t()));
  EXPECT_TRUE(at::equal(made(model.parameters, "transformer.wpe.weight"),
                        tensors.at("transformer.wpe.weight")));
}

TEST(HuggingFaceTest, ReadsABaseModelWithItsOldBuffers) {
  const TestFolder folder;
  const Tensors tensors = make_tensors(kGpt2Shapes);
  Tensors base;
  for (const auto& [name, tensor] : tensors)
    base[name.substr(std::string("transformer.").size())] = tensor;
  base["h.0.attn.bias"] = at::ones({1, 1, 16, 16});
  base["h.0.attn.masked_bias"] = at::scalar_tensor(-1e4);
  write_directory(folder / "base", kGpt2Config, base);
  write_directory(folder / "whole", kGpt2Config, tensors);
  const HuggingFaceModel from_base = open_huggingface(folder / "base");
  const HuggingFaceModel from_whole = open_huggingface(folder / "whole");
  for (size_t i = 0; i < from_whole.parameters.size(); ++i) {
    EXPECT_TRUE(at::equal(from_base.parameters[i].make(), from_whole.parameters[i].make()));
  }
}

TEST(HuggingFaceTest, ImportThenExportGivesTheSameBytes) {
  for (const auto& [config, shapes] :
       {std::pair(kLlamaConfig, kLlamaShapes), std::pair(kGpt2Config, kGpt2Shapes)}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const TestFolder folder;
      std::string text = config;
      if (type != at::kFloat) {
        text.replace(text.find("float32"), 7, type == at::kHalf ? "float16" : "bfloat16");
      }
      write_directory(folder / "hf", text, make_tensors(shapes, type));
      write_file_atomically(folder / "hf" / "generation_config.json", "{\"eos_token_id\":   3}");
      write_file_atomically(folder / "hf" / "tokenizer.json", "{ }\n");
      write_file_atomically(folder / "hf" / "tokenizer_config.json", "{}\n\n");
      import_huggingface(folder / "hf", folder / "ours");
      const ModelSource source = open_model(folder / "ours");
      EXPECT_FALSE(source.huggingface);
      export_huggingface(folder / "again", source.spec, source.parameters, source.texts,
                         {.dtype = source.stored_dtype});
      expect_same_files(folder / "hf", folder / "again");
    }
  }
}

TEST(HuggingFaceTest, CutsIntoShardsWithAnIndex) {
  const TestFolder folder;
  write_directory(folder / "hf", kLlamaConfig, make_tensors(kLlamaShapes));
  const HuggingFaceModel model = open_huggingface(folder / "hf");
  const ExportResult result = export_huggingface(folder / "cut", model.spec, model.parameters,
                                                 model.texts, {.shard_bytes = 700});
  EXPECT_FALSE(fs::exists(folder / "cut" / "model.safetensors"));
  const Json index =
      parse_json(read_file(folder / "cut" / "model.safetensors.index.json"), "index");
  EXPECT_EQ(index["weight_map"].size(), kLlamaShapes.size());
  EXPECT_EQ(index["metadata"]["total_size"], result.bytes);
  int64_t parameters = 0;
  for (const auto& [name, shape] : kLlamaShapes)
    parameters += shape.size() == 2 ? shape[0] * shape[1] : shape[0];
  EXPECT_EQ(index["metadata"]["total_parameters"], parameters);
  EXPECT_EQ(static_cast<int64_t>(result.bytes), 4 * parameters);
  std::set<std::string> files;
  for (const auto& [name, file] : index["weight_map"].items())
    files.insert(file.get<std::string>());
  EXPECT_GT(files.size(), 3u);
  EXPECT_TRUE(compare_tensors(folder / "hf", folder / "cut").empty());

  // and what is cut is read, imported and exported to the same bytes again
  import_huggingface(folder / "cut", folder / "ours");
  const ModelSource source = open_model(folder / "ours");
  export_huggingface(folder / "again", source.spec, source.parameters, source.texts,
                     {.shard_bytes = 700});
  expect_same_files(folder / "cut", folder / "again");

  const std::string first = *files.begin();
  fs::rename(folder / "cut" / first, folder / "elsewhere");
  EXPECT_THAT(problem_of(folder / "cut"), HasSubstr(first));
}

TEST(HuggingFaceTest, ExportsOtherTypesAndSaysSoInTheConfig) {
  const TestFolder folder;
  write_directory(folder / "hf", kGpt2Config, make_tensors(kGpt2Shapes));
  const HuggingFaceModel model = open_huggingface(folder / "hf");
  export_huggingface(folder / "half", model.spec, model.parameters, model.texts,
                     {.dtype = Dtype::kBf16});
  const Json config = parse_json(read_file(folder / "half" / "config.json"), "config");
  EXPECT_EQ(config["dtype"], "bfloat16");
  EXPECT_EQ(config["n_embd"], 8);
  const TensorFile file(folder / "half" / "model.safetensors");
  EXPECT_EQ(file.header().tensors.size(), kGpt2Shapes.size());
  for (const TensorInfo& info : file.header().tensors) {
    EXPECT_EQ(info.shape, kGpt2Shapes.at(info.name));
    EXPECT_TRUE(
        at::equal(file.tensor(info), make_tensors(kGpt2Shapes).at(info.name).to(at::kBFloat16)));
  }
}

TEST(HuggingFaceTest, AcceptsAStoredCopyOfTiedWeights) {
  const TestFolder folder;
  Tensors tensors = make_tensors(kGpt2Shapes);
  tensors["lm_head.weight"] = tensors["transformer.wte.weight"];
  write_directory(folder / "hf", kGpt2Config, tensors);
  EXPECT_EQ(problem_of(folder / "hf"), "");
}

TEST(HuggingFaceTest, NamesWhatDoesNotFit) {
  const TestFolder folder;
  Tensors tensors = make_tensors(kLlamaShapes);
  tensors.erase("model.norm.weight");
  write_directory(folder / "missing", kLlamaConfig, tensors);
  EXPECT_THAT(problem_of(folder / "missing"), HasSubstr("model.norm.weight"));

  tensors = make_tensors(kLlamaShapes);
  tensors["model.layers.1.input_layernorm.weight"] = at::ones({8});
  write_directory(folder / "unexpected", kLlamaConfig, tensors);
  EXPECT_THAT(problem_of(folder / "unexpected"),
              HasSubstr("model.layers.1.input_layernorm.weight"));

  tensors = make_tensors(kLlamaShapes);
  tensors["model.layers.0.self_attn.k_proj.weight"] = at::ones({8, 8});
  write_directory(folder / "shape", kLlamaConfig, tensors);
  EXPECT_THAT(problem_of(folder / "shape"),
              HasSubstr("model.layers.0.self_attn.k_proj.weight is [8, 8] and should be [4, 8]"));

  tensors = make_tensors(kLlamaShapes);
  tensors["model.norm.weight"] = at::ones({8}, at::kInt);
  write_directory(folder / "type", kLlamaConfig, tensors);
  EXPECT_THAT(problem_of(folder / "type"), HasSubstr("'model.norm.weight' is of type I32"));
}

TEST(HuggingFaceTest, RefusesPicklesAndWhatIsNoModel) {
  const TestFolder folder;
  fs::create_directories(folder / "pickled");
  write_file_atomically(folder / "pickled" / "config.json", kLlamaConfig);
  write_file_atomically(folder / "pickled" / "pytorch_model.bin", "PK");
  EXPECT_THAT(problem_of(folder / "pickled"), HasSubstr("save_pretrained()"));
  fs::remove(folder / "pickled" / "pytorch_model.bin");
  EXPECT_THAT(problem_of(folder / "pickled"), HasSubstr("neither model.safetensors nor"));
  EXPECT_THROW(open_model(folder.path()), Error);
  EXPECT_THROW(open_model(folder / "nowhere"), Error);
}

TEST(HuggingFaceTest, ReplacesOnlyWhenTold) {
  const TestFolder folder;
  write_directory(folder / "hf", kLlamaConfig, make_tensors(kLlamaShapes));
  const HuggingFaceModel model = open_huggingface(folder / "hf");
  fs::create_directories(folder / "there");
  write_file_atomically(folder / "there" / "config.json", "1");
  EXPECT_THROW(export_huggingface(folder / "there", model.spec, model.parameters, model.texts),
               Error);
  EXPECT_THROW(import_huggingface(folder / "hf", folder / "there"), Error);
  EXPECT_EQ(read_file(folder / "there" / "config.json"), "1");

  // What is more than a model is its owner's, whatever one says.
  fs::create_directories(folder / "home" / "letters");
  EXPECT_THROW(export_huggingface(folder / "home", model.spec, model.parameters, model.texts,
                                  {.replace = true}),
               Error);
  EXPECT_THROW(import_huggingface(folder / "hf", folder / "home", true), Error);
  EXPECT_TRUE(fs::exists(folder / "home" / "letters"));

  FaultyStorage full;
  full.full_after_bytes = 1000;
  EXPECT_THROW(export_huggingface(folder / "there", model.spec, model.parameters, model.texts,
                                  {.replace = true, .storage = &full}),
               Error);
  EXPECT_EQ(read_file(folder / "there" / "config.json"), "1");

  export_huggingface(folder / "there", model.spec, model.parameters, model.texts,
                     {.replace = true});
  EXPECT_NE(read_file(folder / "there" / "config.json"), "1");
  EXPECT_EQ(problem_of(folder / "there"), "");
}

TEST(ModelSourceTest, OpensARunsNewestCheckpoint) {
  const TestFolder folder;
  write_directory(folder / "hf", kLlamaConfig, make_tensors(kLlamaShapes));
  const HuggingFaceModel model = open_huggingface(folder / "hf");
  for (const int64_t step : {5, 12}) {
    std::vector<NamedTensor> tensors = {{"optimizer.exp_avg.model.norm.weight", at::ones({8})}};
    for (const TensorToWrite& parameter : model.parameters) {
      tensors.push_back({parameter.name, parameter.make() + static_cast<double>(step)});
    }
    write_checkpoint(folder.path() / "run" / "checkpoints" / step_folder_name(step), tensors,
                     {step, Json(), {{"config.json", kLlamaConfig}, {"tokenizer.json", "{}"}}});
  }
  const ModelSource source = open_model(folder / "run");
  EXPECT_EQ(source.step, 12);
  EXPECT_EQ(source.text("tokenizer.json"), "{}");
  EXPECT_EQ(source.text("generation_config.json"), "");
  EXPECT_EQ(source.parameters.size(), source.spec.parameters.size());
  EXPECT_TRUE(at::equal(made(source.parameters, "model.norm.weight"),
                        made(model.parameters, "model.norm.weight") + 12.0));
  EXPECT_EQ(open_model(folder.path() / "run" / "checkpoints" / "step-5").step, 5);
  EXPECT_TRUE(open_model(folder / "hf").huggingface);
}

TEST(ModelSourceTest, NamesAParameterThatTheCheckpointLacks) {
  const TestFolder folder;
  write_checkpoint(folder / "c", {{"model.norm.weight", at::ones({8})}},
                   {1, Json(), {{"config.json", kLlamaConfig}}});
  try {
    open_model(folder / "c");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("model.embed_tokens.weight"));
  }
}

}  // namespace
}  // namespace trireme::checkpoint
