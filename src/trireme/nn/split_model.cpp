#include "trireme/nn/split_model.h"

#include "trireme/base/error.h"

namespace trireme::nn {

SplitModel::SplitModel(Model& model) {
  const model::ModelSpec& spec = model.spec();
  const ParameterStore& store = model.store();
  TRIREME_CHECK(spec.tensor.is_cut(), "a model that one rank has all of is not split");
  for (int index = 0; index < model.num_parts(); ++index) {
    if (!store.has_part(index)) continue;
    switch (spec.parts[static_cast<size_t>(index)].kind) {
      case model::PartKind::kEmbedding:
        embedding_ = std::make_unique<SplitEmbedding>(store, index);
        break;
      case model::PartKind::kHead:
        head_ = std::make_unique<SplitHead>(store, index);
        break;
      case model::PartKind::kAttention:
      case model::PartKind::kMlp:
        parts_[index] = std::make_unique<SplitPart>(store, model.part(index));
        break;
      default:
        TRIREME_CHECK(false, "{} is not split", spec.parts[static_cast<size_t>(index)].name);
    }
  }
}

}  // namespace trireme::nn
