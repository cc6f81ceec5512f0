// How the flat elements of a part are shared among data-parallel ranks, and which sums of squares they exchange. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/cluster/lane_tree.h"
#include "trireme/cluster/mesh.h"
#include "trireme/model/model_spec.h"
#include "trireme/plan/program.h"

namespace trireme::plan {

/// The stretches of a part, in order: a parameter, or a matrix of a stack of experts, begins a new one unless whole blocks lie
/// before it that as many ranks hold. So blocks never straddle matrices, and are the same however the part is cut.
std::vector<SquaresRange> squares_ranges(const model::ModelSpec& spec, int part);

int64_t num_blocks(const std::vector<SquaresRange>& ranges);

/// Boundaries of the slices of `owners` ranks in a part's flat elements: owners + 1 values, ascending; slices may be empty.
/// Cuts lie at the beginning of blocks of squares; with `whole_matrices`, what a matrix optimizer updates at once is not cut
/// either (Muon: products inside layers, an expert's on its own).
std::vector<int64_t> part_slices(const model::ModelSpec& spec, int part, int64_t owners,
                                 bool whole_matrices);

/// Ranks that share a part's states: of experts those that have the same ones.
int64_t owners_of(const model::ModelSpec& spec, const Strategy& strategy, int part);

/// Whether a part is whole on a rank only while it is computed with (ZeRO 3). Not one with a selection bias, which is read in
/// float32 and is small.
bool gathers_for_use(const model::ModelSpec& spec, const Strategy& strategy, int part);

/// Whether ranks that share a part's states share its float32 masters too: not where products read them, nor where a selection
/// bias is read in float32.
bool shares_masters(const model::ModelSpec& spec, const Strategy& strategy, int part);

/// Blocks [first, last) of a part's list of blocks.
struct BlockRange {
  int64_t first = 0;
  int64_t last = 0;
};
/// The blocks that begin in elements [first, last) of the part; both are boundaries of part_slices().
BlockRange blocks_of(const std::vector<SquaresRange>& ranges, int64_t first, int64_t last);

/// Where a rank of the world is among those that share states: looked up once, for all parts.
struct SlicePlace {
  int64_t slice = 0;
  bool has_squares =
      false;  ///< in the first block of ranks that have all slices: others have the same ones
  int64_t expert_slice = 0;  ///< of experts that are spread
  int64_t expert_place = 0;  ///< which of them it has
};
SlicePlace slice_place(const Program& program, const cluster::Mesh& mesh, int rank);

/// The blocks of a whole part that the slice of a rank is, ascending. `spec` is the model's or any rank's.
std::vector<BlockRange> blocks_on_rank(const model::ModelSpec& spec, const Program& program,
                                       int part, const SlicePlace& place);
/// Of the whole part.
int64_t num_blocks_of_part(const Program& program, int part);

/// Sums of blocks meet in a binary tree over the part's blocks, filled up with zeros to a power of two. The nodes of that tree
/// that the blocks [first, last) of `count` make up: what their owner hands out. Together with all others' they make one sum
/// (cluster::tree_order()).
std::vector<cluster::LaneNode> squares_nodes(BlockRange blocks, int64_t count);

/// The sums of those nodes, from the sums of the blocks, `sums[0]` of block `blocks.first`.
std::vector<double> sums_of_nodes(const std::vector<cluster::LaneNode>& nodes, BlockRange blocks,
                                  const std::vector<double>& sums);
/// The sum over all nodes of a tree, which come in ascending order and cover it: by the tree.
double sum_of_tree(const std::vector<cluster::LaneNode>& nodes, std::vector<double> sums);

}  // namespace trireme::plan
