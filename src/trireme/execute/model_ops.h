// Which ops (kernels/ops.h, moe_ops.h) a model needs.
#pragma once

#include <set>
#include <string>

#include "trireme/model/model_spec.h"

namespace trireme::execute {

/// Of the parts that plan::recorded_work() has recorded: attentions and dense MLPs. Whoever records wants kernels of them that can
/// be (kernels::Recordable).
std::set<std::string> recorded_ops(const model::ModelSpec& spec);

/// Of training steps with AdamW, or with Muon, which takes matrices from it.
std::set<std::string> training_ops(const model::ModelSpec& spec, bool muon);

}  // namespace trireme::execute
