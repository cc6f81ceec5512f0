#include "trireme/model/flops.h"

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::model {

namespace {

int64_t part_product_parameters(const ModelSpec& spec, int part) {
  int64_t sum = 0;
  for (const ParameterSpec& parameter : spec.parameters) {
    if (parameter.part == part && parameter.is_product()) sum += spec.active_numel(parameter);
  }
  // The head's matrix may belong to another part: the embedding's, and of multi-token prediction always the model's.
  const PartKind kind = spec.parts[static_cast<size_t>(part)].kind;
  if (kind == PartKind::kMtpHead || (kind == PartKind::kHead && spec.tied_embeddings))
    sum += spec.vocab_size * spec.hidden;
  return sum;
}

/// Keys that a query sees on average: half the sequence, or less where a window cuts it.
double average_keys(const AttentionSpec& attention, int64_t seq_len) {
  const auto length = static_cast<double>(seq_len);
  const auto window = static_cast<double>(attention.window);
  if (attention.window == 0 || attention.window >= seq_len) return length / 2.0;
  return window - window * window / (2.0 * length);
}

double attention_forward(const ModelSpec& spec, int part, int64_t seq_len) {
  const PartSpec& where = spec.parts[static_cast<size_t>(part)];
  if (where.kind != PartKind::kAttention) return 0.0;
  const AttentionSpec& attention = spec.layers[static_cast<size_t>(where.layer)].attention;
  return 2.0 * average_keys(attention, seq_len) *
         static_cast<double>(attention.num_heads * (attention.head_dim + attention.value_dim));
}

}  // namespace

TokenFlops part_flops(const ModelSpec& spec, int part, int64_t seq_len) {
  TRIREME_CHECK(part >= 0 && part < static_cast<int>(spec.parts.size()), "part {} of {}", part,
                spec.parts.size());
  const double products = 2.0 * static_cast<double>(part_product_parameters(spec, part));
  const double attention = attention_forward(spec, part, seq_len);
  TokenFlops flops;
  flops.forward = products + attention;
  flops.backward_input = products + 2.0 * attention;
  flops.backward_weight = products;
  flops.recompute = flops.forward;
  for (const ParameterSpec& parameter : spec.parameters) {
    // Nothing needs a part's last product a second time. Experts have their weights before it (nn/experts_part.h).
    const bool last = parameter.role == Role::kAttentionOut || parameter.role == Role::kDown ||
                      parameter.role == Role::kExpertDown;
    if (parameter.part == part && last) {
      flops.recompute -= 2.0 * static_cast<double>(spec.active_numel(parameter));
    }
  }
  return flops;
}

TokenFlops flops_per_token(const ModelSpec& spec, int64_t seq_len,
                           const std::vector<bool>& recomputed) {
  TRIREME_CHECK(recomputed.empty() || recomputed.size() == spec.parts.size(),
                "{} recompute entries for {} parts", recomputed.size(), spec.parts.size());
  TokenFlops total;
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    const TokenFlops part = part_flops(spec, static_cast<int>(i), seq_len);
    total.forward += part.forward;
    total.backward_input += part.backward_input;
    total.backward_weight += part.backward_weight;
    if (!recomputed.empty() && recomputed[i]) total.recompute += part.recompute;
  }
  return total;
}

int64_t product_parameters(const ModelSpec& spec) {
  int64_t sum = 0;
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    sum += part_product_parameters(spec, static_cast<int>(i));
  }
  return sum;
}

std::string flops_formula(const ModelSpec& spec, int64_t seq_len,
                          const std::vector<bool>& recomputed) {
  const TokenFlops flops = flops_per_token(spec, seq_len, recomputed);
  double attention = 0.0;
  bool windows = false;
  for (size_t i = 0; i < spec.parts.size(); ++i)
    attention += attention_forward(spec, static_cast<int>(i), seq_len);
  for (const LayerSpec& layer : spec.layers) windows = windows || layer.attention.window > 0;
  const int64_t products = product_parameters(spec);
  const int64_t width =
      spec.layers.empty()
          ? 0
          : spec.layers[0].attention.num_heads *
                (spec.layers[0].attention.head_dim + spec.layers[0].attention.value_dim) / 2;
  std::string text = fmt::format(
      "FLOPs per token = 6 N + 6 L T a   (causal attention; 2 N + 2 L T a forward, twice that "
      "backward)\n"
      "  N = {} parameters of products (head included), L = {} layers, T = {} tokens, a = {} "
      "(heads x "
      "head dimension)\n",
      products, spec.layers.size(), seq_len, width);
  if (std::ranges::any_of(spec.layers,
                          [](const LayerSpec& layer) { return layer.moe.has_value(); }))
    text += "  N counts the experts that a token uses, not all of a layer\n";
  if (windows) text += "  T counts as 2 W - W^2 / T in layers with a window of W < T\n";
  text += fmt::format(
      "  forward  {:.6g} = 2 x {} + {:.6g}\n"
      "  backward {:.6g}\n",
      flops.forward, products, attention, flops.backward());
  if (flops.recompute > 0) {
    text += fmt::format(
        "  recompute {:.6g} (forward of the recomputed parts again, without their last product)\n",
        flops.recompute);
  }
  text += fmt::format("  model    {:.6g}, hardware {:.6g}\n", flops.model(), flops.hardware());
  return text;
}

}  // namespace trireme::model
