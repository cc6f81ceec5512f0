#include "trireme/nn/model.h"

#include <utility>

#include "trireme/base/error.h"

namespace trireme::nn {
Model::Model(const ParameterStore& store) : store_(store) {
  std::vector<std::shared_ptr<RotaryTable>> tables;
  const auto table_for =
      [&tables,
       &store](const std::optional<model::RotarySpec>& spec) -> std::shared_ptr<RotaryTable> {
    if (!spec) return nullptr;
    for (const auto& table : tables) {
      if (table->spec() == *spec) return table;
    }
    tables.push_back(std::make_shared<RotaryTable>(*spec, store.device()));
    return tables.back();
  };

  const model::ModelSpec& spec = store.spec();
  const PartScope scope = spec.tensor.is_cut() ? PartScope::kProducts : PartScope::kWhole;
  // A part that is not here keeps its place.
  const auto add = [&](int index, auto make) {
    using Made = typename decltype(make())::pointer;
    Made raw = nullptr;
    parts_.emplace_back();
    if (store.has_part(index)) {
      auto part = make();
      raw = part.get();
      parts_.back() = std::move(part);
    }
    return raw;
  };
  for (int i = 0; i < static_cast<int>(spec.parts.size()); ++i) {
    const model::PartSpec& part = spec.parts[i];
    switch (part.kind) {
      case model::PartKind::kEmbedding:
        embedding_ = add(i, [&] { return std::make_unique<EmbeddingPart>(store, i); });
        break;
      case model::PartKind::kAttention:
        attention_.push_back(add(i, [&] {
          return make_attention_part(store, i, table_for(spec.layers[part.layer].attention.rotary),
                                     scope);
        }));
        break;
      case model::PartKind::kMlp:
        feed_forward_.push_back(
            {add(i, [&] { return std::make_unique<MlpPart>(store, i, scope); })});
        break;
      case model::PartKind::kRouter:
        feed_forward_.push_back({add(i, [&] { return std::make_unique<RouterPart>(store, i); })});
        break;
      case model::PartKind::kDispatch:
        feed_forward_.back().push_back(
            add(i, [&] { return std::make_unique<DispatchPart>(store, i); }));
        break;
      case model::PartKind::kExperts:
        feed_forward_.back().push_back(
            add(i, [&] { return std::make_unique<ExpertsPart>(store, i); }));
        break;
      case model::PartKind::kCombine:
        feed_forward_.back().push_back(
            add(i, [&] { return std::make_unique<CombinePart>(store, i); }));
        break;
      case model::PartKind::kHead:
        head_ = add(i, [&] { return std::make_unique<HeadPart>(store, i); });
        heads_[i] = head_;
        break;
      case model::PartKind::kMtpInput:
        add(i, [&] { return std::make_unique<MtpInputPart>(store, i); });
        break;
      case model::PartKind::kMtpHead:
        heads_[i] = add(i, [&] { return std::make_unique<HeadPart>(store, i); });
        break;
      default:
        TRIREME_CHECK(false, "{}: no such part", part.name);
    }
  }
}

at::Tensor Model::feed_forward(int layer, const at::Tensor& hidden, const BatchTensors& batch) {
  at::Tensor state = hidden;
  for (Part* part : feed_forward_[static_cast<size_t>(layer)])
    state = part->forward(state, batch, false, SaveMode::kAll).output;
  return state;
}

}  // namespace trireme::nn
