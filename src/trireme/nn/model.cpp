#include "trireme/nn/model.h"

#include <utility>

#include "trireme/base/error.h"

namespace trireme::nn {
namespace {

bool same(const model::RotarySpec& a, const model::RotarySpec& b) {
  return a.theta == b.theta && a.dim == b.dim && a.scaling == b.scaling && a.factor == b.factor &&
         a.low_freq_factor == b.low_freq_factor && a.high_freq_factor == b.high_freq_factor &&
         a.original_max_positions == b.original_max_positions;
}

}  // namespace

Model::Model(const ParameterStore& store) : store_(store) {
  std::vector<std::shared_ptr<RotaryTable>> tables;
  const auto table_for =
      [&tables](const std::optional<model::RotarySpec>& spec) -> std::shared_ptr<RotaryTable> {
    if (!spec) return nullptr;
    for (const auto& table : tables) {
      if (same(table->spec(), *spec)) return table;
    }
    tables.push_back(std::make_shared<RotaryTable>(*spec));
    return tables.back();
  };

  const model::ModelSpec& spec = store.spec();
  const auto add = [this](auto part) {
    auto* raw = part.get();
    parts_.push_back(std::move(part));
    return raw;
  };
  for (int i = 0; i < static_cast<int>(spec.parts.size()); ++i) {
    const model::PartSpec& part = spec.parts[i];
    switch (part.kind) {
      case model::PartKind::kEmbedding:
        embedding_ = add(std::make_unique<EmbeddingPart>(store, i));
        break;
      case model::PartKind::kAttention:
        attention_.push_back(add(std::make_unique<AttentionPart>(
            store, i, table_for(spec.layers[part.layer].attention.rotary))));
        break;
      case model::PartKind::kMlp:
        mlp_.push_back(add(std::make_unique<MlpPart>(store, i)));
        break;
      case model::PartKind::kHead:
        head_ = add(std::make_unique<HeadPart>(store, i));
        break;
    }
  }
  TRIREME_CHECK(embedding_ && head_, "a model needs an embedding and a head");
}

}  // namespace trireme::nn
