// Runs of a tiny model in a folder of their own, on each device. Header only, for tests.
#pragma once

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "trireme/base/interrupt.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/checkpoint.h"
#include "trireme/train/metrics.h"
#include "trireme/train/trainer.h"

namespace trireme::train {

namespace fs = std::filesystem;

inline constexpr char kConfig[] =
    R"({"model_type": "llama", "vocab_size": 320, "hidden_size": 16, "intermediate_size": 32,
  "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true})";

/// A run of a tiny model in a folder of its own, on a device by name.
class TrainerTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    log::set_level(log::Level::kWarning);
    std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::ranges::replace(name, '/', '_');
    folder_ = fs::path(::testing::TempDir()) / ("trainer_" + name);
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream(folder_ / "config.json") << kConfig;
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 60; ++i) text << "line " << i * i << " of a text that repeats itself\n";
  }
  void TearDown() override {
    set_interrupted(false);
    fs::remove_all(folder_);
  }

  RunFile run(const std::string& out, std::vector<std::string> sets = {}) const {
    const std::string text = fmt::format(
        "out = \"{0}/{1}\"\nthreads = 1\n[device]\nname = \"{2}\"\n[model]\nconfig = "
        "\"{0}/config.json\"\n[data]\ntrain = "
        "\"{0}/text.txt\"\nvalid = \"{0}/text.txt\"\ncache = \"{0}/cache\"\n"
        "seq_len = 16\n[batch]\nsequences = 4\nmicro = 1\nlanes = 2\n[optim]\nlr = "
        "1e-2\n[schedule]\nsteps = 6\nwarmup = 1\n"
        "[precision]\nrecipe = \"fp32\"\n[eval]\nevery = 2\n[checkpoint]\nevery = "
        "2\n[log]\ntrace_step = 2\n",
        folder_.string(), out, GetParam());
    return parse_run_file(text, "run.toml", sets);
  }

  static TrainOptions options() {
    TrainOptions options;
    options.quiet = true;
    return options;
  }

  std::string digest(const std::string& out) const {
    return checkpoint::Checkpoint(folder_ / out / "checkpoints").manifest().digest;
  }

  /// metrics.jsonl without what is measured by a clock or an allocator.
  std::string figures(const std::string& out) const {
    std::string text;
    for (const StepMetrics& m : read_metrics(folder_ / out / "metrics.jsonl")) {
      text += fmt::format("{} {} {} {} {} {} {} {} {} {}\n", m.step, m.tokens, m.loss,
                          m.mtp_loss.value_or(-1), m.grad_norm, m.lr, m.sequences,
                          m.valid_loss.value_or(-1), m.valid_bits_per_byte.value_or(-1), m.load);
    }
    return text;
  }

  fs::path folder_;
};

inline std::string device_of(const ::testing::TestParamInfo<const char*>& info) {
  return info.param;
}

}  // namespace trireme::train
