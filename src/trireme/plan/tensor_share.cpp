#include "trireme/plan/tensor_share.h"

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

using model::Role;

/// Equal stretches along a dimension, each on ranks / pieces neighbouring ranks; one piece: every rank has all of it.
struct Cut {
  size_t dim = 0;
  int64_t pieces = 1;
};

/// The role that a parameter is cut as: a bias as the weight that it belongs to. Biases follow as many weights (Linear).
Role role_of_cut(const model::ModelSpec& spec, size_t parameter) {
  size_t first = parameter;
  while (spec.parameters[first].role == Role::kBias) {
    TRIREME_CHECK(first > 0 && spec.parameters[first - 1].part == spec.parameters[parameter].part,
                  "{} has no weight before it", spec.parameters[parameter].name);
    --first;
  }
  size_t last = parameter;
  while (last < spec.parameters.size() && spec.parameters[last].role == Role::kBias &&
         spec.parameters[last].part == spec.parameters[parameter].part)
    ++last;
  if (first == parameter) return spec.parameters[parameter].role;
  return spec.parameters[parameter - (last - first - 1)].role;
}

Cut cut_of(const model::ModelSpec& spec, size_t index, int64_t ranks) {
  const model::ParameterSpec& parameter = spec.parameters[index];
  const int layer = spec.parts[static_cast<size_t>(parameter.part)].layer;
  const size_t last_dim = parameter.shape.size() - 1;
  switch (role_of_cut(spec, index)) {
    case Role::kTokenEmbedding:
    case Role::kHead:
    case Role::kQuery:
    case Role::kSink:
    case Role::kGate:
    case Role::kUp:
    case Role::kKeyValueUp:
      return {0, ranks};
    case Role::kKey:
    case Role::kValue: {
      const int64_t heads = spec.layers[static_cast<size_t>(layer)].attention.num_kv_heads;
      return {0, std::min(heads, ranks)};
    }
    case Role::kAttentionOut:
    case Role::kDown:
      if (parameter.role == Role::kBias) return {};  // added once to the sum
      return {last_dim, ranks};
    default:
      return {};
  }
}

}  // namespace

void cut_tensor(model::ModelSpec& spec, int64_t ranks, int64_t place) {
  TRIREME_CHECK(!spec.tensor.is_cut() && place >= 0 && place < ranks, "share {} of {}", place,
                ranks);
  if (ranks == 1) return;
  std::vector<Cut> cuts;
  cuts.reserve(spec.parameters.size());
  for (size_t i = 0; i < spec.parameters.size(); ++i) cuts.push_back(cut_of(spec, i, ranks));
  for (size_t i = 0; i < spec.parameters.size(); ++i) {
    const Cut& cut = cuts[i];
    spec.parameters[i].cut(cut.dim, cut.pieces, place / (ranks / cut.pieces));
  }
  for (model::LayerSpec& layer : spec.layers) {
    model::AttentionSpec& attention = layer.attention;
    attention.num_heads /= ranks;
    attention.num_kv_heads = std::max<int64_t>(attention.num_kv_heads / ranks, 1);
    if (attention.latent) attention.num_kv_heads = attention.num_heads;
    layer.mlp.hidden /= ranks;
  }
  spec.tensor = {ranks, place};
}

void join_tensor(model::ModelSpec& spec) {
  if (!spec.tensor.is_cut()) return;
  const int64_t ranks = spec.tensor.ranks;
  for (model::LayerSpec& layer : spec.layers) {
    layer.attention.num_heads *= ranks;
    if (layer.attention.latent) layer.attention.num_kv_heads = layer.attention.num_heads;
    layer.mlp.hidden *= ranks;
  }
  for (const model::ParameterSpec& parameter : spec.parameters) {
    if (parameter.role != Role::kKey) continue;
    const int layer = spec.parts[static_cast<size_t>(parameter.part)].layer;
    model::AttentionSpec& attention = spec.layers[static_cast<size_t>(layer)].attention;
    attention.num_kv_heads = parameter.whole_shape().front() / attention.head_dim;
  }
  spec.tensor = {};
}

int64_t tensor_holders(const model::ModelSpec& spec, int parameter) {
  if (!spec.tensor.is_cut()) return 1;
  const model::ParameterSpec& of = spec.parameters[static_cast<size_t>(parameter)];
  if (!of.shard) return spec.tensor.ranks;
  const size_t dim = of.shard->dim;
  return spec.tensor.ranks * of.shape[dim] / of.shard->whole[dim];
}

bool has_shared_gradient(const model::ModelSpec& spec, int parameter) {
  if (tensor_holders(spec, parameter) == 1) return false;
  const auto index = static_cast<size_t>(parameter);
  if (spec.parameters[index].shard) return true;  // heads of keys and values
  if (spec.parameters[index].role == Role::kPositionEmbedding) return false;
  const Role role = role_of_cut(spec, index);
  return role != Role::kAttentionOut && role != Role::kDown;
}

std::vector<int> shared_gradients(const model::ModelSpec& spec, int part, int64_t holders) {
  std::vector<int> parameters;
  for (size_t i = 0; i < spec.parameters.size(); ++i) {
    const auto index = static_cast<int>(i);
    if (spec.parameters[i].part == part && tensor_holders(spec, index) == holders &&
        has_shared_gradient(spec, index))
      parameters.push_back(index);
  }
  return parameters;
}

int64_t num_shared_gradients(const model::ModelSpec& spec, int part, int64_t holders) {
  int64_t elements = 0;
  for (const int parameter : shared_gradients(spec, part, holders))
    elements += spec.parameters[static_cast<size_t>(parameter)].numel();
  return elements;
}

}  // namespace trireme::plan
