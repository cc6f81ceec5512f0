// gpt2: LayerNorm with bias, learned positions, one packed query-key-value matrix, plain GELU MLP.
//
// Its linear layers are Conv1D: stored [in, out] on disk, [out, in] here.
#include <cmath>

#include "trireme/model/family.h"

namespace trireme::model {

namespace {

void conv1d(ParameterTable& table, const std::string& name, Role role, int64_t out, int64_t in,
            bool residual) {
  table.matrix(name + ".weight", role, out, in, residual).transposed_on_disk = true;
}

void add_parameters(ModelSpec& spec) {
  ParameterTable table(spec);
  const int64_t hidden = spec.hidden;
  table.begin_part(PartKind::kEmbedding, -1);
  table.matrix("transformer.wte.weight", Role::kTokenEmbedding, spec.vocab_size, hidden);
  table.matrix("transformer.wpe.weight", Role::kPositionEmbedding, spec.max_positions, hidden);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const std::string prefix = fmt::format("transformer.h.{}.", i);
    table.begin_part(PartKind::kAttention, static_cast<int>(i));
    table.norm(prefix + "ln_1", *layer.attention_norm, hidden);
    const std::string packed = prefix + "attn.c_attn";
    const std::vector<std::pair<std::string, Role>> thirds = {
        {".query", Role::kQuery}, {".key", Role::kKey}, {".value", Role::kValue}};
    for (const auto& [third, role] : thirds) {
      auto& weight = table.matrix(packed + third + ".weight", role, hidden, hidden);
      weight.transposed_on_disk = true;
      weight.packed_on_disk = packed + ".weight";
    }
    for (const auto& [third, role] : thirds) {
      table.vector(packed + third + ".bias", Role::kBias, hidden).packed_on_disk = packed + ".bias";
    }
    conv1d(table, prefix + "attn.c_proj", Role::kAttentionOut, hidden, hidden, true);
    table.vector(prefix + "attn.c_proj.bias", Role::kBias, hidden);

    table.begin_part(PartKind::kMlp, static_cast<int>(i));
    table.norm(prefix + "ln_2", *layer.mlp_norm, hidden);
    conv1d(table, prefix + "mlp.c_fc", Role::kUp, layer.mlp.hidden, hidden, false);
    table.vector(prefix + "mlp.c_fc.bias", Role::kBias, layer.mlp.hidden);
    conv1d(table, prefix + "mlp.c_proj", Role::kDown, hidden, layer.mlp.hidden, true);
    table.vector(prefix + "mlp.c_proj.bias", Role::kBias, hidden);
  }
  table.begin_part(PartKind::kHead, -1);
  table.norm("transformer.ln_f", spec.final_norm, hidden);
  if (!spec.tied_embeddings) {
    table.matrix("lm_head.weight", Role::kHead, spec.vocab_size, hidden);
  }
}

}  // namespace

void read_gpt2(ConfigReader& config, ModelSpec& spec) {
  spec.vocab_size = config.positive("vocab_size");
  spec.hidden = config.positive("n_embd");
  spec.max_positions = config.positive("n_positions", 1024);
  spec.learned_positions = true;
  spec.tied_embeddings = config.flag("tie_word_embeddings", true);
  spec.initializer_range = config.number("initializer_range", 0.02);
  const int64_t num_layers = config.layers("n_layer");
  const int64_t num_heads = config.positive("n_head");
  if (spec.hidden % num_heads != 0) {
    config.fail("n_embd",
                fmt::format("= {} is not a multiple of n_head = {}", spec.hidden, num_heads),
                "change one of them");
  }

  LayerSpec layer;
  const double eps = config.positive_number("layer_norm_epsilon", 1e-5);
  layer.attention_norm = NormSpec{NormKind::kLayerNorm, eps, true};
  layer.mlp_norm = layer.attention_norm;
  layer.attention.num_heads = num_heads;
  layer.attention.num_kv_heads = num_heads;
  layer.attention.head_dim = spec.hidden / num_heads;
  layer.attention.value_dim = layer.attention.head_dim;
  layer.attention.qkv_bias = true;
  layer.attention.out_bias = true;
  const bool scaled = config.flag("scale_attn_weights", true);
  const double scale =
      scaled ? 1.0 / std::sqrt(static_cast<double>(layer.attention.head_dim)) : 1.0;
  layer.mlp.kind = MlpKind::kPlain;
  layer.mlp.activation = read_activation(config, "activation_function", "gelu_new");
  layer.mlp.hidden = config.positive("n_inner", 4 * spec.hidden);
  layer.mlp.bias = true;

  const bool by_layer = config.flag("scale_attn_by_inverse_layer_idx", false);
  for (int64_t i = 0; i < num_layers; ++i) {
    layer.attention.scale = by_layer ? scale / static_cast<double>(i + 1) : scale;
    spec.layers.push_back(layer);
  }
  spec.final_norm = *layer.attention_norm;
  config.require("add_cross_attention", false, "cross-attention");
  config.ignore({
      "n_ctx",                                    // an old name of n_positions, no longer read
      "reorder_and_upcast_attn",                  // softmax is computed in fp32 here anyway
      "resid_pdrop", "embd_pdrop", "attn_pdrop",  // pre-training here has no dropout
      "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
      "summary_first_dropout",  // of a classification head
  });
  add_parameters(spec);
}

}  // namespace trireme::model
