#include "trireme/infer/loaded_model.h"

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/base/suggest.h"
#include "trireme/checkpoint/model_source.h"
#include "trireme/model/config_reader.h"
#include "trireme/model/mtp.h"

namespace trireme::infer {

const data::Tokenizer& LoadedModel::require_tokenizer() const {
  TRIREME_USER_CHECK(tokenizer != nullptr, kData,
                     "put a tokenizer.json into the folder, or give token ids with --ids",
                     "{} has no tokenizer.json", path.string());
  return *tokenizer;
}

namespace {

/// transformers generates by generation_config.json, and by config.json where that says nothing.
std::vector<int32_t> end_ids(const checkpoint::ModelSource& source) {
  const std::string text = source.text("generation_config.json");
  if (!text.empty()) {
    const std::string origin = (source.path / "generation_config.json").string();
    model::ConfigReader config(parse_json(text, origin, ErrorCode::kConfig), origin);
    std::vector<int> ids = config.token_ids("eos_token_id");
    if (!ids.empty()) return ids;
  }
  return source.spec.eos_token_ids;
}

}  // namespace

LoadedModel load_model(const std::filesystem::path& path, at::ScalarType compute_dtype,
                       at::Device device) {
  checkpoint::ModelSource source = checkpoint::open_model(path);
  LoadedModel loaded;
  loaded.path = source.path;
  loaded.step = source.step;
  loaded.end_ids = end_ids(source);
  const at::ScalarType master = compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
  const model::ModelSpec spec = model::without_mtp(source.spec);
  loaded.store = std::make_unique<nn::ParameterStore>(spec, compute_dtype, master, device);
  for (size_t i = 0; i < spec.parameters.size(); ++i) {
    const checkpoint::TensorToWrite& parameter = source.parameters[i];
    loaded.store->master(parameter.name).copy_(parameter.make());
    if (parameter.release) parameter.release();
  }
  loaded.store->refresh_compute();
  loaded.model = std::make_unique<nn::Model>(*loaded.store);
  const std::string tokenizer = source.text("tokenizer.json");
  if (!tokenizer.empty()) {
    loaded.tokenizer = data::parse_tokenizer(tokenizer, (source.path / "tokenizer.json").string(),
                                             source.text("tokenizer_config.json"));
  } else if (source.spec.vocab_size == data::kByteTokenizerEos + 1) {
    loaded.tokenizer = data::make_byte_tokenizer();
  }
  return loaded;
}

at::ScalarType parse_precision(const std::string& name) {
  if (name == "fp32") return at::kFloat;
  if (name == "bf16") return at::kBFloat16;
  throw Error(ErrorCode::kConfig, "precision \"" + name + "\" is not known",
              suggestion(name, {"fp32", "bf16"}));
}

}  // namespace trireme::infer
