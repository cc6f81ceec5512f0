// Runs the programs of all ranks together in event time: where they wait for one another, and what communication costs beside
// computation. Pure and deterministic.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "trireme/plan/simulate.h"

namespace trireme::plan {

/// Links between blocks of consecutive ranks: NVLink inside a node, a network between nodes.
struct LinkTier {
  int ranks =
      0;  ///< of a block; 0: any number. A group uses the first tier that has all its members in one block
  double latency_s = 0.0;
  double bytes_per_s = 1e10;  ///< of a rank, in each direction at once
};

/// What a rank gives to, and gets from, others in a transfer.
struct TransferBytes {
  double sent = 0.0;
  double received = 0.0;
};
/// Of an instruction on Resource::kCommunication: the least that theory allows, which is what comm/ moves.
TransferBytes transfer_bytes(const model::ModelSpec& spec, const Program& program,
                             const Instruction& instruction);

/// What a transfer takes and moves, where links alone do not say it.
struct TransferCost {
  double seconds = 0.0;
  double bytes = 0.0;  ///< sent by a rank
};

struct WorldOptions {
  std::vector<LinkTier> tiers = {{}};  ///< inner ones first; the last one takes every group
  /// A transfer is issued when all compute before it in its program is done (a device that computes in the host's thread), and
  /// not as soon as its inputs are there.
  bool host_computes = false;
  /// Instead of `tiers`; of the instruction of one member, the longest counts.
  std::function<TransferCost(const Program&, const Instruction&)> transfer = {};
};

/// Communication of a rank, by what it is for.
struct CommunicationTime {
  double total_s = 0.0;    ///< union of the intervals
  double exposed_s = 0.0;  ///< of it, what no compute covers
  double bytes = 0.0;      ///< sent
};

struct SimulatedRank {
  Simulation simulation;  ///< of its instructions; step_s is when its last one ends
  CommunicationTime communication;
  std::map<OpKind, CommunicationTime> by_kind;
  double bubble_share = 0.0;  ///< of the world's step, what no compute covers
};

struct WorldStep {
  int rank = 0;
  int instruction = 0;
};

struct WorldSimulation {
  double step_s = 0.0;  ///< when the last rank is done
  std::vector<SimulatedRank> ranks;
  double bubble_share = 0.0;             ///< mean over the ranks
  double hidden_comm_share = 1.0;        ///< of all ranks' communication; 1 where there is none
  std::vector<WorldStep> critical_path;  ///< a chain without a gap to what ends last
};

/// `programs` by rank, of one world; `durations_s` by rank and instruction, those of transfers are not read. A transfer begins
/// when all its members have issued it and their inputs are there, takes latency + the most bytes of a member / bandwidth, and
/// ends for all at once; a rank's queue (of a group; of a pipeline, each direction) runs one at a time. Error{kInternal} if ranks
/// wait for one another for ever or mean different transfers, naming them.
WorldSimulation simulate_world(const model::ModelSpec& spec, const std::vector<Program>& programs,
                               const std::vector<std::vector<double>>& durations_s,
                               const WorldOptions& options);

}  // namespace trireme::plan
