// model_probe HF_DIR IDS_JSON OUT: logits, loss and gradients (Hugging Face names and layout) of a
// model on rows of ids, as one safetensors file. The live parity check (tests/parity/models.py)
// compares them with transformers.
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cstdio>
#include <filesystem>

#include "forward_backward.h"
#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/json.h"
#include "trireme/checkpoint/huggingface.h"
#include "trireme/checkpoint/storage.h"
#include "trireme/checkpoint/tensor_file.h"
#include "trireme/infer/loaded_model.h"

namespace {

/// What transformers multiplies our balancing loss with where its config asks for one: it does not divide by the experts of
/// a token, and takes all layers' rows as those of one, so that with several layers it is another loss.
double balance_share(const trireme::model::ModelSpec& spec) {
  int layers = 0;
  double share = 0.0;
  for (const trireme::model::LayerSpec& layer : spec.layers) {
    if (!layer.moe) continue;
    ++layers;
    if (layer.moe->aux_in_loss) share = static_cast<double>(layer.moe->top_k);
  }
  return layers == 1 ? share : 0.0;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace trireme;
  if (argc != 4) {
    std::fprintf(stderr, "usage: model_probe HF_DIR IDS_JSON OUT\n");
    return 2;
  }
  try {
    infer::LoadedModel loaded = infer::load_model(argv[1]);
    const auto ids =
        parse_json(read_file(argv[2]), argv[2]).get<std::vector<std::vector<int32_t>>>();
    const testing::ForwardBackward result = testing::forward_backward(
        *loaded.model, ids, nn::SaveMode::kAll, balance_share(loaded.model->spec()));

    std::vector<checkpoint::NamedTensor> gradients;
    for (const auto& [name, gradient] : result.gradients) gradients.push_back({name, gradient});
    for (const model::ParameterSpec& parameter : loaded.model->spec().parameters) {
      if (!parameter.trainable) gradients.push_back({parameter.name, at::zeros(parameter.shape)});
    }
    const std::filesystem::path folder = std::string(argv[3]) + ".gradients";
    checkpoint::export_huggingface(
        folder, loaded.model->spec(), gradients, {},
        {.form = {.layout = model::DiskLayout::kModules, .mtp_copies = false}, .replace = true});

    const checkpoint::TensorFile exported(folder / "model.safetensors");
    std::vector<checkpoint::TensorToWrite> tensors;
    const auto add = [&](const std::string& name, const at::Tensor& tensor) {
      tensors.push_back({name, checkpoint::Dtype::kF32, tensor.sizes().vec(),
                         [tensor] { return tensor.contiguous(); }});
    };
    add("logits", result.logits);
    add("loss", at::full({1}, result.loss, at::TensorOptions().dtype(at::kFloat)));
    for (const auto& info : exported.header().tensors)
      add("gradient." + info.name, exported.tensor(info));
    std::vector<const checkpoint::TensorToWrite*> pointers;
    for (const auto& tensor : tensors) pointers.push_back(&tensor);
    const std::filesystem::path out = std::filesystem::absolute(argv[3]);
    checkpoint::write_tensor_file(checkpoint::disk(), out.parent_path(), out.filename().string(),
                                  pointers, {});
    std::filesystem::remove_all(folder);
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n%s\n", error.what(), error.hint().c_str());
    return static_cast<int>(error.code());
  }
}
