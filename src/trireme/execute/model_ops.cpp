#include "trireme/execute/model_ops.h"

#include <initializer_list>
#include <optional>

namespace trireme::execute {

namespace {

using Ops = std::set<std::string>;

void add_norm(const std::optional<model::NormSpec>& norm, Ops& ops) {
  if (!norm) return;
  if (norm->kind == model::NormKind::kRmsNorm) {
    ops.insert({"rms_norm", "rms_norm_backward"});
  } else {
    ops.insert({"layer_norm", "layer_norm_backward"});
  }
}

void add_products(bool bias, Ops& ops) {
  ops.insert({"linear", "linear_backward_input", "linear_backward_weight"});
  if (bias) ops.insert("bias_gradient");
}

void add_attention(const model::LayerSpec& layer, Ops& ops) {
  const model::AttentionSpec& attention = layer.attention;
  add_products(attention.qkv_bias || attention.out_bias, ops);
  ops.insert({"attention", "attention_backward", "add_"});
  add_norm(layer.attention_norm, ops);
  add_norm(layer.attention_post_norm, ops);
  if (attention.rotary) ops.insert("rotary_");
  // Norms of heads and of compressed queries and keys.
  if (attention.qk_norm != model::QkNorm::kNone || attention.latent)
    ops.insert({"rms_norm", "rms_norm_backward"});
  if (attention.latent) ops.insert({"join_shared_key", "join_shared_key_backward"});
}

void add_mlp(const model::LayerSpec& layer, Ops& ops) {
  add_products(layer.mlp.bias, ops);
  ops.insert("add_");
  add_norm(layer.mlp_norm, ops);
  add_norm(layer.mlp_post_norm, ops);
  if (layer.mlp.kind == model::MlpKind::kGated) {
    ops.insert({"gated_activation", "gated_activation_backward"});
  } else {
    ops.insert({"activation", "activation_backward"});
  }
}

void add_experts(const model::LayerSpec& layer, Ops& ops) {
  const model::MoeSpec& moe = *layer.moe;
  add_products(moe.router_bias, ops);
  add_norm(layer.mlp_norm, ops);
  ops.insert({"route", "route_backward", "balance", "sort_by_expert", "gather_rows", "sum_rows",
              "weights_of_rows", "weights_of_choices", "weighted_gated_activation",
              "weighted_gated_activation_backward", "grouped_linear",
              "grouped_linear_backward_input", "grouped_linear_backward_weight"});
  if (moe.expert.bias) ops.insert({"grouped_bias", "grouped_bias_backward"});
}

}  // namespace

std::set<std::string> recorded_ops(const model::ModelSpec& spec) {
  Ops ops;
  for (const model::LayerSpec& layer : spec.layers) {
    add_attention(layer, ops);
    if (!layer.moe) add_mlp(layer, ops);
  }
  return ops;
}

std::set<std::string> training_ops(const model::ModelSpec& spec, bool muon) {
  Ops ops = recorded_ops(spec);
  for (const model::LayerSpec& layer : spec.layers) {
    if (layer.moe) add_experts(layer, ops);
  }
  add_norm(spec.final_norm, ops);
  ops.insert({"embedding", "embedding_backward", "linear_cross_entropy", "adamw_",
              "squares_by_block", "convert"});
  if (muon) ops.insert({"gram", "linear", "linear_backward_input", "scaled_sum", "sum_of_squares"});
  return ops;
}

}  // namespace trireme::execute
