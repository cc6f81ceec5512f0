#include "trireme/model/model_spec.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/model/family.h"

namespace trireme::model {

const char* to_string(PartKind kind) {
  switch (kind) {
    case PartKind::kEmbedding:
      return "embedding";
    case PartKind::kAttention:
      return "attention";
    case PartKind::kMlp:
      return "mlp";
    case PartKind::kRouter:
      return "router";
    case PartKind::kDispatch:
      return "dispatch";
    case PartKind::kExperts:
      return "experts";
    case PartKind::kCombine:
      return "combine";
    case PartKind::kMtpInput:
      return "mtp-input";
    case PartKind::kMtpHead:
      return "mtp-head";
    case PartKind::kHead:
      return "head";
  }
  return "?";
}

const char* to_string(Role role) {
  switch (role) {
    case Role::kTokenEmbedding:
      return "token-embedding";
    case Role::kPositionEmbedding:
      return "position-embedding";
    case Role::kNormWeight:
      return "norm-weight";
    case Role::kNormBias:
      return "norm-bias";
    case Role::kQuery:
      return "query";
    case Role::kKey:
      return "key";
    case Role::kValue:
      return "value";
    case Role::kQkNorm:
      return "qk-norm";
    case Role::kAttentionOut:
      return "attention-out";
    case Role::kGate:
      return "gate";
    case Role::kUp:
      return "up";
    case Role::kDown:
      return "down";
    case Role::kBias:
      return "bias";
    case Role::kHead:
      return "head";
    case Role::kSink:
      return "sink";
    case Role::kQueryDown:
      return "query-down";
    case Role::kKeyValueDown:
      return "key-value-down";
    case Role::kKeyValueUp:
      return "key-value-up";
    case Role::kLatentNorm:
      return "latent-norm";
    case Role::kRouter:
      return "router";
    case Role::kSelectionBias:
      return "selection-bias";
    case Role::kExpertGate:
      return "expert-gate";
    case Role::kExpertUp:
      return "expert-up";
    case Role::kExpertDown:
      return "expert-down";
    case Role::kExpertGateBias:
      return "expert-gate-bias";
    case Role::kExpertUpBias:
      return "expert-up-bias";
    case Role::kExpertDownBias:
      return "expert-down-bias";
    case Role::kSharedExpertGate:
      return "shared-expert-gate";
    case Role::kMtpProjection:
      return "mtp-projection";
  }
  return "?";
}

const char* to_string(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGeluTanh:
      return "gelu_tanh";
    case Activation::kGelu:
      return "gelu";
    case Activation::kRelu:
      return "relu";
  }
  return "?";
}

int64_t ParameterSpec::numel() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

int64_t ParameterSpec::elements_in_a_row() const {
  if (!shard) return numel();
  int64_t product = 1;
  for (size_t dim = shard->dim; dim < shape.size(); ++dim) product *= shape[dim];
  return product;
}

int64_t ParameterSpec::whole_element(int64_t element) const {
  if (!shard) return element;
  const int64_t row = elements_in_a_row();
  const int64_t inner = row / shape[shard->dim];
  return element / row * (shard->whole[shard->dim] * inner) + shard->first * inner + element % row;
}

void ParameterSpec::cut(size_t dim, int64_t pieces, int64_t index) {
  TRIREME_CHECK(dim < shape.size() && shape[dim] % pieces == 0 && index < pieces &&
                    (!shard || shard->dim == dim),
                "{} has no stretch {} of {} along dimension {}", name, index, pieces, dim);
  if (pieces == 1) return;
  if (!shard) shard = ParameterShard{shape, dim, 0};
  shape[dim] /= pieces;
  shard->first += index * shape[dim];
}

bool ParameterSpec::is_product() const {
  switch (role) {
    case Role::kQuery:
    case Role::kKey:
    case Role::kValue:
    case Role::kAttentionOut:
    case Role::kGate:
    case Role::kUp:
    case Role::kDown:
    case Role::kHead:
    case Role::kQueryDown:
    case Role::kKeyValueDown:
    case Role::kKeyValueUp:
    case Role::kRouter:
    case Role::kExpertGate:
    case Role::kExpertUp:
    case Role::kExpertDown:
    case Role::kSharedExpertGate:
    case Role::kMtpProjection:
      return true;
    default:
      return false;
  }
}

bool ParameterSpec::is_expert() const {
  switch (role) {
    case Role::kExpertGate:
    case Role::kExpertUp:
    case Role::kExpertDown:
    case Role::kExpertGateBias:
    case Role::kExpertUpBias:
    case Role::kExpertDownBias:
      return true;
    default:
      return false;
  }
}

bool ParameterSpec::decays() const {
  return is_product() || role == Role::kTokenEmbedding;
}

int64_t ModelSpec::num_parameters() const {
  int64_t sum = 0;
  for (const ParameterSpec& parameter : parameters) sum += parameter.numel();
  return sum;
}

bool ModelSpec::is_mtp(int part) const {
  return mtp_depth(part) > 0;
}

int ModelSpec::mtp_depth(int part) const {
  return std::max(parts[static_cast<size_t>(part)].layer - num_main_layers() + 1, 0);
}

int ModelSpec::head_part() const {
  const auto found = std::ranges::find(parts, PartKind::kHead, &PartSpec::kind);
  return static_cast<int>(found - parts.begin());
}

bool ModelSpec::is_head(int part) const {
  const PartKind kind = parts[static_cast<size_t>(part)].kind;
  return kind == PartKind::kHead || kind == PartKind::kMtpHead;
}

int64_t ModelSpec::num_active_parameters() const {
  int64_t sum = 0;
  for (const ParameterSpec& parameter : parameters) {
    if (!is_mtp(parameter.part)) sum += active_numel(parameter);
  }
  return sum;
}

int64_t ModelSpec::num_mtp_parameters() const {
  int64_t sum = 0;
  for (const ParameterSpec& parameter : parameters) {
    if (is_mtp(parameter.part)) sum += parameter.numel();
  }
  return sum;
}

int64_t ModelSpec::active_numel(const ParameterSpec& parameter) const {
  if (!parameter.is_expert()) return parameter.numel();
  const int layer = parts[static_cast<size_t>(parameter.part)].layer;
  const MoeSpec& moe = *layers[static_cast<size_t>(layer)].moe;
  return parameter.numel() * moe.top_k / moe.num_experts;
}

int ModelSpec::parameter_index(const std::string& name) const {
  const auto found = std::find_if(parameters.begin(), parameters.end(),
                                  [&](const ParameterSpec& p) { return p.name == name; });
  return found == parameters.end() ? -1 : static_cast<int>(found - parameters.begin());
}

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const Family& family : families()) names.push_back(family.model_type);
  return names;
}

namespace {

// Keys that every model of transformers may carry and that say nothing about training it from here:
// book-keeping, generation defaults (of transformers 4), classification labels.
const std::vector<std::string>& meaningless_keys() {
  static const std::vector<std::string> keys = {
      "_name_or_path",
      "_commit_hash",
      "name_or_path",
      "transformers_version",
      "torch_dtype",
      "dtype",
      "use_cache",
      "id2label",
      "label2id",
      "num_labels",
      "output_attentions",
      "output_hidden_states",
      "return_dict",
      "problem_type",
      "finetuning_task",
      "task_specific_params",
      "pad_token_id",
      "sep_token_id",
      "unk_token_id",
      "decoder_start_token_id",
      "prefix",
      "tokenizer_class",
      "max_length",
      "min_length",
      "do_sample",
      "early_stopping",
      "num_beams",
      "num_beam_groups",
      "diversity_penalty",
      "temperature",
      "top_k",
      "top_p",
      "typical_p",
      "repetition_penalty",
      "length_penalty",
      "no_repeat_ngram_size",
      "encoder_no_repeat_ngram_size",
      "bad_words_ids",
      "num_return_sequences",
      "output_scores",
      "return_dict_in_generate",
      "forced_bos_token_id",
      "forced_eos_token_id",
      "remove_invalid_values",
      "exponential_decay_length_penalty",
      "suppress_tokens",
      "begin_suppress_tokens",
      "torchscript",
      "tf_legacy_loss",
      "use_bfloat16",
      "chunk_size_feed_forward",
      "is_decoder",
      "attn_implementation",
      "_attn_implementation",
      "_attn_implementation_autoset",
      "gradient_checkpointing",
      "model_name",
      "cross_attention_hidden_size",
      "cache_implementation",
      "auto_map",  // code that came with the model; what it means is in the keys that a family reads
  };
  return keys;
}

}  // namespace

ModelSpec spec_from_config(const std::string& config_json, const std::string& origin) {
  Json document = parse_json(config_json, origin, ErrorCode::kConfig);
  ConfigReader config(document, origin);
  if (!config.has("model_type")) {
    config.fail("model_type", "is missing",
                "name the family: " + fmt::format("{}", fmt::join(family_names(), ", ")));
  }
  const std::string model_type = config.text("model_type", "");
  const Family* family = nullptr;
  const std::vector<std::string> architectures = config.texts("architectures");
  for (const Family& candidate : families()) {
    if (candidate.model_type == model_type || candidate.alias == model_type) family = &candidate;
  }
  // A type of its own that declares a class of ours is that family (kimi_k2 is a deepseek_v3), as far as its keys are.
  for (const Family& candidate : families()) {
    if (family == nullptr && !architectures.empty() &&
        architectures.front() == candidate.architecture)
      family = &candidate;
  }
  if (family == nullptr) {
    config.fail("model_type", fmt::format("is \"{}\", a family that is not covered", model_type),
                config.has("text_config")
                    ? "the language model in it is that of \"text_config\": save it alone, with "
                      "that as its config.json"
                    : suggestion(model_type, family_names()));
  }

  ModelSpec spec;
  spec.family = family->model_type;
  spec.architecture = family->architecture;
  if (!architectures.empty() && architectures.front() != family->architecture &&
      architectures.front() != family->base_architecture) {
    config.fail("architectures",
                fmt::format("is \"{}\", which is not covered", architectures.front()),
                fmt::format("language models of this family are \"{}\"", family->architecture));
  }
  std::vector<int> bos_token_ids = config.token_ids("bos_token_id");
  spec.eos_token_ids = config.token_ids("eos_token_id");
  config.ignore(meaningless_keys());
  config.require("is_encoder_decoder", false, "an encoder-decoder");
  config.require("tie_encoder_decoder", false, "an encoder-decoder");
  config.require("pruned_heads", Json::object(), "attention with pruned heads");
  spec.quantization = read_quantization(config, spec.family);

  family->read(config, spec);
  config.finish();
  // As transformers does, tolerate the family's default ids beside a smaller vocabulary: such a
  // token cannot occur.
  for (auto* ids : {&bos_token_ids, &spec.eos_token_ids})
    std::erase_if(*ids, [&](int id) { return id >= spec.vocab_size; });
  if (!bos_token_ids.empty()) spec.bos_token_id = bos_token_ids.front();
  if (!spec.eos_token_ids.empty()) spec.eos_token_id = spec.eos_token_ids.front();
  // What is exported is always the model with its head, and says so.
  if (architectures.empty() || architectures.front() != family->architecture) {
    document["architectures"] = {family->architecture};
  }
  document["model_type"] = family->model_type;
  document.erase("auto_map");
  document.erase("quantization_config");
  spec.config_json = document.dump(2, ' ', true) + "\n";
  return spec;
}

}  // namespace trireme::model
