#include "trireme/plan/local_spec.h"

#include "trireme/cluster/mesh.h"
#include "trireme/plan/tensor_share.h"

namespace trireme::plan {

model::ModelSpec local_spec(const model::ModelSpec& whole, const Parallel& parallel, int rank) {
  model::ModelSpec spec = whole;
  if (!is_cut(parallel)) return spec;
  const cluster::Mesh mesh(mesh_shape(parallel));
  cut_tensor(spec, parallel.tp, mesh.coordinates(rank).tp);
  if (parallel.ep == 1) return spec;
  const int64_t place = mesh.expert_coordinates(rank).ep;
  for (model::ParameterSpec& parameter : spec.parameters) {
    if (parameter.is_expert()) parameter.cut(0, parallel.ep, place);
  }
  return spec;
}

model::ModelSpec whole_spec(const model::ModelSpec& local) {
  model::ModelSpec spec = local;
  join_tensor(spec);
  for (model::ParameterSpec& parameter : spec.parameters) {
    parameter.shape = parameter.whole_shape();
    parameter.shard.reset();
  }
  return spec;
}

}  // namespace trireme::plan
