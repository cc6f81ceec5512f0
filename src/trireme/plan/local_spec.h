// What one rank has of a model's parameters. Pure.
#pragma once

#include "trireme/model/model_spec.h"
#include "trireme/plan/parallel.h"

namespace trireme::plan {

/// Whether ranks of such a layout have stretches of parameters.
inline bool is_cut(const Parallel& parallel) {
  return parallel.ep > 1 || parallel.tp > 1;
}
/// The model with the parameters as they are on rank `rank`: of those that ranks share among them its stretch
/// (ParameterSpec::shard), of experts' stacks along dimension 0. Layers say what they say of the whole model: how many
/// experts a router chooses from; over tensor parallel ranks they are the rank's (cut_tensor()). `parallel` is valid for the model.
model::ModelSpec local_spec(const model::ModelSpec& whole, const Parallel& parallel, int rank);
/// The model that any rank's is a part of.
model::ModelSpec whole_spec(const model::ModelSpec& local);

}  // namespace trireme::plan
