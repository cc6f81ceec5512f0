// What files and modules of transformers hold, against its own list of them.
#include "trireme/model/disk_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>

#include "trireme/base/json.h"
#include "trireme/model/moe_test_configs.h"

namespace trireme::model {
namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;

/// "name 2x3 other 4 ...".
Shapes parse(const std::string& text) {
  std::istringstream words(text);
  Shapes shapes;
  std::string name, shape, extent;
  while (words >> name >> shape) {
    std::istringstream extents(shape);
    while (std::getline(extents, extent, 'x')) shapes[name].push_back(std::stoll(extent));
  }
  return shapes;
}

/// Layer 1's tensors without its prefix, "{}" for experts' numbers.
Shapes layer_one(const ModelSpec& spec, DiskLayout layout) {
  const std::string prefix = "model.layers.1.";
  Shapes shapes;
  std::map<std::string, int64_t> counts;
  for (const DiskTensor& tensor : disk_tensors(spec, layout)) {
    if (!tensor.name.starts_with(prefix)) continue;
    std::string name = tensor.name.substr(prefix.size());
    const int64_t expert = tensor.pieces.front().expert;
    if (expert >= 0) {
      const std::string number = "experts." + std::to_string(expert) + ".";
      const size_t at = name.find(number);
      EXPECT_NE(at, std::string::npos) << name;
      name.replace(at, number.size(), "experts.{}.");
      EXPECT_EQ(counts[name]++, expert);
    }
    shapes[name] = tensor.shape;
  }
  for (const auto& [name, count] : counts)
    EXPECT_EQ(count, spec.layers[1].moe->num_experts) << name;
  return shapes;
}

struct Listed {
  std::string family;
  std::string files;    ///< what save_pretrained writes of layer 1
  std::string modules;  ///< named_parameters and named_buffers of its MLP
};

// Written down from transformers 5.23 with the configurations of moe_test_configs.h.
TEST(DiskLayout, IsWhatTransformersWritesAndHolds) {
  const std::vector<Listed> listed = {
      {"mixtral",
       "block_sparse_moe.experts.{}.w1.weight 24x16 block_sparse_moe.experts.{}.w2.weight 16x24 "
       "block_sparse_moe.experts.{}.w3.weight 24x16 block_sparse_moe.gate.weight 3x16 "
       "input_layernorm.weight 16 post_attention_layernorm.weight 16 self_attn.k_proj.weight 8x16 "
       "self_attn.o_proj.weight 16x16 self_attn.q_proj.weight 16x16 self_attn.v_proj.weight 8x16 ",
       "mlp.experts.down_proj 3x16x24 mlp.experts.gate_up_proj 3x48x16 mlp.gate.weight 3x16 "},
      {"qwen3_moe",
       "input_layernorm.weight 16 mlp.experts.{}.down_proj.weight 16x6 "
       "mlp.experts.{}.gate_proj.weight 6x16 "
       "mlp.experts.{}.up_proj.weight 6x16 mlp.gate.weight 4x16 post_attention_layernorm.weight 16 "
       "self_attn.k_norm.weight 8 self_attn.k_proj.bias 16 self_attn.k_proj.weight 16x16 "
       "self_attn.o_proj.bias 16 self_attn.o_proj.weight 16x32 self_attn.q_norm.weight 8 "
       "self_attn.q_proj.bias 32 self_attn.q_proj.weight 32x16 self_attn.v_proj.bias 16 "
       "self_attn.v_proj.weight 16x16 ",
       "mlp.experts.down_proj 4x16x6 mlp.experts.gate_up_proj 4x12x16 mlp.gate.weight 4x16 "},
      {"qwen2_moe",
       "input_layernorm.weight 16 mlp.experts.{}.down_proj.weight 16x6 "
       "mlp.experts.{}.gate_proj.weight 6x16 "
       "mlp.experts.{}.up_proj.weight 6x16 mlp.gate.weight 4x16 mlp.shared_expert.down_proj.weight "
       "16x10 "
       "mlp.shared_expert.gate_proj.weight 10x16 mlp.shared_expert.up_proj.weight 10x16 "
       "mlp.shared_expert_gate.weight 1x16 post_attention_layernorm.weight 16 "
       "self_attn.k_proj.bias 8 "
       "self_attn.k_proj.weight 8x16 self_attn.o_proj.weight 16x16 self_attn.q_proj.bias 16 "
       "self_attn.q_proj.weight 16x16 self_attn.v_proj.bias 8 self_attn.v_proj.weight 8x16 ",
       "mlp.experts.down_proj 4x16x6 mlp.experts.gate_up_proj 4x12x16 mlp.gate.weight 4x16 "
       "mlp.shared_expert.down_proj.weight 16x10 mlp.shared_expert.gate_proj.weight 10x16 "
       "mlp.shared_expert.up_proj.weight 10x16 mlp.shared_expert_gate.weight 1x16 "},
      {"olmoe",
       "input_layernorm.weight 16 mlp.experts.{}.down_proj.weight 16x24 "
       "mlp.experts.{}.gate_proj.weight 24x16 mlp.experts.{}.up_proj.weight 24x16 mlp.gate.weight "
       "4x16 "
       "post_attention_layernorm.weight 16 self_attn.k_norm.weight 8 self_attn.k_proj.weight 8x16 "
       "self_attn.o_proj.weight 16x16 self_attn.q_norm.weight 16 self_attn.q_proj.weight 16x16 "
       "self_attn.v_proj.weight 8x16 ",
       "mlp.experts.down_proj 4x16x24 mlp.experts.gate_up_proj 4x48x16 mlp.gate.weight 4x16 "},
      {"gpt_oss",
       "input_layernorm.weight 16 mlp.experts.down_proj 3x24x16 mlp.experts.down_proj_bias 3x16 "
       "mlp.experts.gate_up_proj 3x16x48 mlp.experts.gate_up_proj_bias 3x48 mlp.router.bias 3 "
       "mlp.router.weight 3x16 post_attention_layernorm.weight 16 self_attn.k_proj.bias 16 "
       "self_attn.k_proj.weight 16x16 self_attn.o_proj.bias 16 self_attn.o_proj.weight 16x32 "
       "self_attn.q_proj.bias 32 self_attn.q_proj.weight 32x16 self_attn.sinks 4 "
       "self_attn.v_proj.bias 16 "
       "self_attn.v_proj.weight 16x16 ",
       "mlp.experts.down_proj 3x24x16 mlp.experts.down_proj_bias 3x16 mlp.experts.gate_up_proj "
       "3x16x48 "
       "mlp.experts.gate_up_proj_bias 3x48 mlp.router.bias 3 mlp.router.weight 3x16 "},
      {"glm4_moe",
       "input_layernorm.weight 16 mlp.experts.{}.down_proj.weight 16x6 "
       "mlp.experts.{}.gate_proj.weight 6x16 "
       "mlp.experts.{}.up_proj.weight 6x16 mlp.gate.e_score_correction_bias 4 mlp.gate.weight 4x16 "
       "mlp.shared_experts.down_proj.weight 16x6 mlp.shared_experts.gate_proj.weight 6x16 "
       "mlp.shared_experts.up_proj.weight 6x16 post_attention_layernorm.weight 16 "
       "self_attn.k_norm.weight 8 "
       "self_attn.k_proj.bias 16 self_attn.k_proj.weight 16x16 self_attn.o_proj.weight 16x32 "
       "self_attn.q_norm.weight 8 self_attn.q_proj.bias 32 self_attn.q_proj.weight 32x16 "
       "self_attn.v_proj.bias 16 self_attn.v_proj.weight 16x16 ",
       "mlp.experts.down_proj 4x16x6 mlp.experts.gate_up_proj 4x12x16 "
       "mlp.gate.e_score_correction_bias 4 "
       "mlp.gate.weight 4x16 mlp.shared_experts.down_proj.weight 16x6 "
       "mlp.shared_experts.gate_proj.weight 6x16 mlp.shared_experts.up_proj.weight 6x16 "},
      {"deepseek_v2",
       "input_layernorm.weight 16 mlp.experts.{}.down_proj.weight 16x6 "
       "mlp.experts.{}.gate_proj.weight 6x16 "
       "mlp.experts.{}.up_proj.weight 6x16 mlp.gate.weight 4x16 "
       "mlp.shared_experts.down_proj.weight 16x12 "
       "mlp.shared_experts.gate_proj.weight 12x16 mlp.shared_experts.up_proj.weight 12x16 "
       "post_attention_layernorm.weight 16 self_attn.kv_a_layernorm.weight 8 "
       "self_attn.kv_a_proj_with_mqa.bias 10 self_attn.kv_a_proj_with_mqa.weight 10x16 "
       "self_attn.kv_b_proj.weight 28x8 self_attn.o_proj.bias 16 self_attn.o_proj.weight 16x12 "
       "self_attn.q_a_layernorm.weight 6 self_attn.q_a_proj.bias 6 self_attn.q_a_proj.weight 6x16 "
       "self_attn.q_b_proj.weight 24x6 ",
       "mlp.experts.down_proj 4x16x6 mlp.experts.gate_up_proj 4x12x16 mlp.gate.weight 4x16 "
       "mlp.shared_experts.down_proj.weight 16x12 mlp.shared_experts.gate_proj.weight 12x16 "
       "mlp.shared_experts.up_proj.weight 12x16 "},
      {"deepseek_v3",
       "input_layernorm.weight 16 mlp.experts.{}.down_proj.weight 16x6 "
       "mlp.experts.{}.gate_proj.weight 6x16 "
       "mlp.experts.{}.up_proj.weight 6x16 mlp.gate.e_score_correction_bias 4 mlp.gate.weight 4x16 "
       "mlp.shared_experts.down_proj.weight 16x6 mlp.shared_experts.gate_proj.weight 6x16 "
       "mlp.shared_experts.up_proj.weight 6x16 post_attention_layernorm.weight 16 "
       "self_attn.kv_a_layernorm.weight 8 self_attn.kv_a_proj_with_mqa.bias 10 "
       "self_attn.kv_a_proj_with_mqa.weight 10x16 self_attn.kv_b_proj.weight 28x8 "
       "self_attn.o_proj.bias 16 "
       "self_attn.o_proj.weight 16x12 self_attn.q_proj.weight 24x16 ",
       "mlp.experts.down_proj 4x16x6 mlp.experts.gate_up_proj 4x12x16 "
       "mlp.gate.e_score_correction_bias 4 "
       "mlp.gate.weight 4x16 mlp.shared_experts.down_proj.weight 16x6 "
       "mlp.shared_experts.gate_proj.weight 6x16 mlp.shared_experts.up_proj.weight 6x16 "},
  };
  for (const Listed& list : listed) {
    SCOPED_TRACE(list.family);
    const ModelSpec spec = spec_from_config(tiny_moe(list.family).dump(), "config.json");
    EXPECT_EQ(layer_one(spec, DiskLayout::kFiles), parse(list.files));
    const Shapes modules = layer_one(spec, DiskLayout::kModules);
    for (const auto& [name, shape] : parse(list.modules)) {
      ASSERT_TRUE(modules.contains(name)) << name;
      EXPECT_EQ(modules.at(name), shape) << name;
    }
    EXPECT_EQ(parse(list.modules).size(), std::ranges::count_if(modules, [](const auto& m) {
                return m.first.starts_with("mlp.");
              }));
  }
}

TEST(DiskLayout, HoldsEveryParameterOnce) {
  std::vector<ModelSpec> specs;
  for (const std::string& family : moe_families())
    specs.push_back(spec_from_config(tiny_moe(family).dump(), "config.json"));
  for (const char* preset : {"gpt2-124m", "llama-11m", "qwen3moe-32m-a11m", "deepseek-tiny"})
    specs.push_back(spec_from_preset(preset));
  for (const ModelSpec& spec : specs) {
    for (const DiskLayout layout : {DiskLayout::kFiles, DiskLayout::kModules}) {
      SCOPED_TRACE(spec.family);
      std::set<std::pair<int, int64_t>> pieces;
      std::set<std::string> names;
      int64_t elements = 0;
      for (const DiskTensor& tensor : disk_tensors(spec, layout)) {
        EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
        if (tensor.copy) continue;
        int64_t numel = 1;
        for (const int64_t extent : tensor.shape) numel *= extent;
        elements += numel;
        for (const DiskPiece& piece : tensor.pieces)
          EXPECT_TRUE(pieces.insert({piece.parameter, piece.expert}).second) << tensor.name;
      }
      EXPECT_EQ(elements, spec.num_parameters());
    }
  }
}

TEST(DiskLayout, MultiTokenPredictionHasCopiesAndMayBeAbsent) {
  const ModelSpec spec = spec_from_preset("deepseek-tiny");
  std::set<std::string> copies;
  for (const DiskTensor& tensor : disk_tensors(spec, DiskLayout::kFiles)) {
    EXPECT_EQ(tensor.mtp, tensor.name.starts_with("model.layers.4.")) << tensor.name;
    EXPECT_EQ(tensor.fp32, tensor.name.ends_with("e_score_correction_bias")) << tensor.name;
    if (tensor.copy) copies.insert(tensor.name);
  }
  EXPECT_EQ(copies, (std::set<std::string>{"model.layers.4.embed_tokens.weight",
                                           "model.layers.4.shared_head.head.weight"}));
}

}  // namespace
}  // namespace trireme::model
