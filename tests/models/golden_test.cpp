// Tiny models of every family against what transformers computed from the same files
// (tests/goldens/make_model_goldens.py): logits, loss and every parameter's gradient.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "forward_backward.h"
#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/checkpoint/huggingface.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/infer/loaded_model.h"

namespace trireme::testing {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> cases() {
  std::vector<std::string> names;
  for (const auto& entry :
       fs::directory_iterator(fs::path(TRIREME_SOURCE_DIR) / "tests/goldens/models")) {
    if (fs::exists(entry.path() / "golden.safetensors"))
      names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

double largest(const at::Tensor& tensor) {
  return tensor.to(at::kDouble).abs().max().item<double>();
}
double distance(const at::Tensor& a, const at::Tensor& b) {
  return largest(a.to(at::kDouble) - b.to(at::kDouble));
}

class GoldenModelTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenModelTest, LogitsLossAndGradientsAreThoseOfTransformers) {
  const fs::path folder = fs::path(TRIREME_SOURCE_DIR) / "tests/goldens/models" / GetParam();
  infer::LoadedModel loaded = infer::load_model(folder);
  const checkpoint::TensorFile golden(folder / "golden.safetensors");
  std::map<std::string, at::Tensor> expected;
  for (const auto& info : golden.header().tensors) expected[info.name] = golden.tensor(info);

  const at::Tensor ids = expected.at("ids");
  std::vector<std::vector<int32_t>> rows;
  for (int64_t r = 0; r < ids.size(0); ++r) {
    const int64_t* data = ids.const_data_ptr<int64_t>() + r * ids.size(1);
    rows.emplace_back(data, data + ids.size(1));
  }
  const ForwardBackward result = forward_backward(*loaded.model, rows);
  // Every position on its own scale.
  const at::Tensor want = expected.at("logits").to(at::kDouble);
  const at::Tensor apart = (result.logits.to(at::kDouble) - want).abs().amax(-1);
  EXPECT_LE((apart / want.abs().amax(-1)).max().item<double>(), 1e-5);
  EXPECT_NEAR(result.loss, expected.at("loss").item<double>(),
              1e-5 * expected.at("loss").item<double>());

  // The gradients travel through the exporter, which knows how Hugging Face transposes and packs.
  std::vector<checkpoint::NamedTensor> gradients;
  for (const auto& [name, gradient] : result.gradients) gradients.push_back({name, gradient});
  const fs::path out = fs::path(::testing::TempDir()) / ("golden-" + GetParam());
  fs::remove_all(out);
  // As transformers' modules hold them: experts in one tensor.
  checkpoint::export_huggingface(
      out, loaded.model->spec(), gradients, {},
      {.form = {.layout = model::DiskLayout::kModules, .mtp_copies = false}, .replace = true});
  const checkpoint::TensorFile exported(out / "model.safetensors");
  double overall = 0.0;
  for (const auto& [name, tensor] : expected) {
    if (name.starts_with("gradient.")) overall = std::max(overall, largest(tensor));
  }
  size_t compared = 0;
  for (const auto& info : exported.header().tensors) {
    const auto found = expected.find("gradient." + info.name);
    if (info.name.ends_with("e_score_correction_bias"))
      continue;  // moved by the load, not by a gradient
    ASSERT_NE(found, expected.end()) << info.name;
    // A gradient that is zero in exact arithmetic (a key's bias) is compared on the scale of the
    // others.
    const double scale = std::max(largest(found->second), 1e-3 * overall);
    EXPECT_LE(distance(exported.tensor(info), found->second), 1e-4 * scale) << info.name;
    ++compared;
  }
  const auto is_gradient = [](const auto& entry) { return entry.first.starts_with("gradient."); };
  EXPECT_EQ(compared,
            static_cast<size_t>(std::count_if(expected.begin(), expected.end(), is_gradient)));
  fs::remove_all(out);
}

TEST_P(GoldenModelTest, RecomputeChangesNoBit) {
  const fs::path folder = fs::path(TRIREME_SOURCE_DIR) / "tests/goldens/models" / GetParam();
  infer::LoadedModel loaded = infer::load_model(folder);
  const std::vector<std::vector<int32_t>> rows = {{1, 5, 9, 33, 12, 60, 7, 7, 2},
                                                  {63, 0, 1, 4, 4, 4, 21, 30, 3}};
  const ForwardBackward plain = forward_backward(*loaded.model, rows);
  for (const nn::SaveMode mode : {nn::SaveMode::kSelective, nn::SaveMode::kInputOnly}) {
    const ForwardBackward again = forward_backward(*loaded.model, rows, mode);
    EXPECT_EQ(again.loss, plain.loss);
    for (const auto& [name, gradient] : plain.gradients) {
      EXPECT_TRUE(again.gradients.at(name).equal(gradient)) << name;
    }
  }
}

TEST(LoadedModelTest, TextsEndAsGenerationConfigSaysAndElseAsTheConfig) {
  const fs::path folder = fs::path(::testing::TempDir()) / "end-ids";
  fs::remove_all(folder);
  fs::copy(fs::path(TRIREME_SOURCE_DIR) / "tests/goldens/models/llama", folder);
  EXPECT_EQ(infer::load_model(folder).end_ids, std::vector<int32_t>{2});
  const auto with = [&](const std::string& generation_config) {
    write_file_atomically(folder / "generation_config.json", generation_config);
    return infer::load_model(folder).end_ids;
  };
  EXPECT_EQ(with("{\"bos_token_id\": 1}"), std::vector<int32_t>{2});
  EXPECT_EQ(with("{\"eos_token_id\": 5}"), std::vector<int32_t>{5});
  EXPECT_EQ(with("{\"eos_token_id\": [7, 3]}"), (std::vector<int32_t>{7, 3}));
  EXPECT_THROW(with("{\"eos_token_id\": \"</s>\"}"), Error);
  fs::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenModelTest, ::testing::ValuesIn(cases()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace trireme::testing
