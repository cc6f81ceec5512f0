#include "trireme/train/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/train/run_schema.h"

namespace trireme::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char kSmall[] = R"(out = "runs/a"
[model]
preset = "llama-11m"
[data]
train = ["a.txt", { path = "b/**/*.py", weight = 0.5 }]
[schedule]
steps = 300
)";

Error error_of(const std::string& text, const std::vector<std::string>& sets = {}) {
  try {
    parse_run_file(text, "run.toml", sets);
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "accepted:\n" << text;
  return Error(ErrorCode::kInternal, "accepted");
}

TEST(RunConfig, ReadsValuesAndKeepsDefaults) {
  const RunFile run = parse_run_file(kSmall, "run.toml");
  EXPECT_EQ(run.config.out, "runs/a");
  EXPECT_EQ(run.config.schedule.steps, 300);
  EXPECT_EQ(run.config.seed, 1234);
  EXPECT_THAT(run.config.data.train,
              ElementsAre(DataSource{"a.txt", 0.0}, DataSource{"b/**/*.py", 0.5}));
  EXPECT_EQ(run.origins.at("schedule.steps").text(), "run.toml:7");
  EXPECT_EQ(run.origins.at("seed").text(), "default");
}

TEST(RunConfig, DefaultsAreThoseOfTheInterface) {
  const RunConfig c;
  EXPECT_EQ(c.seed, 1234);
  EXPECT_EQ(c.model.init, "random");
  EXPECT_EQ(c.data.seq_len, 512);
  EXPECT_EQ(c.data.packing, "documents");
  EXPECT_EQ(c.batch.sequences, 64);
  EXPECT_EQ(c.batch.micro, 8);
  EXPECT_EQ(c.batch.lanes, 8);
  EXPECT_EQ(c.optim.name, "adamw");
  EXPECT_EQ(c.optim.lr, 3e-4);
  EXPECT_THAT(c.optim.betas, ElementsAre(0.9, 0.95));
  EXPECT_EQ(c.optim.weight_decay, 0.1);
  EXPECT_EQ(c.optim.clip, 1.0);
  EXPECT_EQ(c.schedule.name, "cosine");
  EXPECT_EQ(c.schedule.steps, 2000);
  EXPECT_EQ(c.schedule.warmup, 100);
  EXPECT_EQ(c.precision.recipe, "auto");
  EXPECT_EQ(c.eval.every, 200);
  EXPECT_EQ(c.checkpoint.every, 500);
  EXPECT_EQ(c.checkpoint.keep, 3);
  EXPECT_TRUE(c.log.tensorboard);
}

TEST(RunConfig, SetOverridesInOrderAndTakesBareTexts) {
  const RunFile run = parse_run_file(
      kSmall, "run.toml",
      {"schedule.steps=10", "schedule.warmup=1", "schedule.steps=20", "schedule.name=linear",
       "out=42", "memory.recompute=full", "optim.betas=[0.8, 0.9]",
       "data.train={path=\"x\", weight=2.0}", "log.tensorboard=false"});
  EXPECT_EQ(run.config.schedule.steps, 20);
  EXPECT_EQ(run.config.schedule.name, "linear");
  EXPECT_EQ(run.config.out, "42");
  EXPECT_THAT(run.config.memory.recompute, ElementsAre("full"));
  EXPECT_THAT(run.config.optim.betas, ElementsAre(0.8, 0.9));
  EXPECT_THAT(run.config.data.train, ElementsAre(DataSource{"x", 2.0}));
  EXPECT_FALSE(run.config.log.tensorboard);
  EXPECT_EQ(run.origins.at("schedule.steps").text(), "--set schedule.steps=20");
}

TEST(RunConfig, DefaultWarmUpFitsShortRuns) {
  EXPECT_EQ(parse_run_file(kSmall, "run.toml", {"schedule.steps=400"}).config.schedule.warmup, 100);
  const RunFile run = parse_run_file(kSmall, "run.toml", {"schedule.steps=20"});
  EXPECT_EQ(run.config.schedule.warmup, 2);
  EXPECT_EQ(run.origins.at("schedule.warmup").kind, Origin::Kind::kDerived);
  EXPECT_EQ(error_of(kSmall, {"schedule.steps=20", "schedule.warmup=100"}).code(),
            ErrorCode::kConfig);
}

TEST(RunConfig, EffectiveFileReadsBackAsTheSameRun) {
  const RunFile run = parse_run_file(
      kSmall, "run.toml",
      {"sample.prompts=[\"a \\\"quoted\\\" one\\n\\tand a tab \\\\ é\", \"b\"]", "optim.lr=1e-5",
       "optim.clip=1", "memory.recompute=[\"mlp\", \"layer.0.attention:selective\"]",
       "batch.ramp_start=8", "batch.ramp_steps=5", "kernels.load=./a.so",
       "kernels.use={ rms_norm = \"mine\", 'adamw_' = \"a \\\"b\\\"\" }"});
  EXPECT_EQ(run.config.kernels.use.at("adamw_"), "a \"b\"");
  const RunFile again = parse_run_file(effective_toml(run), "effective");
  for (const SchemaEntry& entry : schema()) {
    EXPECT_EQ(entry.get(run.config), entry.get(again.config)) << entry.key;
  }
}

TEST(RunConfig, UnknownKeysNameLineAndNearest) {
  const Error slip = error_of(std::string(kSmall) + "[batch]\nsequence = 3\n");
  EXPECT_EQ(slip.code(), ErrorCode::kConfig);
  EXPECT_THAT(slip.what(), HasSubstr("run.toml:9: unknown key 'batch.sequence'"));
  EXPECT_THAT(slip.hint(), HasSubstr("sequences"));
  const Error table = error_of(std::string(kSmall) + "[optimm]\nlr = 3\n");
  EXPECT_THAT(table.what(), HasSubstr("run.toml:8: unknown key 'optimm'"));
  EXPECT_THAT(table.hint(), HasSubstr("optim"));
  const Error elsewhere = error_of(std::string(kSmall) + "[batch]\nlr = 3\n");
  EXPECT_THAT(elsewhere.hint(), HasSubstr("optim.lr"));
  const Error set = error_of(kSmall, {"batch.mikro=4"});
  EXPECT_THAT(set.what(), HasSubstr("--set batch.mikro=4: unknown key 'batch.mikro'"));
  EXPECT_THAT(set.hint(), HasSubstr("micro"));
}

TEST(RunConfig, BrokenTomlIsAnErrorWithItsPlace) {
  for (const char* text : {"[.a]\n", "[=]\n", "[[.a]]\n", "a.\n", "\x01", "a = \"\n", "a = [1,",
                           "a = 1 b = 2\n", "[a]\n[a]\n", "\xff = 1\n"}) {
    const Error error = error_of(text);
    EXPECT_EQ(error.code(), ErrorCode::kConfig) << text;
    EXPECT_THAT(error.what(), HasSubstr("run.toml:")) << text;
  }
}

TEST(RunConfig, LettersBeyondAsciiAreForQuotesAndComments) {
  const std::string start = "\xEF\xBB\xBF# \xC3\xA9 '\n" + std::string(kSmall);
  for (const char* text : {R"('é')", R"("\"é")", R"("""" é""")", "'''\n'é'''"}) {
    EXPECT_NO_THROW(
        parse_run_file(start + "[tokenizer]\npath = " + text + " # é\n", "run.toml", {}))
        << text;
  }
  EXPECT_EQ(parse_run_file(kSmall, "run.toml", {"out=é"}).config.out, "é");
  const Error error = error_of("out = \"é\"\n  \xEF\xB9\xBF%");
  EXPECT_EQ(error.code(), ErrorCode::kConfig);
  EXPECT_THAT(error.what(), HasSubstr("run.toml:2:3: "));
}

TEST(RunConfig, DataParallelRanksAreTaken) {
  const RunFile run = parse_run_file(kSmall, "run.toml", {"parallel.dp=3", "parallel.zero=2"});
  EXPECT_EQ(run.config.parallel.dp, 3);
  EXPECT_EQ(run.config.parallel.zero, 2);
  EXPECT_THAT(error_of(kSmall, {"parallel.zero=4"}).what(), HasSubstr("parallel.zero"));
  EXPECT_THAT(error_of(kSmall, {"parallel.dp=0"}).what(), HasSubstr("parallel.dp"));
}

TEST(RunConfig, PipelinesAreTaken) {
  const RunFile run = parse_run_file(
      kSmall, "run.toml", {"parallel.pp=2", "parallel.schedule=zbv", "parallel.chunks=2"});
  EXPECT_EQ(run.config.parallel.pp, 2);
  EXPECT_EQ(run.config.parallel.chunks, 2);
  EXPECT_EQ(
      parse_run_file(kSmall, "run.toml", {"parallel.schedule=./mine.txt"}).config.parallel.schedule,
      "./mine.txt");
  EXPECT_THAT(error_of(kSmall, {"parallel.schedule=1f1"}).what(), HasSubstr("1f1b"));
  EXPECT_THAT(error_of(kSmall, {"parallel.pp=0"}).what(), HasSubstr("parallel.pp"));
}

TEST(RunConfig, OtherDimensionsAreRefusedWithTheReason) {
  for (const char* set : {"parallel.tp=2", "parallel.cp=2", "parallel.ep=8", "parallel.etp=2"}) {
    const Error error = error_of(kSmall, {set});
    EXPECT_THAT(error.what(), HasSubstr("in this way yet")) << set;
    EXPECT_THAT(error.what(), HasSubstr(std::string(set).substr(0, std::string(set).find('='))))
        << set;
  }
}

TEST(RunConfig, DifferingKeysLeaveOutWhatDoesNotShapeTheResult) {
  const RunFile a = parse_run_file(kSmall, "run.toml");
  EXPECT_TRUE(
      differing_keys(
          a.config,
          parse_run_file(kSmall, "b", {"out=x", "checkpoint.every=1", "log.every=3"}).config)
          .empty());
  EXPECT_THAT(differing_keys(a.config, parse_run_file(kSmall, "b", {"batch.micro=4"}).config),
              ElementsAre("batch.micro: 8 there, 4 now"));
}

TEST(RunConfig, EveryTableOfTheSchemaIsDocumented) {
  for (const SchemaEntry& entry : schema()) {
    bool found = false;
    for (const SchemaTable& table : schema_tables()) found = found || table.name == entry.table();
    EXPECT_TRUE(found) << entry.key;
    EXPECT_FALSE(entry.doc.empty()) << entry.key;
    // A default that its own limit refuses would make an empty table an error.
    if (!entry.required) {
      EXPECT_EQ(entry.limit.problem(entry.get(RunConfig())), "") << entry.key;
    }
  }
}

TEST(RunConfig, DocumentIsUpToDate) {
  EXPECT_EQ(read_file(TRIREME_SOURCE_DIR "/docs/run_file.md"), schema_markdown())
      << "write it again: build/trireme train --print-schema > docs/run_file.md";
}

}  // namespace
}  // namespace trireme::train
