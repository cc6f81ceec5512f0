#include "trireme/train/trainer.h"

#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "trireme/base/file.h"
#include "trireme/base/interrupt.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/train/rank_state.h"
#include "trireme/train/run_folder.h"
#include "trireme/train/testing/trainer_fixture.h"
#include "trireme/train/train_state.h"

namespace trireme::train {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST_P(TrainerTest, LearnsAndLeavesEverythingBehind) {
  const TrainResult result =
      train(run("a", {"schedule.steps=40", "checkpoint.every=0"}), options());
  EXPECT_EQ(result.step, 40);
  EXPECT_EQ(result.tokens, 40 * 4 * 16);
  const std::vector<StepMetrics> metrics = read_metrics(folder_ / "a/metrics.jsonl");
  ASSERT_EQ(metrics.size(), 40u);
  EXPECT_NEAR(metrics.front().loss, std::log(320), 0.3) << "an untrained model knows nothing";
  EXPECT_LT(metrics.back().loss, metrics.front().loss - 1.0);
  // Bits per byte of a byte model: nats per token over ln 2, but for the tokens that are no bytes.
  EXPECT_NEAR(*result.valid_bits_per_byte, *result.valid_loss / std::log(2.0), 0.02);
  for (const char* name : {"run.toml", "metrics.jsonl", "report.html", "trace.json",
                           "checkpoints/step-40/manifest.json", "export/config.json",
                           "export/model.safetensors", "export/tokenizer.json", "tensorboard"}) {
    EXPECT_TRUE(fs::exists(folder_ / "a" / name)) << name;
  }
  EXPECT_THAT(read_file(folder_ / "a/report.html"), HasSubstr("measured · compute"));
}

TEST_P(TrainerTest, ARunThatWasStoppedAfterEveryStepEndsBitEqual) {
  const std::vector<std::string> sets = {"batch.ramp_start=2", "batch.ramp_steps=3"};
  train(run("whole", sets), options());
  int interrupts = 0;
  for (;;) {
    set_interrupted(true);  // as a signal before the step would
    try {
      train(run("pieces", sets), options());
      break;
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::kInterrupted) << error.what();
      ASSERT_LT(++interrupts, 10);
    }
  }
  EXPECT_EQ(interrupts, 5);
  EXPECT_EQ(digest("whole"), digest("pieces"));
  EXPECT_EQ(figures("whole"), figures("pieces"));
}

TEST_P(TrainerTest, LostStepsAreDoneAgainTheSame) {
  train(run("whole"), options());
  train(run("killed"), options());
  // As a kill after step 5 leaves it: the last checkpoint is step 4, the fifth line is there, the sixth is torn.
  fs::remove_all(folder_ / "killed/checkpoints/step-6");
  fs::remove_all(folder_ / "killed/export");
  const std::string text = read_file(folder_ / "killed/metrics.jsonl");
  std::ofstream(folder_ / "killed/metrics.jsonl", std::ios::trunc | std::ios::binary)
      << text.substr(0, text.size() - 20);
  train(run("killed"), options());
  EXPECT_EQ(digest("whole"), digest("killed"));
  EXPECT_EQ(figures("whole"), figures("killed"));
}

TEST_P(TrainerTest, ADoneRunIsLeftAlone) {
  train(run("a"), options());
  const std::string report = read_file(folder_ / "a/report.html");
  const TrainResult again = train(run("a"), options());
  EXPECT_TRUE(again.was_done);
  EXPECT_EQ(again.step, 6);
  EXPECT_TRUE(again.valid_loss.has_value());
  EXPECT_EQ(read_file(folder_ / "a/report.html"), report);
}

TEST_P(TrainerTest, AnUnfinishedEndIsFinished) {
  train(run("a"), options());
  fs::remove_all(folder_ / "a/export");
  const TrainResult again = train(run("a"), options());
  EXPECT_FALSE(again.was_done);
  EXPECT_TRUE(fs::exists(folder_ / "a/export/model.safetensors"));
  EXPECT_EQ(read_metrics(folder_ / "a/metrics.jsonl").size(), 6u);
}

TEST_P(TrainerTest, BothOptimizersAndPrecisionsTrain) {
  for (const char* precision : {"fp32", "bf16"}) {
    for (const char* optimizer : {"adamw", "muon"}) {
      const std::string out = std::string(precision) + optimizer;
      train(run(out, {std::string("precision.recipe=") + precision,
                      std::string("optim.name=") + optimizer, "schedule.steps=20",
                      "schedule.name=constant", "eval.every=0"}),
            options());
      const std::vector<StepMetrics> metrics = read_metrics(folder_ / out / "metrics.jsonl");
      EXPECT_LT(metrics.back().loss, metrics.front().loss - 0.5) << out;
    }
  }
}

TEST_P(TrainerTest, InspectionListsEveryProblemAtOnce) {
  RunFile bad = run("a", {"batch.micro=3"});
  bad.config.data.train = {{(folder_ / "absent.txt").string(), 0.0}};
  const Preflight preflight = inspect_run(bad);
  ASSERT_GE(preflight.problems.size(), 2u);
  EXPECT_EQ(preflight.problems.front().code(), ErrorCode::kConfig);
  EXPECT_THAT(preflight.problems.back().what(), HasSubstr("absent.txt"));
  const OrderedJson json = to_json(preflight);
  for (const char* key :
       {"parameters", "active_parameters", "flops_per_token", "peak_bytes", "steps", "problems"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
}

TEST_P(TrainerTest, TwoRunsDoNotShareAFolder) {
  RunFolder first(folder_ / "a");
  try {
    RunFolder second(folder_ / "a");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_THAT(error.what(), HasSubstr(std::to_string(getpid())));
  }
}

/// A small DeepSeek-V3 with two modules for multi-token prediction.
class MtpTrainerTest : public TrainerTest {
 protected:
  void SetUp() override {
    TrainerTest::SetUp();
    std::ofstream(folder_ / "config.json")
        << R"({"model_type": "deepseek_v3", "vocab_size": 320, "hidden_size": 16, "intermediate_size": 24,
      "num_hidden_layers": 2, "num_attention_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
      "qk_rope_head_dim": 4, "v_head_dim": 4, "first_k_dense_replace": 1, "n_routed_experts": 4,
      "num_experts_per_tok": 2, "moe_intermediate_size": 12, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
      "num_nextn_predict_layers": 2, "max_position_embeddings": 64, "tie_word_embeddings": true})";
  }

  std::vector<float> exported(const std::string& out, const std::string& name) const {
    const checkpoint::TensorFile file(folder_ / out / "export/model.safetensors");
    for (const auto& info : file.header().tensors) {
      if (info.name != name) continue;
      const at::Tensor tensor = file.tensor(info).to(at::kFloat).contiguous();
      return {tensor.const_data_ptr<float>(), tensor.const_data_ptr<float>() + tensor.numel()};
    }
    return {};
  }
};

TEST_P(MtpTrainerTest, ModulesLearnAndAreExportedAndImported) {
  train(run("a", {"schedule.steps=40", "checkpoint.every=0", "eval.every=0"}), options());
  const std::vector<StepMetrics> metrics = read_metrics(folder_ / "a/metrics.jsonl");
  ASSERT_EQ(metrics.size(), 40u);
  EXPECT_NEAR(metrics.front().mtp_loss.value(), std::log(320), 0.3);
  EXPECT_LT(metrics.back().mtp_loss.value(), metrics.front().mtp_loss.value() - 1.0);
  // The second layer's experts and those of both modules.
  ASSERT_EQ(metrics.back().load.size(), 3u);
  EXPECT_THAT(read_file(folder_ / "a/report.html"), HasSubstr("chart-mtp"));
  for (const std::string layer : {"model.layers.2.", "model.layers.3."}) {
    const std::vector<float> bias = exported("a", layer + "mlp.gate.e_score_correction_bias");
    ASSERT_EQ(bias.size(), 4u);
    EXPECT_TRUE(std::ranges::any_of(bias, [](float b) { return b != 0; })) << layer;
    EXPECT_EQ(exported("a", layer + "embed_tokens.weight"),
              exported("a", "model.embed_tokens.weight"));
    EXPECT_EQ(exported("a", layer + "shared_head.head.weight"),
              exported("a", "model.embed_tokens.weight"));
    EXPECT_EQ(exported("a", layer + "eh_proj.weight").size(), 16u * 32u);
  }
  // Another run that begins with the export begins where this one ended.
  const std::string init = "model.init=\"" + (folder_ / "a/export").string() + "\"";
  train(run("b", {init, "schedule.steps=2", "optim.lr=1e-9", "eval.every=0"}), options());
  const StepMetrics begin = read_metrics(folder_ / "b/metrics.jsonl").front();
  EXPECT_NEAR(begin.mtp_loss.value(), metrics.back().mtp_loss.value(), 1.0);
  EXPECT_LT(begin.mtp_loss.value(), metrics.front().mtp_loss.value() - 1.0);
}

TEST_P(MtpTrainerTest, AnInterruptedRunEndsBitEqualHoweverItIsComputed) {
  train(run("whole"), options());
  const std::vector<std::string> other = {"memory.delay_weight_gradients=true",
                                          "memory.recompute=\"full\""};
  for (int i = 0; i < 6; ++i) {
    set_interrupted(true);
    if (i < 5) {
      EXPECT_THROW(train(run("pieces", other), options()), Error);
    } else {
      train(run("pieces", other), options());
    }
  }
  set_interrupted(false);
  EXPECT_EQ(digest("whole"), digest("pieces"));
  EXPECT_EQ(figures("whole"), figures("pieces"));
}

TEST_P(MtpTrainerTest, NoWeightLeavesTheModulesOut) {
  train(run("a", {"loss.mtp_weight=0"}), options());
  const StepMetrics last = read_metrics(folder_ / "a/metrics.jsonl").back();
  EXPECT_FALSE(last.mtp_loss.has_value());
  EXPECT_EQ(last.load.size(), 1u);
  EXPECT_THAT(read_file(folder_ / "a/export/config.json"),
              HasSubstr("\"num_nextn_predict_layers\": 0"));
  EXPECT_TRUE(exported("a", "model.layers.2.eh_proj.weight").empty());
  // What it left behind is trained on with the config that the modules are missing from.
  const std::string init = "model.init=\"" + (folder_ / "a/export").string() + "\"";
  train(run("b", {init, "model.config=\"\""}), options());
  // The model with modules gives those up to a config without.
  train(run("c", {"schedule.steps=2"}), options());
  std::ofstream(folder_ / "plain.json") << read_file(folder_ / "a/export/config.json");
  const std::string with = "model.init=\"" + (folder_ / "c/export").string() + "\"";
  train(run("d", {with, "model.config=\"" + (folder_ / "plain.json").string() + "\""}), options());
  EXPECT_FALSE(read_metrics(folder_ / "d/metrics.jsonl").back().mtp_loss.has_value());
}

TEST_P(MtpTrainerTest, AModelGivesItsModulesUpForNoWeight) {
  train(run("a", {"schedule.steps=2"}), options());
  const std::string init = "model.init=\"" + (folder_ / "a/export").string() + "\"";
  const std::vector<std::string> sets = {init, "model.config=\"\"", "loss.mtp_weight=0"};
  train(run("b", sets), options());
  EXPECT_FALSE(read_metrics(folder_ / "b/metrics.jsonl").back().mtp_loss.has_value());
  EXPECT_TRUE(exported("b", "model.layers.2.eh_proj.weight").empty());
  // The model itself is the one that it began with.
  std::vector<std::string> still = sets;
  still.insert(still.end(), {"schedule.steps=1", "schedule.warmup=0", "optim.lr=1e-20"});
  train(run("c", still), options());
  for (const char* name : {"model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"})
    EXPECT_EQ(exported("c", name), exported("a", name)) << name;
}

/// As transformers saves such a model: its config still asks for the modules.
class LostMtpTrainerTest : public MtpTrainerTest {
 protected:
  void SetUp() override {
    MtpTrainerTest::SetUp();
    train(run("a", {"schedule.steps=2"}), options());
    const checkpoint::ModelSource source = checkpoint::open_model(folder_ / "a/export");
    checkpoint::ExportOptions form;
    form.form.mtp = form.form.mtp_copies = false;
    checkpoint::export_huggingface(folder_ / "lost", source.spec, source.parameters, source.texts,
                                   form);
    ASSERT_THAT(read_file(folder_ / "lost/config.json"),
                HasSubstr("\"num_nextn_predict_layers\": 2"));
  }

  RunFile lost_run(const std::string& out, std::vector<std::string> sets = {}) const {
    sets.insert(sets.end(),
                {"model.init=\"" + (folder_ / "lost").string() + "\"", "model.config=\"\""});
    return run(out, sets);
  }
};

TEST_P(LostMtpTrainerTest, ModulesThatAreNotStoredAreLeftOut) {
  ::testing::internal::CaptureStderr();
  set_interrupted(true);
  EXPECT_THROW(train(lost_run("b"), options()), Error);
  set_interrupted(false);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("has no tensors of its 2 multi-token-prediction layers: they are "
                              "left out of the run"));
  EXPECT_THAT(said, HasSubstr("write loss.mtp_weight = 0.3 to train new ones"));
  const TrainResult result = train(lost_run("b"), options());
  EXPECT_EQ(result.step, 6) << "the same command goes on";
  EXPECT_FALSE(result.was_done);
  EXPECT_FALSE(read_metrics(folder_ / "b/metrics.jsonl").back().mtp_loss.has_value());
  EXPECT_TRUE(exported("b", "model.layers.2.eh_proj.weight").empty());
  EXPECT_THAT(read_file(folder_ / "b/export/config.json"),
              HasSubstr("\"num_nextn_predict_layers\": 0"));

  // The effective run file says so, and is of the same run.
  const RunFile effective = load_run_file(folder_ / "b/run.toml");
  EXPECT_EQ(effective.config.loss.mtp_weight, 0.0);
  EXPECT_THAT(read_file(folder_ / "b/run.toml"), HasSubstr("model.init has no tensors of these"));
  EXPECT_TRUE(train(effective, options()).was_done);
  // Neither is one that asks for modules.
  EXPECT_THROW(train(lost_run("b", {"loss.mtp_weight=0.3"}), options()), Error);
  // A config beside it that asks for them changes nothing.
  const Preflight beside =
      inspect_run(run("c", {"model.init=\"" + (folder_ / "lost").string() + "\""}));
  EXPECT_TRUE(beside.problems.empty());
  EXPECT_EQ(beside.model.spec.num_mtp_layers, 0);
  EXPECT_TRUE(to_json(beside).at("multi_token_prediction").is_null());
}

TEST_P(LostMtpTrainerTest, ModulesThatAreNotStoredBeginAnewWhereTheirWeightIsWritten) {
  ::testing::internal::CaptureStderr();
  train(lost_run("b", {"loss.mtp_weight=0.3"}), options());
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("has no tensors of its 2 multi-token-prediction layers: they begin from "
                        "random weights"));
  EXPECT_NEAR(read_metrics(folder_ / "b/metrics.jsonl").front().mtp_loss.value(), std::log(320),
              0.3);
  EXPECT_EQ(exported("b", "model.layers.2.eh_proj.weight").size(), 16u * 32u);
  const Preflight preflight = inspect_run(lost_run("c", {"loss.mtp_weight=0.3"}));
  const OrderedJson json = to_json(preflight);
  EXPECT_EQ(json.at("multi_token_prediction").at("modules"), 2);
  EXPECT_EQ(json.at("multi_token_prediction").at("stored"), false);
  EXPECT_EQ(json.at("multi_token_prediction").at("parameters").get<int64_t>() +
                json.at("parameters").get<int64_t>(),
            preflight.model.spec.num_parameters());
  EXPECT_EQ(json.at("parameters"), inspect_run(lost_run("d")).parameters);
  EXPECT_THAT(describe(preflight), HasSubstr("in 2 layers"));
  EXPECT_THAT(describe(preflight), HasSubstr("multi-token prediction: 2 modules, "));
}

// Documents of `length` letters and their end: the head predicts `length` of those tokens, module k the k-th and later.
TEST_P(MtpTrainerTest, TheLossIsTheMeanOverModulesThatHaveTargets) {
  const auto first = [&](int length) {
    const std::string name = "documents-" + std::to_string(length);
    std::ofstream lines(folder_ / (name + ".jsonl"));
    for (int i = 0; i < 100; ++i)
      lines << "{\"text\": \"" << std::string(static_cast<size_t>(length), 'a') << "\"}\n";
    lines.close();
    train(run(name, {"data.train=\"" + (folder_ / (name + ".jsonl")).string() + "\"",
                     "schedule.steps=1", "eval.every=0"}),
          options());
    return read_metrics(folder_ / name / "metrics.jsonl").front();
  };
  // An untrained module knows nothing; the mean with a module that predicts nothing would be half of it.
  EXPECT_NEAR(first(3).mtp_loss.value(), std::log(320), 0.3) << "both modules";
  EXPECT_NEAR(first(2).mtp_loss.value(), std::log(320), 0.3) << "the first module";
  EXPECT_FALSE(first(1).mtp_loss.has_value()) << "neither";
  EXPECT_THAT(read_file(folder_ / "documents-1/metrics.jsonl"), Not(HasSubstr("mtp_loss")));
  EXPECT_NEAR(first(1).loss, std::log(320), 0.3);
}

// Muon once left experts to AdamW.
TEST_P(MtpTrainerTest, AnOlderMuonRunWithExpertsSaysWhyItCannotGoOn) {
  const RunFile muon = run("a", {"optim.name=muon"});
  const model::ModelSpec spec = spec_of(muon);
  nn::ParameterStore store(spec);
  store.initialize(1);
  const auto optimizer = optim::make_optimizer(optimizer_of(muon.config), spec);
  const auto alone = comm::single_rank();
  std::vector<checkpoint::NamedTensor> tensors = state_tensors(
      spec, optimizer_of(muon.config),
      StateGather(spec, store, optimizer_of(muon.config), *optimizer, *alone).masters_and_states());
  const std::string momentum = "optimizer.momentum_buffer.";
  std::string moved;
  for (checkpoint::NamedTensor& tensor : tensors) {
    if (!tensor.name.starts_with(momentum) || tensor.tensor.dim() != 3) continue;
    tensor.name = "optimizer.exp_avg." + tensor.name.substr(momentum.size());
    moved = tensor.name;
  }
  ASSERT_NE(moved, "");
  checkpoint::write_checkpoint(folder_ / "old", tensors, {});
  try {
    restore(checkpoint::Checkpoint(folder_ / "old"), store, *optimizer, *alone);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("is of a run that updated experts with AdamW"));
    EXPECT_THAT(error.hint(), HasSubstr("model.init = "));
  }
}

/// Conversations, most tokens of which are not to be predicted and unevenly so.
class ChatTrainerTest : public TrainerTest {
 protected:
  void SetUp() override {
    TrainerTest::SetUp();
    std::ofstream lines(folder_ / "chat.jsonl");
    for (int i = 0; i < 40; ++i) {
      lines << fmt::format(
          R"({{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "{}"}}]}})"
          "\n",
          std::string(static_cast<size_t>(5 + i * 7 % 40), 'q'), i * i);
    }
    std::ofstream(folder_ / "chat.jinja")
        << "{% for m in messages %}{{ m.role[0] ~ m.content }}<|endoftext|>{% endfor %}";
  }

  RunFile chat_run(const std::string& out, std::vector<std::string> sets = {}) const {
    const std::string folder = folder_.string();
    sets.insert(sets.begin(),
                {"data.train=\"" + folder + "/chat.jsonl\"",
                 "data.valid=\"" + folder + "/chat.jsonl\"", "data.loss_mask=\"answers\"",
                 "data.chat_template=\"" + folder + "/chat.jinja\"", "batch.sequences=8"});
    return run(out, sets);
  }
};

// Means of the lanes' or the micro-batches' means would differ by far more: the answers are spread unevenly.
TEST_P(ChatTrainerTest, TheLossIsTheMeanOverAnswersHoweverTheBatchIsCut) {
  train(chat_run("a"), options());
  const std::vector<StepMetrics> wanted = read_metrics(folder_ / "a/metrics.jsonl");
  for (const char* cut : {"batch.micro=2", "batch.micro=4", "batch.lanes=1", "batch.lanes=8"}) {
    train(chat_run(cut, {cut}), options());
    const std::vector<StepMetrics> metrics = read_metrics(folder_ / cut / "metrics.jsonl");
    ASSERT_EQ(metrics.size(), wanted.size());
    for (size_t i = 0; i < metrics.size(); ++i) {
      EXPECT_NEAR(metrics[i].loss, wanted[i].loss, 1e-6 * wanted[i].loss) << cut;
      EXPECT_NEAR(metrics[i].grad_norm, wanted[i].grad_norm, 1e-5 * wanted[i].grad_norm) << cut;
    }
  }
  train(chat_run("later", {"memory.delay_weight_gradients=true", "memory.recompute=\"full\""}),
        options());
  EXPECT_EQ(digest("later"), digest("a"));
}

TEST_P(ChatTrainerTest, AnInterruptedRunEndsBitEqualFromTextAndFromPreparedData) {
  train(chat_run("whole"), options());
  for (int i = 0; i < 6; ++i) {
    set_interrupted(true);
    if (i < 5) {
      EXPECT_THROW(train(chat_run("pieces"), options()), Error);
    } else {
      train(chat_run("pieces"), options());
    }
  }
  set_interrupted(false);
  EXPECT_EQ(digest("whole"), digest("pieces"));
  EXPECT_EQ(figures("whole"), figures("pieces"));
  EXPECT_EQ(read_file(folder_ / "whole/export/chat_template.jinja"),
            read_file(folder_ / "chat.jinja"));

  std::string prefix;
  for (const auto& entry : fs::directory_iterator(folder_ / "cache"))
    if (entry.path().extension() == ".mask") prefix = entry.path().string();
  prefix.resize(prefix.size() - std::string(".mask").size());
  const std::vector<std::string> pair = {"data.train=\"" + prefix + "\"",
                                         "data.valid=\"" + prefix + "\""};
  train(chat_run("pair", pair), options());
  EXPECT_EQ(digest("whole"), digest("pair"));
  std::vector<std::string> all = pair;
  all.push_back("data.loss_mask=\"none\"");
  train(chat_run("all", all), options());
  EXPECT_NE(digest("whole"), digest("all")) << "a mask is used only where it is asked for";
}

TEST_P(ChatTrainerTest, WhatIsMissingIsNamedBeforeStepZero) {
  const auto problem = [&](const std::vector<std::string>& sets) {
    const Preflight preflight = inspect_run(chat_run("a", sets));
    return preflight.problems.empty() ? std::string()
                                      : std::string(preflight.problems.front().what());
  };
  EXPECT_EQ(problem({}), "");
  EXPECT_THAT(problem({"data.chat_template=\"\""}),
              HasSubstr("the tokenizer has no chat template"));
  EXPECT_THAT(problem({"data.chat_template=\"absent.jinja\""}), HasSubstr("absent.jinja"));
  EXPECT_THAT(problem({"data.train=\"" + folder_.string() + "/text.txt\""}),
              HasSubstr("conversations are read from JSONL"));
  std::ofstream(folder_ / "plain.jsonl") << "{\"text\": \"x\"}\n";
  EXPECT_THAT(problem({"data.train=\"" + folder_.string() + "/plain.jsonl\""}),
              HasSubstr("plain.jsonl:1: no key \"messages\""));
}

INSTANTIATE_TEST_SUITE_P(Devices, TrainerTest, ::testing::Values("cpu", "sim"), device_of);
INSTANTIATE_TEST_SUITE_P(Devices, MtpTrainerTest, ::testing::Values("cpu", "sim"), device_of);
INSTANTIATE_TEST_SUITE_P(Devices, LostMtpTrainerTest, ::testing::Values("cpu", "sim"), device_of);
INSTANTIATE_TEST_SUITE_P(Devices, ChatTrainerTest, ::testing::Values("cpu", "sim"), device_of);

TEST(TrainState, SurvivesItsJson) {
  TrainState state;
  state.step = 5;
  state.tokens = 1234567890123;
  state.updates = 4;
  state.micro_batches = 40;
  state.skips = 1;
  state.precision = "bf16";
  state.data = "abc";
  const TrainState back = train_state_from_json(to_json(state), "x");
  EXPECT_EQ(to_json(back), to_json(state));
  EXPECT_THROW(train_state_from_json(Json{{"step", 3}}, "x"), Error);
}

TEST(DoneLine, NamesTheCompressors) {
  TrainResult result;
  result.loss = 2.5;
  EXPECT_EQ(done_line(result), "done: loss 2.5000");
  result.valid_loss = 2.0;
  result.valid_bits_per_byte = 1.2345;
  EXPECT_EQ(done_line(result), "done: valid bits per byte 1.234");
  result.baselines = {{"gzip -9", 2.0}, {"xz -9", 1.75}};
  EXPECT_EQ(done_line(result),
            "done: valid bits per byte 1.234 (gzip -9 2.000, xz -9 1.750 on the same files)");
}

}  // namespace
}  // namespace trireme::train
