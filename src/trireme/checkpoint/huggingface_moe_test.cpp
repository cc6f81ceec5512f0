// Experts in Hugging Face directories: one tensor an expert, stacked, interleaved; multi-token prediction; mixed types.
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
#include "trireme/checkpoint/test_directory.h"

namespace trireme::checkpoint {
namespace {

using model::DiskLayout;
using model::ModelSpec;
using ::testing::HasSubstr;

/// Imports `folder`/hf and exports it to `folder`/again.
void round_trip(const TestFolder& folder) {
  import_huggingface(folder / "hf", folder / "ours");
  const ModelSource source = open_model(folder / "ours");
  export_huggingface(folder / "again", source.spec, source.parameters, source.texts,
                     {.dtype = source.stored_dtype, .form = source.form});
}

TEST(HuggingFaceMoe, ImportThenExportGivesTheSameBytes) {
  for (const std::string& family : model::moe_families()) {
    const bool mtp = family == "deepseek_v3" || family == "glm4_moe";
    const Json config =
        mtp ? config_of(family, {{"num_nextn_predict_layers", 1}}) : config_of(family);
    const ModelSpec spec = model::spec_from_config(config.dump(), "config.json");
    for (const DiskLayout layout : {DiskLayout::kFiles, DiskLayout::kModules}) {
      for (int with = 0; with < (mtp ? 3 : 1); ++with) {
        SCOPED_TRACE(fmt::format("{} layout {} mtp {}", family, static_cast<int>(layout), with));
        const TestFolder folder;
        write_directory(folder / "hf", spec.config_json,
                        make_tensors(spec, layout, with > 0, with > 1));
        round_trip(folder);
        EXPECT_EQ(read_file(folder / "hf" / "model.safetensors"),
                  read_file(folder / "again" / "model.safetensors"));
        EXPECT_EQ(read_file(folder / "again" / "config.json"), spec.config_json);
      }
    }
  }
}

TEST(HuggingFaceMoe, StacksExpertsThatLieApart) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(config_of("mixtral").dump(), "config.json");
  const Tensors tensors = make_tensors(spec, DiskLayout::kFiles, true, true);
  write_directory(folder / "hf", spec.config_json, tensors);
  const HuggingFaceModel opened = open_huggingface(folder / "hf");
  const std::string moe = "model.layers.1.block_sparse_moe.";
  const std::string ours = "model.layers.1.mlp.";
  EXPECT_TRUE(at::equal(made(opened.parameters, ours + "gate.weight"),
                        tensors.at(moe + "gate.weight").to(at::kFloat)));
  for (const auto& [name, stored] :
       {std::pair{"gate_proj", "w1"}, {"up_proj", "w3"}, {"down_proj", "w2"}}) {
    const at::Tensor stack = made(opened.parameters, ours + "experts." + name);
    ASSERT_EQ(stack.size(0), 3);
    for (int64_t expert = 0; expert < 3; ++expert) {
      const std::string one = fmt::format("{}experts.{}.{}.weight", moe, expert, stored);
      EXPECT_TRUE(at::equal(stack[expert], tensors.at(one).to(at::kFloat))) << one;
    }
  }
}

TEST(HuggingFaceMoe, ReadsStacksAsModulesHoldThem) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(config_of("qwen2_moe").dump(), "config.json");
  const Tensors tensors = make_tensors(spec, DiskLayout::kModules, true, true);
  write_directory(folder / "hf", spec.config_json, tensors);
  const HuggingFaceModel opened = open_huggingface(folder / "hf");
  EXPECT_EQ(opened.form.layout, DiskLayout::kModules);
  const std::string experts = "model.layers.0.mlp.experts.";
  const at::Tensor gate_up = tensors.at(experts + "gate_up_proj").to(at::kFloat);  // [4, 12, 16]
  EXPECT_TRUE(at::equal(made(opened.parameters, experts + "gate_proj"), gate_up.slice(1, 0, 6)));
  EXPECT_TRUE(at::equal(made(opened.parameters, experts + "up_proj"), gate_up.slice(1, 6, 12)));
}

TEST(HuggingFaceMoe, TakesInterleavedGatesApart) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(config_of("gpt_oss").dump(), "config.json");
  const Tensors tensors = make_tensors(spec, DiskLayout::kFiles, true, true);
  write_directory(folder / "hf", spec.config_json, tensors);
  const HuggingFaceModel opened = open_huggingface(folder / "hf");
  const std::string experts = "model.layers.0.mlp.experts.";
  const auto stored = [&](const std::string& name) {
    return tensors.at(experts + name).to(at::kFloat);
  };
  const auto ours = [&](const std::string& name) {
    return made(opened.parameters, experts + name);
  };
  // gate, up = gate_up[..., ::2], gate_up[..., 1::2] of y = x W with W [in, out].
  const at::Tensor gate_up = stored("gate_up_proj");
  EXPECT_TRUE(at::equal(ours("gate_proj"), gate_up.slice(2, 0, 48, 2).transpose(1, 2)));
  EXPECT_TRUE(at::equal(ours("up_proj"), gate_up.slice(2, 1, 48, 2).transpose(1, 2)));
  EXPECT_TRUE(at::equal(ours("gate_proj_bias"), stored("gate_up_proj_bias").slice(1, 0, 48, 2)));
  EXPECT_TRUE(at::equal(ours("up_proj_bias"), stored("gate_up_proj_bias").slice(1, 1, 48, 2)));
  EXPECT_TRUE(at::equal(ours("down_proj"), stored("down_proj").transpose(1, 2)));
  EXPECT_TRUE(at::equal(ours("down_proj_bias"), stored("down_proj_bias")));
}

TEST(HuggingFaceMoe, InitialisesMultiTokenPredictionThatIsAbsent) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(
      config_of("deepseek_v3", {{"num_nextn_predict_layers", 1}}).dump(), "config.json");
  Tensors tensors = make_tensors(spec, DiskLayout::kFiles, false, false);
  write_directory(folder / "hf", spec.config_json, tensors);
  const HuggingFaceModel opened = open_huggingface(folder / "hf");
  EXPECT_FALSE(opened.form.mtp);
  const at::Tensor norm = made(opened.parameters, "model.layers.2.enorm.weight");
  EXPECT_TRUE(at::equal(norm, at::ones({16})));
  const at::Tensor projection = made(opened.parameters, "model.layers.2.eh_proj.weight");
  EXPECT_NEAR(projection.std().item<double>(), 0.02, 0.004);  // 512 samples: 3 sigma is 0.002
  EXPECT_TRUE(at::equal(projection, made(opened.parameters, "model.layers.2.eh_proj.weight")));

  // Some of them is a damaged file.
  tensors["model.layers.2.enorm.weight"] = at::ones({16});
  write_directory(folder / "some", spec.config_json, tensors);
  EXPECT_THAT(problem_of(folder / "some"), HasSubstr("model.layers.2.hnorm.weight"));
}

TEST(HuggingFaceMoe, KeepsEveryTensorsType) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(config_of("glm4_moe").dump(), "config.json");
  const std::string bias = "model.layers.1.mlp.gate.e_score_correction_bias";
  Tensors tensors = make_tensors(spec, DiskLayout::kFiles, false, false);
  ASSERT_EQ(tensors.at(bias).scalar_type(), at::kFloat);
  tensors[bias] = tensors[bias].to(at::kBFloat16);
  tensors["model.norm.weight"] = tensors["model.norm.weight"].to(at::kFloat);
  write_directory(folder / "hf", spec.config_json, tensors);
  round_trip(folder);
  EXPECT_EQ(read_file(folder / "hf" / "model.safetensors"),
            read_file(folder / "again" / "model.safetensors"));

  // Without an import to remember, the bias is fp32 and the rest as asked.
  const ModelSource source = open_model(folder / "ours");
  export_huggingface(folder / "half", source.spec, source.parameters, source.texts,
                     {.dtype = Dtype::kF16});
  for (const auto& [name, tensor] : read_tensors(folder / "half"))
    EXPECT_EQ(tensor.scalar_type(), name == bias ? at::kFloat : at::kHalf) << name;
}

TEST(HuggingFaceMoe, NamesWhatIsMissingAndWhatIsNotMapped) {
  const TestFolder folder;
  const ModelSpec spec = model::spec_from_config(config_of("olmoe").dump(), "config.json");
  Tensors tensors = make_tensors(spec, DiskLayout::kFiles, false, false);
  const std::string experts = "model.layers.1.mlp.experts.";
  tensors.erase(experts + "3.up_proj.weight");
  write_directory(folder / "missing", spec.config_json, tensors);
  EXPECT_THAT(problem_of(folder / "missing"), HasSubstr(experts + "3.up_proj.weight"));
  tensors = make_tensors(spec, DiskLayout::kFiles, false, false);
  tensors[experts + "4.up_proj.weight"] = at::ones({24, 16});
  write_directory(folder / "more", spec.config_json, tensors);
  EXPECT_THAT(problem_of(folder / "more"), HasSubstr(experts + "4.up_proj.weight"));
}

struct Calls {
  int made = 0;
  int made_of_pieces = 0;
  int released = 0;
};

/// Counts what an export asks of each parameter.
std::map<std::string, Calls> calls_of_export(ModelSource& source, const ExportOptions& options,
                                             const std::filesystem::path& to) {
  std::map<std::string, Calls> calls;
  for (TensorToWrite& parameter : source.parameters) {
    Calls& counted = calls[parameter.name];
    parameter.make = [&counted, make = parameter.make] {
      ++counted.made;
      return make();
    };
    for (auto& piece : parameter.pieces) {
      piece = [&counted, make = piece] {
        ++counted.made_of_pieces;
        return make();
      };
    }
    parameter.release = [&counted, release = parameter.release] {
      ++counted.released;
      release();
    };
  }
  export_huggingface(to, source.spec, source.parameters, source.texts, options);
  return calls;
}

TEST(HuggingFaceMoe, ExportMakesAndLetsGoOfExpertsOneByOne) {
  for (const std::string family : {"olmoe", "qwen2_moe", "gpt_oss"}) {
    const ModelSpec spec = model::spec_from_config(config_of(family).dump(), "config.json");
    for (const DiskLayout layout : {DiskLayout::kFiles, DiskLayout::kModules}) {
      const TestFolder folder;
      write_directory(folder / "hf", spec.config_json, make_tensors(spec, layout, true, true));
      import_huggingface(folder / "hf", folder / "ours");
      for (const bool fp8 : {false, true}) {
        if (fp8 && family == "gpt_oss") continue;
        for (const std::string from : {"ours", "hf"}) {
          ModelSource source = open_model(folder / from);
          const ExportOptions options = {
              .dtype = source.stored_dtype, .form = source.form, .fp8 = fp8};
          const int passes = fp8 ? 2 : 1;  // scales, then values
          for (const auto& [name, calls] : calls_of_export(
                   source, options, folder / fmt::format("out-{}-{}", from, fp8 ? 1 : 0))) {
            SCOPED_TRACE(fmt::format("{} layout {} fp8 {} from {}: {}", family,
                                     static_cast<int>(layout), fp8, from, name));
            const auto parameter =
                std::ranges::find(spec.parameters, name, &model::ParameterSpec::name);
            ASSERT_NE(parameter, spec.parameters.end());
            EXPECT_GE(calls.released, 1);
            if (parameter->shape.size() != 3) continue;
            const int experts = static_cast<int>(parameter->shape[0]);
            EXPECT_EQ(calls.released, passes * experts);
            const bool apart = from == "hf" && layout == DiskLayout::kFiles && family != "gpt_oss";
            EXPECT_EQ(calls.made, apart ? 0 : passes) << "each time its checksum is verified";
            EXPECT_EQ(calls.made_of_pieces, apart ? passes * experts : 0);
          }
        }
      }
    }
  }
}

/// Pages of files that this process has mapped and read.
int64_t mapped_bytes() {
  int64_t size = 0, resident = 0, shared = 0;
  std::ifstream("/proc/self/statm") >> size >> resident >> shared;
  return shared * 4096;
}

TEST(HuggingFaceMoe, ExportKeepsNoExpertInMemory) {
  const TestFolder folder;
  const Json config = config_of(
      "mixtral", {{"hidden_size", 1024}, {"intermediate_size", 2048}, {"num_hidden_layers", 1}});
  const ModelSpec spec = model::spec_from_config(config.dump(), "config.json");
  write_directory(folder / "hf", spec.config_json,
                  make_tensors(spec, DiskLayout::kFiles, false, false));
  import_huggingface(folder / "hf", folder / "ours");
  ModelSource source = open_model(folder / "ours");
  constexpr int64_t kExpertBytes = int64_t{1024} * 2048 * 4;  // of 9: three of each product
  const int64_t before = mapped_bytes();
  int64_t most = 0;
  for (TensorToWrite& parameter : source.parameters) {
    parameter.release = [&most, before, release = parameter.release] {
      most = std::max(most, mapped_bytes() - before);
      release();
    };
  }
  export_huggingface(folder / "out", source.spec, source.parameters, source.texts,
                     {.dtype = Dtype::kBf16, .form = source.form});
  EXPECT_GE(most, kExpertBytes) << "the measure sees what is held";
  EXPECT_LE(most, 3 * kExpertBytes);
}

TEST(HuggingFaceMoe, ExportsAVariantAsItsFamily) {
  const TestFolder folder;
  const Json config = config_of("deepseek_v3", {{"model_type", "kimi_k2"},
                                                {"architectures", {"DeepseekV3ForCausalLM"}},
                                                {"auto_map", {{"AutoConfig", "a.B"}}}});
  const ModelSpec spec = model::spec_from_config(config.dump(), "config.json");
  write_directory(folder / "hf", config.dump(2),
                  make_tensors(spec, DiskLayout::kFiles, false, false));
  round_trip(folder);
  const Json exported = parse_json(read_file(folder / "again" / "config.json"), "config.json");
  EXPECT_EQ(exported.at("model_type"), "deepseek_v3");
  EXPECT_FALSE(exported.contains("auto_map"));
  EXPECT_EQ(read_file(folder / "hf" / "model.safetensors"),
            read_file(folder / "again" / "model.safetensors"));
}

}  // namespace
}  // namespace trireme::checkpoint
