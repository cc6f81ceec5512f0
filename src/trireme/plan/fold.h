// A world of many ranks as one rank of every pipeline stage: data, tensor, context and expert parallel ranks do the same. Pure.
//
// The folded programs are build_program()'s, of a world whose data parallel size is 2 where ranks share gradients and 1 where they
// do not; what the other replicas would add is in the cost of the transfers. Equal to the unfolded world as long as ranks of a stage
// take the same time (fold_test.cpp compares).
#pragma once

#include <vector>

#include "trireme/plan/part_work.h"
#include "trireme/plan/program.h"

namespace trireme::plan {

struct FoldedWorld {
  std::vector<Program>
      programs;  ///< by pipeline stage's rank; groups have members of the folded world only
  int64_t micro_batches = 1;  ///< of a rank, in these programs
};

/// How many micro-batches a rank has in the whole run: sequences / (micro x dp). Error{kConfig} if it is not a whole number.
int64_t rank_micro_batches(const Strategy& strategy);

/// Numbers of micro-batches from which the step time of any larger number follows, because the schedule repeats: two, ascending,
/// or one, where the run itself has no more.
std::vector<int64_t> sample_micro_batches(const Strategy& strategy);

/// The programs of the folded world with `micro_batches` a rank. Error{kConfig} with the reason if the model cannot run so.
FoldedWorld fold(const model::ModelSpec& spec, const Strategy& strategy, int64_t micro_batches);

/// Rewrites of a program for software that does less beside computation, or more; what waits for what changes, never what is
/// computed.
void postpone_reductions(Program& program);  ///< gradients are reduced after the last backward
void wait_for_gathers(Program& program);     ///< no forward begins before all new weights are there
void sum_in_transfers(
    Program& program);  ///< the collective adds pieces up, no computation waits for them
void gather_every_part(const model::ModelSpec& spec,
                       Program& program);  ///< ZeRO 3: parameters come and go

}  // namespace trireme::plan
