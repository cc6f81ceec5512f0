// Multi-token-prediction layers, where a model is used without them.
#pragma once

#include "trireme/model/model_spec.h"

namespace trireme::model {

/// The model without its multi-token-prediction layers, which lie after the head and take no part in the logits: what
/// evaluation, generation and, until they are trained, training work on. The config says so. Parameters keep their indices.
ModelSpec without_mtp(const ModelSpec& spec);

}  // namespace trireme::model
