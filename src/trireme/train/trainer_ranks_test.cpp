// Runs over ranks: what they leave is what one rank leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/file.h"
#include "trireme/comm/local/local_world.h"
#include "trireme/plan/schedule_text.h"
#include "trireme/train/run_setup.h"
#include "trireme/train/testing/trainer_fixture.h"

namespace trireme::train {
namespace {

using ::testing::HasSubstr;

class TrainerRanksTest : public TrainerTest {
 protected:
  /// A model that can be cut: more layers, and a head of its own.
  void use_deep_model(const char* experts = "") {
    std::string config = kConfig;
    const auto replace = [&](const std::string& what, const std::string& by) {
      config.replace(config.find(what), what.size(), by);
    };
    replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 4");
    replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    replace("\"llama\"", fmt::format("\"{}\"", *experts == 0 ? "llama" : "mixtral"));
    replace("\"rms_norm_eps\"", std::string(experts) + "\"rms_norm_eps\"");
    std::ofstream(folder_ / "config.json") << config;
  }
  static std::vector<std::string> with(std::vector<std::string> sets,
                                       const std::vector<std::string>& parallel) {
    for (const std::string& set : parallel) sets.push_back("parallel." + set);
    return sets;
  }
  /// The run over ranks that are threads.
  static void train_on_ranks(const RunFile& run) {
    comm::run_ranks(static_cast<int>(parallel_of(run.config).world()), [&](comm::World& world) {
      TrainOptions options;
      options.quiet = true;
      options.world = &world;
      train(run, options);
    });
  }
  /// Of a run "pieces", each of `runs` until it is interrupted and the last to its end, is left what "whole" left.
  void expect_whole_of_pieces(const std::vector<RunFile>& runs) {
    size_t pieces = 0;
    for (const RunFile& run : runs) {
      set_interrupted(true);
      try {
        train_on_ranks(run);
      } catch (const Error& error) {
        ASSERT_EQ(error.code(), ErrorCode::kInterrupted) << error.what();
        ++pieces;
      }
    }
    EXPECT_EQ(pieces + 1, runs.size());
    EXPECT_EQ(digest("pieces"), digest("whole"));
    EXPECT_EQ(figures("pieces"), figures("whole"));
  }
};

TEST_P(TrainerRanksTest, RanksLeaveWhatOneRankLeaves) {
  for (const char* recipe : {"fp32", "bf16"}) {
    const std::string precision = fmt::format("precision.recipe={}", recipe);
    const std::vector<std::string> sets = {precision, "batch.ramp_start=4", "batch.ramp_steps=3",
                                           "batch.sequences=8", "batch.lanes=4"};
    const std::string one = fmt::format("one-{}", recipe);
    train(run(one, sets), options());
    const bool fp32 = recipe == std::string("fp32");
    for (const auto& [dp, zero] :
         fp32 ? std::vector<std::pair<int, int>>{{2, 0}, {3, 1}, {2, 2}, {3, 3}}
              : std::vector<std::pair<int, int>>{{3, 0}, {2, 1}, {3, 2}, {2, 3}}) {
      const std::string out = fmt::format("{}-{}-{}", recipe, dp, zero);
      std::vector<std::string> over = sets;
      over.push_back(fmt::format("parallel.dp={}", dp));
      over.push_back(fmt::format("parallel.zero={}", zero));
      train_on_ranks(run(out, over));
      EXPECT_EQ(digest(out), digest(one)) << out;
      EXPECT_EQ(figures(out), figures(one)) << out;
      EXPECT_EQ(read_file(folder_ / out / "export/model.safetensors"),
                read_file(folder_ / one / "export/model.safetensors"));
    }
  }
}

// What a rank writes is at most its part of all bytes and the largest part of the model.
TEST_P(TrainerRanksTest, EveryRankWritesAShareOfTheCheckpoint) {
  use_deep_model();
  for (const std::vector<std::string>& layout : std::vector<std::vector<std::string>>{
           {"dp=3", "zero=1"}, {"pp=2", "dp=2", "zero=3"}, {"dp=4", "zero=0"}}) {
    const std::string out = fmt::format("{}", fmt::join(layout, "-"));
    train_on_ranks(run(out, with({"schedule.steps=1", "batch.lanes=4"}, layout)));
    const checkpoint::Checkpoint checkpoint(folder_ / out);
    std::map<std::string, uint64_t> bytes;  // by part of the model; then by file, two a rank
    for (const checkpoint::TensorEntry& tensor : checkpoint.manifest().tensors) {
      std::string part = tensor.info.name;
      if (part.starts_with("optimizer.")) part = part.substr(part.find('.', 10) + 1);
      for (const char* inside : {".self_attn.", ".mlp.", "layernorm"})
        part = part.substr(0, part.find(inside));
      bytes[part] += 4 * static_cast<uint64_t>(c10::multiply_integers(tensor.info.shape));
    }
    uint64_t largest = 0;
    uint64_t all = 0;
    for (const auto& [part, of_part] : bytes) {
      largest = std::max(largest, of_part);
      all += of_part;
    }
    const auto ranks = static_cast<size_t>(parallel_of(run(out, with({}, layout)).config).world());
    size_t files = 0;
    for (const checkpoint::FileEntry& file : checkpoint.manifest().files) {
      if (!file.name.starts_with("model-")) continue;
      ++files;
      // Masters are a third; a header is small.
      EXPECT_LE(3 * file.bytes, all / ranks + largest + 3 * 4'096) << file.name;
    }
    EXPECT_EQ(files, ranks) << out;
  }
}

// Whoever ends first ends the others: not before all have written what is promised.
TEST_P(TrainerRanksTest, ARunThatEndsForItsNumbersIsSafeOnAllRanks) {
  const RunFile file = run("diverged", {"batch.lanes=4", "parallel.dp=3", "parallel.zero=1",
                                        "optim.lr=1e38", "schedule.warmup=0"});
  try {
    train_on_ranks(file);
    FAIL() << "the loss stayed finite";
  } catch (const Error& error) {
    ASSERT_EQ(error.code(), ErrorCode::kNumerical) << error.what();
    const checkpoint::Checkpoint kept(folder_ / "diverged");
    EXPECT_THAT(error.what(), HasSubstr(fmt::format("the run is safe as of step {}", kept.step())));
    EXPECT_TRUE(kept.verify().empty());
  }
}

TEST_P(TrainerRanksTest, ARunGoesOnWithAnotherNumberOfRanks) {
  const std::vector<std::string> sets = {"precision.recipe=bf16", "batch.lanes=4"};
  train(run("whole", sets), options());
  const auto with = [&](int dp, int zero) {
    std::vector<std::string> over = sets;
    over.push_back(fmt::format("parallel.dp={}", dp));
    over.push_back(fmt::format("parallel.zero={}", zero));
    return run("pieces", over);
  };
  std::vector<RunFile> runs;
  for (const auto& [dp, zero] : {std::pair{3, 1}, {2, 3}, {1, 0}, {3, 3}, {2, 2}, {3, 2}})
    runs.push_back(with(dp, zero));
  expect_whole_of_pieces(runs);
}

TEST_P(TrainerRanksTest, PipelinesLeaveWhatOneRankLeaves) {
  using Layout = std::vector<std::string>;
  const std::vector<Layout> layouts = {{"pp=2"},
                                       {"pp=3", "schedule=gpipe"},
                                       {"pp=2", "dp=2", "zero=0", "schedule=zb-h1"},
                                       {"pp=2", "dp=2", "zero=1", "schedule=zbv", "chunks=2"},
                                       {"pp=2", "dp=2", "zero=2"},
                                       {"pp=2", "dp=2", "zero=3", "schedule=zbv", "chunks=2"},
                                       {"pp=2", "dp=2", "zero=3"},
                                       {"dp=4", "zero=1", "shard=2"},
                                       {"dp=4", "zero=3", "shard=2"},
                                       {"pp=2", "schedule=interleaved", "chunks=3"}};
  for (const bool experts : {false, true}) {
    use_deep_model(experts ? "\"num_local_experts\": 4, \"num_experts_per_tok\": 2, " : "");
    for (const char* recipe : {"fp32", "bf16"}) {
      const bool fp32 = recipe == std::string("fp32");
      // The simulated device's are slow.
      if (fp32 && (experts || GetParam() == std::string("sim"))) continue;
      const std::vector<std::string> sets = {fmt::format("precision.recipe={}", recipe),
                                             "batch.ramp_start=4", "batch.ramp_steps=3",
                                             "batch.sequences=8", "batch.lanes=4"};
      const std::string one = fmt::format("one-{}-{}", recipe, experts);
      train(run(one, sets), options());
      for (size_t i = fp32 ? 0 : 1; i < layouts.size(); i += 2) {
        const std::string out = fmt::format("{}-{}-{}", recipe, experts, i);
        SCOPED_TRACE(fmt::format("{} {}", out, fmt::join(layouts[i], " ")));
        train_on_ranks(run(out, with(sets, layouts[i])));
        EXPECT_EQ(digest(out), digest(one));
        EXPECT_EQ(figures(out), figures(one));
        EXPECT_EQ(read_file(folder_ / out / "export/model.safetensors"),
                  read_file(folder_ / one / "export/model.safetensors"));
      }
    }
  }
}

TEST_P(TrainerRanksTest, ARunGoesOnUnderAnotherPipeline) {
  use_deep_model();
  const std::vector<std::string> sets = {"precision.recipe=bf16", "batch.lanes=4"};
  train(run("whole", sets), options());
  std::vector<RunFile> runs;
  using Layout = std::vector<std::string>;
  for (const Layout& layout : std::vector<Layout>{{"pp=2"},
                                                  {"dp=4", "zero=2", "shard=2"},
                                                  {"pp=3", "schedule=v-half", "chunks=2"},
                                                  {},
                                                  {"pp=2", "dp=2", "zero=3"},
                                                  {"pp=4"}})
    runs.push_back(run("pieces", with(sets, layout)));
  expect_whole_of_pieces(runs);
}

TEST_P(TrainerRanksTest, AScheduleOfAFileIsRun) {
  use_deep_model();
  const std::string file = (folder_ / "schedule.txt").string();
  std::ofstream(file) << plan::schedule_text(
      plan::make_schedule(plan::ScheduleKind::kZeroBubbleV, 2, 4, 2));
  train(run("one"), options());
  train_on_ranks(run("two", {"parallel.pp=2", "parallel.chunks=2", "parallel.schedule=" + file}));
  EXPECT_EQ(digest("two"), digest("one"));
  EXPECT_EQ(figures("two"), figures("one"));
  const auto refusal = [&](const std::vector<std::string>& sets) {
    try {
      train_on_ranks(run("three", with({}, sets)));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(refusal({"pp=2", "schedule=" + file}), HasSubstr("2 stages a rank"));
  EXPECT_THAT(refusal({"pp=2", "schedule=./none"}), HasSubstr("./none"));
}

TEST_P(TrainerRanksTest, TextIsContinuedByTheWholeModel) {
  use_deep_model();
  const auto options_with = [](std::vector<ReportSample>& samples) {
    TrainOptions options;
    options.quiet = true;
    options.sample = [&samples](nn::Model& model, const data::Tokenizer&, const RunConfig&) {
      at::Tensor sum = at::zeros({}, at::kDouble);
      for (int part = 0; part < model.num_parts(); ++part)
        sum += model.store().part_compute(part).cpu().sum(at::kDouble);
      samples = {{"sum", fmt::format("{}", sum.item<double>())}};
      return samples;
    };
    return options;
  };
  const std::vector<std::string> sets = {"sample.prompts=[\"line\"]"};
  std::vector<ReportSample> want;
  train(run("one", sets), options_with(want));
  ASSERT_EQ(want.size(), 1U);
  using Layout = std::vector<std::string>;
  for (const auto& [out, layout] :
       {std::pair<const char*, Layout>{"stages", {"pp=2"}}, {"shares", {"dp=2", "zero=3"}}}) {
    std::vector<ReportSample> got;
    const RunFile two = run(out, with(sets, layout));
    comm::run_ranks(2, [&](comm::World& world) {
      TrainOptions options = options_with(got);
      options.world = &world;
      train(two, options);
    });
    ASSERT_EQ(got.size(), 1U);
    EXPECT_EQ(got[0].text, want[0].text);
  }
}

TEST_P(TrainerRanksTest, RanksThatAreNotThereAreAnError) {
  try {
    train(run("a", {"parallel.dp=2"}), options());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_THAT(error.what(), HasSubstr("2 ranks, and 1 is here"));
    EXPECT_THAT(error.hint(), HasSubstr("trireme launch --nproc 2"));
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, TrainerRanksTest, ::testing::Values("cpu", "sim"), device_of);

}  // namespace
}  // namespace trireme::train
