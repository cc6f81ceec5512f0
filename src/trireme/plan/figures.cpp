#include "trireme/plan/figures.h"

#include "trireme/cluster/mesh.h"
#include "trireme/plan/shards.h"

namespace trireme::plan {

FigureLayout figure_layout(const model::ModelSpec& spec, const Program& program, int rank) {
  FigureLayout layout;
  const cluster::Mesh mesh(mesh_shape(program.strategy.parallel));
  const int data = mesh.index_in_group(cluster::Dimension::kData, rank);
  const SlicePlace mine = slice_place(program, mesh, rank);
  const int place = mesh.coordinates(rank).pp;
  const Parallel& parallel = program.strategy.parallel;
  const auto lanes = static_cast<int64_t>(lanes_of(program.strategy, data, parallel.dp).size());
  if (program.pipeline_rank_of(spec.head_part()) == place)
    layout.losses = lanes * (1 + spec.num_mtp_layers);
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
    if (!mine.has_squares || program.pipeline_rank_of(part) != place) continue;
    for (const BlockRange& blocks : blocks_on_rank(spec, program, part, mine))
      layout.squares +=
          static_cast<int64_t>(squares_nodes(blocks, num_blocks_of_part(program, part)).size());
  }
  for (int at = 0; at < static_cast<int>(spec.parts.size()); ++at) {
    const model::PartSpec& part = spec.parts[static_cast<size_t>(at)];
    if (part.kind != model::PartKind::kRouter || program.pipeline_rank_of(at) != place) continue;
    const model::MoeSpec& moe = spec.layers[static_cast<size_t>(part.layer)].moe.value();
    layout.routers += lanes * (moe.num_experts + kRouterFigures);
  }
  return layout;
}

}  // namespace trireme::plan
