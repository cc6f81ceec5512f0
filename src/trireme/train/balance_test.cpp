// Which balancing loss a run adds, and what is said about it.
#include <ATen/ops/ones.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "trireme/base/file.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/huggingface.h"
#include "trireme/model/moe_test_configs.h"
#include "trireme/train/preflight.h"

namespace trireme::train {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

class BalanceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    log::set_level(log::Level::kWarning);
    const std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = fs::path(::testing::TempDir()) / ("balance_" + name);
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::string text;
    for (int i = 0; i < 60; ++i) text += fmt::format("line {} of a text\n", i);
    write_file_atomically(folder_ / "text.txt", text);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static Json config(const std::string& family, const Json& changes) {
    Json config = model::tiny_moe(family);
    config.update({{"vocab_size", 320}, {"max_position_embeddings", 64}});
    config.update(changes);
    return config;
  }

  /// A run with that model; from its weights if `trained`.
  RunFile run(const std::string& family, const Json& changes, bool trained,
              const std::vector<std::string>& sets = {}) const {
    const std::string text = config(family, changes).dump();
    write_file_atomically(folder_ / "config.json", text);
    const model::ModelSpec spec = model::spec_from_config(text, "config.json");
    const fs::path weights = folder_ / fmt::format("weights-{}", runs_++);
    if (trained) {
      std::vector<checkpoint::NamedTensor> parameters;
      for (const model::ParameterSpec& parameter : spec.parameters)
        parameters.push_back({parameter.name, at::ones(parameter.shape)});
      checkpoint::export_huggingface(weights, spec, parameters, {});
    }
    const std::string model = trained
                                  ? fmt::format("init = \"{}\"", weights.string())
                                  : fmt::format("config = \"{}/config.json\"", folder_.string());
    return parse_run_file(
        fmt::format("out = \"{0}/run\"\n[tokenizer]\npath = \"bytes\"\n[model]\n{1}\n[data]\n"
                    "train = \"{0}/text.txt\"\ncache = \"{0}/cache\"\nseq_len = 16\n"
                    "[precision]\nrecipe = \"fp32\"\n",
                    folder_.string(), model),
        "run.toml", sets);
  }

  static std::string warnings(const RunFile& run) {
    ::testing::internal::CaptureStderr();
    open_run_model(run);
    return ::testing::internal::GetCapturedStderr();
  }

  fs::path folder_;
  mutable int runs_ = 0;
};

TEST_F(BalanceTest, TheEffectiveRunSaysTheCoefficientAndItsSource) {
  Preflight p = inspect_run(run("mixtral", {{"router_aux_loss_coef", 0.9}}, false));
  EXPECT_THAT(effective_toml(p.run), HasSubstr("# 0.9, from config.json (router_aux_loss_coef)"));
  EXPECT_THAT(describe(p), HasSubstr("balancing loss over each micro-batch, coefficient 0.9 from "
                                     "config.json (router_aux_loss_coef)\n"));
  EXPECT_EQ(to_json(p).at("balancing_loss"),
            OrderedJson({{"coefficient", 0.9},
                         {"from", "config.json (router_aux_loss_coef)"},
                         {"over", "each micro-batch"}}));
  // The run stays one of the same keys.
  EXPECT_EQ(p.run.config.moe.aux_loss, -1.0);

  p = inspect_run(run("deepseek_v2", {{"aux_loss_alpha", 0.25}, {"seq_aux", true}}, false));
  EXPECT_THAT(describe(p), HasSubstr("balancing loss over each sequence, coefficient 0.25 from "
                                     "config.json (aux_loss_alpha)\n"));
  p = inspect_run(run("mixtral", {{"router_aux_loss_coef", 0.9}}, false,
                      {"moe.aux_loss=0.125", "moe.balance=\"global\""}));
  EXPECT_THAT(describe(p), HasSubstr("balancing loss over the global batch, coefficient 0.125 from "
                                     "moe.aux_loss\n"));
  EXPECT_THAT(effective_toml(p.run), HasSubstr("# --set moe.aux_loss=0.125"));
  p = inspect_run(run("mixtral", {{"router_aux_loss_coef", 0.9}}, false, {"moe.balance=\"none\""}));
  EXPECT_THAT(describe(p), HasSubstr("no balancing loss: coefficient 0 from moe.balance\n"));
}

TEST_F(BalanceTest, AModelWithoutExpertsHasNone) {
  RunFile dense = run("mixtral", Json::object(), false);
  write_file_atomically(folder_ / "config.json", Json({{"model_type", "llama"},
                                                       {"vocab_size", 320},
                                                       {"hidden_size", 16},
                                                       {"intermediate_size", 16},
                                                       {"num_hidden_layers", 1},
                                                       {"num_attention_heads", 2},
                                                       {"max_position_embeddings", 64}})
                                                     .dump());
  const Preflight p = inspect_run(dense);
  EXPECT_TRUE(to_json(p).at("balancing_loss").is_null());
  EXPECT_THAT(describe(p), Not(HasSubstr("balancing loss")));
  EXPECT_THAT(effective_toml(p.run),
              HasSubstr("aux_loss = -1.0                          # default"));
}

TEST_F(BalanceTest, WarnsWhereTransformersWouldAddNone) {
  const Json coefficient = {{"router_aux_loss_coef", 0.9}};
  Json asked = coefficient;
  asked["output_router_logits"] = true;
  const std::string said = warnings(run("mixtral", coefficient, true));
  EXPECT_THAT(said, HasSubstr("with the coefficient 0.9 from config.json (router_aux_loss_coef)"));
  EXPECT_THAT(said, HasSubstr("moe.balance = \"none\" leaves it out"));
  EXPECT_EQ(warnings(run("mixtral", coefficient, false)), "") << "random weights";
  EXPECT_EQ(warnings(run("mixtral", asked, true)), "") << "transformers adds it, too";
  EXPECT_EQ(warnings(run("mixtral", {{"router_aux_loss_coef", 0.0}}, true)), "") << "none is added";
  EXPECT_EQ(warnings(run("mixtral", coefficient, true, {"moe.balance=\"none\""})), "");
  EXPECT_EQ(warnings(run("mixtral", coefficient, true, {"moe.aux_loss=0.9"})), "");
}

}  // namespace
}  // namespace trireme::train
