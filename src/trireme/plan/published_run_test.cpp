#include "trireme/plan/published_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/plan/score.h"

namespace trireme::plan {
namespace {

using ::testing::HasSubstr;

constexpr const char* kColumns =
    "row_id,model,layers,hidden,ffn,heads,kv_heads,vocab,framework,device,num_devices,tp,pp,dp,mbs,"
    "gbs,"
    "seq,precision,recompute,iter_s,peak_mem_gib,mem_note,quality\n";

PublishedRun read(const std::string& line, Refusal& refusal) {
  const std::vector<CsvRow> rows = parse_csv(std::string(kColumns) + line, "test");
  std::optional<PublishedRun> run =
      read_published_run(rows.front(), "file", shipped_profiles(), "", refusal);
  return run ? *run : PublishedRun{};
}

std::string refusal_of(const std::string& line) {
  Refusal refusal;
  read(line, refusal);
  return refusal.reason;
}

constexpr const char* kGood =
    "src-1,llama2-7b,32,4096,11008,32,32,32000,Megatron-LM,\"A100-SXM-80GB, "
    "8/node\",16,2,2,4,1,64,4096,"
    "bf16,none,5.0,60,,A\n";

TEST(Csv, QuotesLineBreaksAndMissingCells) {
  const std::vector<CsvRow> rows = parse_csv("a,b,c\r\n1,\"x, \"\"y\"\"\nz\"\n\n4,5,6,7\n", "test");
  ASSERT_EQ(rows.size(), 2);
  EXPECT_EQ(rows[0].at("b"), "x, \"y\"\nz");
  EXPECT_EQ(rows[0].at("c"), "");
  EXPECT_EQ(rows[1].at("c"), "6");
  EXPECT_THROW(parse_csv("a\n\"b", "test"), Error);
  EXPECT_TRUE(parse_csv("", "test").empty());
}

TEST(PublishedRun, ReadsARow) {
  Refusal refusal;
  const PublishedRun run = read(kGood, refusal);
  EXPECT_EQ(refusal.reason, "");
  EXPECT_EQ(run.source, "src");
  // Llama 2 7B as its paper says; vocabulary padded to a multiple of 128 x tp.
  EXPECT_NEAR(static_cast<double>(run.run.spec.num_parameters()), 6.738e9, 0.01e9);
  EXPECT_EQ(run.run.spec.vocab_size, 32000);
  EXPECT_EQ(run.run.strategy.parallel.world(), 16);
  EXPECT_EQ(run.run.strategy.parallel.tp, 2);
  EXPECT_EQ(run.run.cluster.device.name, "a100-sxm-80gb");
  EXPECT_EQ(run.step_s, 5.0);
  EXPECT_EQ(run.peak_bytes, 60.0 * 1024 * 1024 * 1024);
}

TEST(PublishedRun, SaysWhyARowIsNotUsed) {
  EXPECT_THAT(refusal_of("r-1,m,,4096,,32,,,,A100,8,1,1,8,1,8,2048,bf16,none,1,,,A\n"),
              HasSubstr("layers is blank"));
  EXPECT_THAT(refusal_of("r-1,m,x,4096,,32,,,,A100,8,1,1,8,1,8,2048,bf16,none,1,,,A\n"),
              HasSubstr("is not a number"));
  EXPECT_THAT(refusal_of("r-1,m,2,4096,,32,,,,A100,6,4,1,,1,8,2048,bf16,none,1,,,A\n"),
              HasSubstr("does not divide 6 devices"));
  EXPECT_THAT(refusal_of("r-1,m,2,4096,,32,,,,abacus,8,1,1,8,1,8,2048,bf16,none,1,,,A\n"),
              HasSubstr("no cluster"));
  EXPECT_THAT(refusal_of("r-1,m,2,4096,,32,,,,A100,8,1,1,8,1,12,2048,bf16,none,1,,,A\n"),
              HasSubstr("not a multiple"));
  EXPECT_THAT(refusal_of("r-1,m,2,4096,,32,,,,A100,8,1,1,8,1,8,2048,bf16,none,,,,A\n"),
              HasSubstr("nothing was measured"));
}

TEST(PublishedRun, OtherWordsForABlankAreBlank) {
  Refusal refusal;
  const PublishedRun run =
      read("r-1,m, 2 ,4096,nan,32,N/A,-,,A100,8,1,None,8,,8,2048.0,bf16,none,1,,, A\n", refusal);
  EXPECT_EQ(refusal.reason, "");
  EXPECT_EQ(run.run.spec.num_main_layers(), 2);
  EXPECT_EQ(run.run.strategy.parallel.pp, 1);
  EXPECT_EQ(run.run.strategy.seq_len, 2048);
}

TEST(PublishedRun, QualityBelowBDoesNotCount) {
  Refusal refusal;
  read("r-1,m,2,4096,,32,,,,A100,8,1,1,8,1,8,2048,bf16,none,1,,,C\n", refusal);
  EXPECT_FALSE(refusal.counts);
}

// A job of nanotron: `probe` of its links in other_config, `notes`.
PublishedRun nanotron(int pp, const std::string& probe, const std::string& notes) {
  const std::string text = fmt::format(
      "row_id,model,layers,hidden,ffn,heads,vocab,framework,device,num_devices,gpus_per_node,tp,pp,"
      "mbs,gbs,seq,precision,other_config,notes,iter_s,quality\n"
      "n-1,llama,16,2048,8192,32,131072,nanotron v0.5,\"H100-SXM-80GB (8/node; HF cluster, AWS "
      "EFA)\","
      "64,8,1,{},1,256,4096,bf16,act=silu;{},{},1.0,A\n",
      pp, probe, notes);
  Refusal refusal;
  const std::vector<CsvRow> rows = parse_csv(text, "test");
  std::optional<PublishedRun> run =
      read_published_run(rows.front(), "file", shipped_profiles(), "", refusal);
  EXPECT_EQ(refusal.reason, "");
  return run ? *run : PublishedRun{};
}

// 4 x 2048^2 + 3 x 2048 x 8192 = 67.1 M parameters in products a layer, 131072 x 2048 = 268.4 M in the head: four layers. So 20
// layers' work, of which a stage gets 10, 5, or 2.5 rounded down so far.
TEST(PublishedRun, NanotronsStagesHaveTheSameShareOfParameters) {
  EXPECT_EQ(nanotron(2, "", "").run.strategy.stage_layers, (std::vector<int64_t>{10, 6}));
  EXPECT_EQ(nanotron(4, "", "").run.strategy.stage_layers, (std::vector<int64_t>{5, 5, 5, 1}));
  EXPECT_EQ(nanotron(8, "", "").run.strategy.stage_layers,
            (std::vector<int64_t>{2, 3, 2, 3, 2, 3, 1, 0}));
  // 20/16: the last three would have the head alone; those before it take a layer each.
  const std::vector<int64_t> narrow = nanotron(16, "", "").run.strategy.stage_layers;
  EXPECT_EQ(std::accumulate(narrow.begin(), narrow.end(), int64_t{0}), 16);
  EXPECT_EQ(std::ranges::count(narrow, 0), 1);
  EXPECT_EQ(narrow.back(), 0);
}

TEST(PublishedRun, NotesAndProbesSayWhichVersionItWas) {
  const std::string usual = "measured busbw GB/s AR=95.2 AG=53.1 RS=52.0 intraAR=425.1";
  EXPECT_EQ(nanotron(2, usual, "").run.stack.name, "nanotron");
  EXPECT_EQ(nanotron(2, usual, "before nanotron PP fix: slow").run.stack.name, "nanotron-early");
  EXPECT_EQ(
      nanotron(2, "measured busbw GB/s AR=44.1 AG=40.9 RS=39.9 intraAR=45.4", "").run.stack.name,
      "nanotron-unlinked");
  EXPECT_EQ(nanotron(2, "measured busbw GB/s AR=205.1 AG=170.9 RS=169.9 intraAR=455.4", "")
                .run.stack.name,
            "nanotron-late");
  // Notes choose among versions, and no other software.
  EXPECT_EQ(nanotron(2, usual, "much like torchtitan compile").run.stack.name, "nanotron");
  // Accelerators that meet over the network alone are as good as one a node.
  EXPECT_EQ(nanotron(2, "measured busbw GB/s intraAR=45.4", "").run.cluster.node.accelerators, 1);
  EXPECT_EQ(nanotron(2, usual, "").run.cluster.node.accelerators, 8);
}

// Korthikanti et al. (arXiv 2205.05198), table 4's 22B model with tensor and sequence parallelism and attention's core recomputed:
// 34 s b h / t a layer, in 48 layers; all of it adds 5 a s / h of that for every 34.
TEST(PublishedRun, SelectiveRecomputationKeepsNoScores) {
  const auto activations = [](const std::string& recompute) {
    const PublishedRun run = [&] {
      const std::string text =
          "row_id,model,layers,hidden,ffn,heads,vocab,framework,device,num_devices,tp,pp,mbs,gbs,"
          "seq,"
          "precision,recompute,sp,iter_s,quality\n"
          "k-1,gpt-22B,48,6144,24576,64,51200,Megatron-LM 2022,A100-SXM-80GB,8,8,1,4,4,2048,fp16," +
          recompute + ",1,1.0,A\n";
      Refusal refusal;
      return *read_published_run(parse_csv(text, "test").front(), "file", shipped_profiles(), "",
                                 refusal);
    }();
    return predict(run.run).classes.front().peak.activations;
  };
  const double sbh = 2048.0 * 4.0 * 6144.0;
  const double scores = 5.0 * 64.0 * 2048.0 * 2048.0 * 4.0;
  const double selective = activations("selective (core attention)");
  // A layer's scores are there while its backward runs, beside gradients.
  EXPECT_NEAR(selective, 48.0 * 34.0 * sbh / 8.0 + scores / 8.0, 0.05 * selective);
  EXPECT_NEAR(activations("none") - selective, 47.0 * scores / 8.0, 0.02 * 48.0 * scores / 8.0);
}

// One-forward-one-backward: stage s of four holds 4 - s micro-batches.
TEST(PublishedRun, AStageThatKeepsItsOutputsHoldsOneAMicroBatch) {
  const std::string text =
      "row_id,model,layers,hidden,heads,vocab,framework,device,num_devices,tp,pp,zero_stage,mbs,"
      "gbs,seq,"
      "precision,recompute,sp,iter_s,quality\n"
      "d-1,gpt,16,4096,32,51200,Megatron-DeepSpeed,A100-SXM-80GB,4,1,4,1,2,64,2048,fp16,full,0,1.0,"
      "A\n";
  Refusal refusal;
  PlannedRun run =
      read_published_run(parse_csv(text, "test").front(), "file", shipped_profiles(), "", refusal)
          ->run;
  ASSERT_TRUE(run.stack.keeps_stage_outputs);
  const Prediction keeps = predict(run);
  run.stack.keeps_stage_outputs = false;
  const Prediction drops = predict(run);
  const double sbh = 2048.0 * 2.0 * 4096.0;
  const auto more = [&](size_t stage) {
    return (keeps.classes[stage].peak.activations - drops.classes[stage].peak.activations) / sbh;
  };
  EXPECT_NEAR(more(0), 4.0 * 3.0, 1e-6);        // half precision, and a byte of the mask
  EXPECT_NEAR(more(1), 3.0 * 2.0 + 2.0, 1e-6);  // with one that is received ahead
  EXPECT_NEAR(more(3), 0.0, 1e-6);              // nothing is sent on
}

TEST(Score, ComparesWithWhatWasMeasuredAndWithAConstantRate) {
  // Twice the batch in twice the time: a constant rate says exactly that.
  const std::string text =
      std::string(kColumns) +
      "src-1,llama,8,4096,11008,32,32,32000,Megatron-LM,A100,8,1,1,8,1,64,4096,bf16,none,1.0,,,A\n"
      "src-2,llama,8,4096,11008,32,32,32000,Megatron-LM,A100,8,1,1,8,1,128,4096,bf16,none,2.0,,,A\n"
      "src-3,llama,80,16384,65536,128,128,32000,Megatron-LM,A100,8,1,1,8,8,64,4096,bf16,none,,,OOM,"
      "A\n"
      "src-4,llama,x,4096,11008,32,32,32000,Megatron-LM,A100,8,1,1,8,1,128,4096,bf16,none,2.0,,,"
      "A\n";
  const Score result = score({{"notes", "a,b\n1,2\n"}, {"src", text}}, shipped_profiles());
  ASSERT_EQ(result.sources.size(), 1);
  const SourceScore& source = result.sources.front();
  EXPECT_EQ(source.rows, 3);
  EXPECT_EQ(source.refused, 1);
  EXPECT_NEAR(source.constant_mape, 0.0, 1e-9);
  EXPECT_EQ(source.oom_balanced_accuracy, 1.0);
  EXPECT_EQ(result.left_out_files.size(), 1);
  const double error = std::abs(result.rows[0].predicted_s - 1.0);
  const double other = std::abs(result.rows[1].predicted_s / 2.0 - 1.0);
  EXPECT_NEAR(source.time_mape, (error + other) / 2.0, 1e-9);
  EXPECT_THROW(score({{"notes", "a,b\n1,2\n"}}, shipped_profiles()), Error);
}

}  // namespace
}  // namespace trireme::plan
