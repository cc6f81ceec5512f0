// Models with multi-token prediction against what a plain PyTorch module made of the same files
// (tests/goldens/make_mtp_goldens.py): hidden states, logits, losses and every parameter's gradient, over rows of several
// documents.
#include <ATen/ops/cat.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "trireme/checkpoint/huggingface.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/device/device.h"
#include "trireme/execute/evaluation.h"
#include "trireme/execute/testing/step_fixture.h"

namespace trireme::testing {
namespace {

namespace fs = std::filesystem;

double largest(const at::Tensor& tensor) {
  return tensor.to(at::kDouble).abs().max().item<double>();
}
double distance(const at::Tensor& a, const at::Tensor& b) {
  return largest(a.to(at::kDouble) - b.to(at::kDouble));
}

/// Rows as the loader makes them with packing "documents".
data::Batch batch_of(const at::Tensor& ids, const at::Tensor& starts) {
  data::Batch batch;
  batch.rows = ids.size(0);
  batch.seq_len = ids.size(1) - 1;
  const auto* id = ids.const_data_ptr<int64_t>();
  const auto* start = starts.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < batch.rows; ++row) {
    std::vector<int32_t> segments;
    for (int64_t d = 0; d < starts.size(0); ++d) {
      if (start[2 * d] == row) segments.push_back(static_cast<int32_t>(start[2 * d + 1]));
    }
    int32_t begin = 0;
    for (int64_t i = 0; i < batch.seq_len; ++i) {
      const auto at = static_cast<int32_t>(i);
      if (std::ranges::find(segments, at) != segments.end()) begin = at;
      const bool last = std::ranges::find(segments, at + 1) != segments.end();
      const int64_t* here = id + row * (batch.seq_len + 1) + i;
      batch.tokens.push_back(static_cast<int32_t>(here[0]));
      batch.targets.push_back(last ? data::kIgnoredTarget : static_cast<int32_t>(here[1]));
      batch.positions.push_back(at - begin);
      batch.num_targets += last ? 0 : 1;
    }
    batch.segments.push_back(segments);
  }
  return batch;
}

class MtpGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    device::install_cpu_allocator();
    folder_ = fs::path(TRIREME_SOURCE_DIR) / "tests/goldens/mtp" / GetParam();
    checkpoint::HuggingFaceModel opened = checkpoint::open_huggingface(folder_);
    EXPECT_TRUE(opened.form.mtp);
    EXPECT_TRUE(opened.form.mtp_copies);
    const checkpoint::TensorFile golden(folder_ / "golden.safetensors");
    for (const auto& info : golden.header().tensors) expected_[info.name] = golden.tensor(info);
    opened.spec.mtp_loss_weight = expected_.at("weight").item<double>();
    store_ = std::make_unique<nn::ParameterStore>(opened.spec);
    for (const checkpoint::TensorToWrite& parameter : opened.parameters)
      store_->master(parameter.name).copy_(parameter.make());
    batch_ = batch_of(expected_.at("ids"), expected_.at("starts"));
  }

  fs::path folder_;
  std::map<std::string, at::Tensor> expected_;
  std::unique_ptr<nn::ParameterStore> store_;
  data::Batch batch_;
};

TEST_P(MtpGoldenTest, HiddenStatesAndLogitsAreThoseOfTheReport) {
  nn::Model model(*store_);
  const model::ModelSpec& spec = store_->spec();
  const nn::BatchTensors tensors = execute::to_tensors(batch_, spec.num_mtp_layers);
  at::Tensor hidden;
  for (int part = 0; part < model.num_parts(); ++part) {
    if (!spec.is_head(part)) {
      hidden = model.part(part).forward(hidden, tensors, false, nn::SaveMode::kAll).output;
      continue;
    }
    const at::Tensor logits = model.head(part).logits(hidden.flatten(0, 1));
    hidden = model.head(part).normalize(hidden).normed;
    const std::string depth = "." + std::to_string(spec.mtp_depth(part));
    const at::Tensor& places = expected_.at("places" + depth);
    const at::Tensor rows = places.select(1, 0) * batch_.seq_len + places.select(1, 1);
    for (const auto& [name, got] :
         {std::pair{"hidden", hidden.flatten(0, 1)}, {"logits", logits}}) {
      const at::Tensor& want = expected_.at(name + depth);
      EXPECT_LE(distance(got.index_select(0, rows), want), 1e-5 * largest(want)) << name << depth;
    }
    // Every counted target, and no other.
    const at::Tensor targets =
        spec.mtp_depth(part) == 0
            ? tensors.targets
            : tensors.ahead[static_cast<size_t>(spec.mtp_depth(part)) - 1].targets;
    EXPECT_TRUE(targets.flatten().ne(data::kIgnoredTarget).nonzero().flatten().equal(rows));
  }
}

TEST_P(MtpGoldenTest, LossesAndGradientsAreThoseOfTheReport) {
  const execute::Outcome got =
      execute::run(*store_, execute::strategy_for(1, 1, batch_.rows, batch_.seq_len), {batch_});
  const model::ModelSpec& spec = store_->spec();
  std::vector<double> losses = {got.result.loss};
  losses.insert(losses.end(), got.result.mtp_losses.begin(), got.result.mtp_losses.end());
  const at::Tensor& wanted = expected_.at("losses");
  ASSERT_EQ(static_cast<int64_t>(losses.size()), wanted.size(0));
  for (size_t depth = 0; depth < losses.size(); ++depth) {
    const double want = wanted[static_cast<int64_t>(depth)].item<double>();
    EXPECT_NEAR(losses[depth], want, 1e-5 * want) << depth;
  }
  // The gradients travel through the exporter, which knows the names in the files.
  std::vector<checkpoint::NamedTensor> gradients;
  for (int i = 0; i < store_->num_parameters(); ++i) {
    const auto& parameter = spec.parameters[static_cast<size_t>(i)];
    gradients.push_back(
        {parameter.name, store_->view(got.gradients[static_cast<size_t>(parameter.part)], i)});
  }
  const fs::path out = fs::path(::testing::TempDir()) / ("mtp-golden-" + GetParam());
  fs::remove_all(out);
  checkpoint::export_huggingface(out, spec, gradients, {},
                                 {.form = {.mtp_copies = false}, .replace = true});
  const checkpoint::TensorFile exported(out / "model.safetensors");
  double overall = 0.0;
  size_t compared = 0;
  for (const auto& [name, tensor] : expected_) {
    if (!name.starts_with("gradient.")) continue;
    overall = std::max(overall, largest(tensor));
    ++compared;
  }
  for (const auto& info : exported.header().tensors) {
    if (info.name.ends_with("e_score_correction_bias")) continue;
    const auto found = expected_.find("gradient." + info.name);
    ASSERT_NE(found, expected_.end()) << info.name;
    // A key's bias has no gradient in exact arithmetic: it is compared on the scale of the others.
    const double scale = std::max(largest(found->second), 1e-3 * overall);
    EXPECT_LE(distance(exported.tensor(info), found->second), 1e-4 * scale) << info.name;
    --compared;
  }
  EXPECT_EQ(compared, 0u);
  fs::remove_all(out);
}

INSTANTIATE_TEST_SUITE_P(Families, MtpGoldenTest, ::testing::Values("deepseek_v3", "glm4_moe"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace trireme::testing
