#include "trireme/nn/attention_part.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/nn/grouped_attention_part.h"
#include "trireme/nn/latent_attention_part.h"

namespace trireme::nn {

AttentionPart::AttentionPart(const ParameterStore& store, int part,
                             std::shared_ptr<RotaryTable> rotary, PartScope scope)
    : spec_(store.spec().parts[part]),
      attention_(store.spec().layers[spec_.layer].attention),
      scope_(scope),
      parameters_(store.part_parameters(part)),
      norms_(of_scope(
          scope, PartNorms(store, store.spec().layers[spec_.layer].attention_norm,
                           store.spec().layers[spec_.layer].attention_post_norm, parameters_))),
      out_(store, parameters_, {model::Role::kAttentionOut}),
      rotary_(std::move(rotary)) {
  TRIREME_CHECK(attention_.rotary.has_value() == (rotary_ != nullptr), "{}: rotary table missing",
                spec_.name);
  if (attention_.sinks) {
    place_of_sinks_ = place_of(store, model::Role::kSink);
    TRIREME_CHECK(place_of_sinks_ >= 0, "{}: sinks missing", spec_.name);
    sinks_ = store.compute(parameters_[static_cast<size_t>(place_of_sinks_)]);
  }
}

at::Tensor AttentionPart::project_out(const at::Tensor& attended, const at::Tensor& x) const {
  return scope_ == PartScope::kWhole ? out_.forward(attended, x)
                                     : out_.forward_without_bias(attended);
}

int AttentionPart::place_of(const ParameterStore& store, model::Role role) const {
  const auto found = std::ranges::find_if(parameters_, [&](int parameter) {
    return store.spec().parameters[static_cast<size_t>(parameter)].role == role;
  });
  return found == parameters_.end() ? -1 : static_cast<int>(found - parameters_.begin());
}

kernels::AttentionOptions AttentionPart::options(const BatchTensors* batch) const {
  kernels::AttentionOptions options;
  options.scale = attention_.scale;
  options.window = attention_.window;
  options.softcap = attention_.softcap;
  if (sinks_.defined()) options.sinks = sinks_.to(at::kFloat);
  // Where every row is one document this is plain causal attention.
  if (batch != nullptr && is_cut(*batch)) options.segments = &batch->segments;
  return options;
}

bool AttentionPart::is_cut(const BatchTensors& batch) {
  return std::ranges::any_of(batch.segments, [](const auto& row) { return row.size() > 1; });
}

std::unique_ptr<PartGraph> AttentionPart::begin(const at::Tensor& /*hidden*/,
                                                const BatchTensors& /*batch*/, SaveMode /*mode*/) {
  TRIREME_CHECK(false, "{}: ranks cannot share its sequences", spec_.name);
}

at::Tensor AttentionPart::finish(const at::Tensor& hidden, const at::Tensor& attended) const {
  const at::Tensor rows = attended.reshape({hidden.size(0) * hidden.size(1), -1});
  const at::Tensor x = hidden.flatten(0, 1);
  if (!norms_.after) return out_.forward(rows, x).view(hidden.sizes());
  NormStatistics unused;
  return norms_.after->forward(out_.forward(rows), false, unused).add_(x).view(hidden.sizes());
}

CachedShape cached_shape(const model::AttentionSpec& attention) {
  if (attention.latent) return {1, attention.latent->kv_rank + attention.latent->rope_dim, 0};
  return {attention.num_kv_heads, attention.head_dim, attention.value_dim};
}

std::unique_ptr<AttentionPart> make_attention_part(const ParameterStore& store, int part,
                                                   std::shared_ptr<RotaryTable> rotary,
                                                   PartScope scope) {
  const int layer = store.spec().parts[static_cast<size_t>(part)].layer;
  if (store.spec().layers[static_cast<size_t>(layer)].attention.latent)
    return std::make_unique<LatentAttentionPart>(store, part, std::move(rotary), scope);
  return std::make_unique<GroupedAttentionPart>(store, part, std::move(rotary), scope);
}

}  // namespace trireme::nn
