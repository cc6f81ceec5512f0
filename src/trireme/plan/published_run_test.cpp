#include "trireme/plan/published_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(PublishedRun, QualityBelowBDoesNotCount) {
  Refusal refusal;
  read("r-1,m,2,4096,,32,,,,A100,8,1,1,8,1,8,2048,bf16,none,1,,,C\n", refusal);
  EXPECT_FALSE(refusal.counts);
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
