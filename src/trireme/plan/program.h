// Program: one training step of one rank, as data.
//
// A list of instructions in issue order, each with explicit dependencies, a resource, and the
// buffers it makes, uses and frees. The planner simulates it (simulate.h), the executor runs it
// (execute/), the trace shows it: nobody else decides a schedule. Pure: no tensors, no I/O, no
// clock.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trireme/cluster/lane_tree.h"
#include "trireme/model/model_spec.h"
#include "trireme/plan/kernel_workspace.h"
#include "trireme/plan/parallel.h"

namespace trireme::plan {

enum class Recompute { kNone, kSelective, kFull };  ///< of one part

/// Elements of a sum of gradients that are rounded at once, so that what it takes beside them is small.
inline constexpr int64_t kRoundedPiece = int64_t{1} << 20;

/// How one run is laid out. Validated by validate(); every rejection comes with its reason.
struct Strategy {
  int64_t sequences = 1;  ///< global batch, sequences per optimizer step
  int64_t micro = 1;      ///< sequences per forward pass
  int64_t lanes = 1;      ///< lanes of the exact reduction; a power of two
  int64_t seq_len = 1;
  Precision precision = Precision::kFp32;
  /// Of the tree of lanes' gradients: in bf16 both operands of an addition and its sum are rounded to it, wherever it is done, so that
  /// they are sent in half the bytes. What a lane adds up of its micro-batches, and what the optimizer reads, is float32.
  Precision gradient_sums = Precision::kFp32;
  std::vector<Recompute> recompute;  ///< one entry per part of the ModelSpec; empty: none
  /// Parts whose kept activations are on the host between forward and backward, where there is time for it; one entry per
  /// part, empty: none.
  std::vector<char> offload_activations;
  /// Optimizer states are kept on the host; those of a part visit the device for its step, and as long before and after it
  /// as memory has room for them.
  bool offload_optimizer = false;
  /// Backward-weight of a micro-batch after all its backward-inputs; not of parts that add to another part's gradients.
  bool delay_weight_gradients = false;
  /// Without a pipeline: so many micro-batches go through the parts in turn, so that what one exchanges lies behind what others
  /// compute; activations of all are held. Where experts are spread, 2: one forward with the one before it backward. Of a tensor
  /// parallel rank, 2: two forward, then both backward; 4: two forward with the two before them backward. 1: none; 0: 2 where
  /// experts are spread, else 1.
  int64_t in_turn = 0;
  /// Attentions and MLPs of a micro-batch are recorded once and run again (recorded_work.h).
  bool record = false;
  /// Under ZeRO 3: layers whose weights come, or are there already, beside the part that is computed with.
  int64_t weights_ahead = 1;
  int64_t loss_chunk_rows = 0;  ///< rows of logits that exist at once; 0: chosen by the builder
  /// Bytes of optimizer state per part; empty: two float32 states a parameter (AdamW).
  std::vector<int64_t> optimizer_state_bytes;
  /// Floats of optimizer state per element, by parameter: what a slice of a part has; empty: two.
  std::vector<int64_t> state_floats;
  /// What the optimizer step of each part holds beside its buffers (Muon's products); empty: nothing.
  std::vector<int64_t> optimizer_workspace_bytes;
  Parallel parallel;  ///< over which ranks
  /// Layers of every pipeline stage, in the model's order; embedding and head go with the first and the last. Empty: cut so that
  /// the stages' FLOPs are balanced.
  std::vector<int64_t> stage_layers = {};
  bool whole_matrices =
      false;  ///< the optimizer updates matrices at once: slices do not cut them (part_slices())
  KernelWorkspace kernels;  ///< what the device's kernels hold while they run
  bool rounds_sums() const { return gradient_sums == Precision::kBf16; }
  /// Of an element of a sum that is sent, or held by who owns it.
  int64_t sum_bytes() const { return rounds_sums() ? 2 : 4; }
  int64_t micro_batches() const { return sequences / micro; }
  int64_t micro_batches_per_lane() const { return sequences / micro / lanes; }
  /// Of a micro-batch on a rank, which has a share of every sequence where ranks share them (context parallelism).
  int64_t tokens() const { return micro * seq_len / parallel.cp; }
  /// Of the tree of additions: lanes, each in as many adjacent ones as ranks share its sequences.
  int64_t leaves() const { return lanes * parallel.cp; }
  /// Ranks that have the same parameters and share their states.
  int64_t owners() const { return parallel.sharing() * parallel.cp; }
};

enum class OpKind {
  kLoadBatch,  ///< next micro-batch from the loader to the device
  kForward,  ///< of a part, for a micro-batch; of a head that multi-token prediction goes on from, its norm
  kRecompute,       ///< forward again from the saved input
  kLoss,            ///< a head: chunked logits, loss, their gradient, the head's weight gradient
  kBackwardInput,   ///< gradient of a part's input
  kBackwardWeight,  ///< gradients of a part's parameters, added to the lane's accumulator
  kCombineLanes,    ///< adds the right lane group's partial sums of a part to the left's; frees the
                    ///< right
  kCountTargets,    ///< how many targets all ranks' micro-batches have
  /// Slices of a part's partial sums go to the ranks that own them: see Instruction::pieces
  kReduceGradients,
  kCombinePieces,    ///< the owner adds them to its slice, as the tree of lanes says
  kGatherGradients,  ///< owners' slices become a part's whole gradient again
  kSumSquares,       ///< of the blocks of all slices that this rank owns
  kReduceFigures,    ///< losses of lanes, sums of squares and routers' statistics of all ranks
  kGradNorm,         ///< global norm over all parts, in fixed order
  kOptimizerStep,    ///< of a part's parameters
  /// Owners' weights of a part become whole everywhere. Of one that is held whole: the new ones of the step before, beside this
  /// one's forward pass. Under ZeRO 3 all others, for some uses, in a buffer of their own (weight_gathers.h).
  kGatherParameters,
  /// ZeRO 3: weights that came because other ranks use them are given up; computes nothing.
  kReleaseParameters,
  /// Expert parallelism: how many rows of a micro-batch every expert gets, from the rank of its tokens to that of the expert.
  kExchangeCounts,
  /// Expert parallelism: rows of a micro-batch, or their gradients (`of_gradient`), to the ranks that have their experts (phase 1)
  /// and back (phase 2). All ranks of the group exchange those of their own micro-batch at once.
  kExchangeRows,
  // Tensor parallel ranks (tensor_writer.h), `of_gradient` on the way back:
  kGatherTokens,  ///< all ranks' tokens of what `uses` names first, in the order of the ranks
  kScatterSums,   ///< of every rank's partial sum over all tokens the rows of this rank's tokens
  kGatherRows,  ///< a loss's statistics of some rows of logits, of every rank's slice of the vocabulary
  kShareGradients,  ///< of what ranks of the group hold alike, each one's share of a part's gradient, to all of them
  kAddShares,  ///< adds them in the order of the ranks
  kSend,  ///< a part's hidden state, or its gradient, to the rank of the next, or last, pipeline stage
  kReceive,  ///< the same, from there
  /// Context parallelism: an attention's keys and values, or their gradients (Instruction::of_gradient), to the ranks that share
  /// its sequences
  kExchangeContext,
  kOffload,  ///< copies buffers of a part to the host; their device bytes go when a later instruction releases them
  kReload,   ///< makes room for buffers of a part on the device and copies them back
  kCommit    ///< the step is done: counters, metrics
};
const char* to_string(OpKind kind);

/// One queue each; kCommunication one for every group.
enum class Resource {
  kHost,
  kCompute,
  kCopyOut,       ///< device to host
  kCopyIn,        ///< host to device
  kCommunication  ///< over Instruction::group
};
const char* to_string(Resource resource);
inline bool is_copy(Resource resource) {
  return resource == Resource::kCopyOut || resource == Resource::kCopyIn;
}

enum class BufferKind {
  kBatch,   ///< integers of a micro-batch; freed after the embedding's backward-weight
  kHidden,  ///< output of a part; the saved input of the next one, freed by its backward-input
  kSaved,   ///< what a part's backward needs: one buffer that backward-input frees, one that
            ///< backward-weight frees
  kHiddenGradient,     ///< gradient of a part's output; freed by the part's backward-weight
  kParameterGradient,  ///< float32 gradients of a part: a lane's, then a group of lanes'
  kGradientPieces,  ///< all ranks' partial sums of an owner's slice of a part; what is sent of them, if it is another type's
  kGradientSlice,   ///< the owner's sum of a slice over a node of lanes
  kDelayed,         ///< made by backward-input for backward-weight
  kOptimizerState,  ///< a part's states while they visit the device; made by kReload
  kTokens,  ///< tensor parallel: what a part's phases and the exchanges between them hand on
  kSharedGradients,  ///< tensor parallel: ranks' gradients of what they hold alike of a part
  kReplicaSlice,  ///< hybrid sharding: the sum over all lanes of what a replica adds up of an owner's slice
  kGatheredWeights,  ///< ZeRO 3: what products read of a part, while it is whole; made by kGatherParameters
  /// Expert parallelism, made by kExchangeRows: of a dispatch the rows that this rank's experts get, of experts what others made of
  /// the own tokens' rows.
  kExchangedRows,
  kExchangedGradient,  ///< the same of gradients: of experts those that come to them, of a dispatch those that come back
  kContextKeys,  ///< an attention's keys and values of all places of the sequences; made by kExchangeContext
  kContextGradients  ///< gradients of keys and values on their way: to the ranks that have them, or from all ranks
};
const char* to_string(BufferKind kind);

/// A piece of memory with a lifetime: made by one instruction, freed after another.
struct Buffer {
  int id = 0;
  BufferKind kind;
  int part = -1;
  int64_t micro_batch = -1;  ///< -1 for parameter gradients
  int64_t lane = -1;         ///< parameter gradients only
  int64_t bytes = 0;
  int made_by = -1;
  int freed_after = -1;  ///< -1: lives on after the step
  // Where it lives in between, if it is offloaded: on the device and on the host while it is copied out, on the host alone
  // from `released_before` on, on the device again from the start of `reloaded_by`. Optimizer states come from the host
  // and end there: their `reloaded_by` is `made_by`, and `released_before` is their end on the device. Where that is -1,
  // the copy out runs on into the next step, which finds the buffer as one that is carried in.
  int offloaded_by = -1;     ///< kOffload; -1: never leaves the device
  int released_before = -1;  ///< the instruction that begins by giving up its device bytes
  int reloaded_by = -1;      ///< kReload
  /// Of the step before, whose instruction `offloaded_by` copies it out: there when the step begins, until
  /// `released_before`.
  bool is_carried_in() const {
    return kind == BufferKind::kOptimizerState && made_by < 0 && offloaded_by >= 0;
  }
};

/// A partial sum of a part's gradient whose slices one rank sends to their owners.
struct Piece {
  cluster::LaneNode node;
  int from = 0;  ///< place of the rank in the group
};

struct Instruction {
  int id = 0;  ///< index in Program::instructions
  OpKind kind;
  Resource resource = Resource::kCompute;
  int part = -1;
  int64_t micro_batch = -1;
  int64_t lane = -1;        ///< the lane; of kCombineLanes the left group's first lane
  int64_t right_lane = -1;  ///< kCombineLanes: the right group's first lane
  Recompute recompute = Recompute::kNone;
  std::vector<int> depends_on;  ///< instruction ids, all smaller than id
  std::vector<int> makes;       ///< buffer ids
  std::vector<int> uses;
  std::vector<int> frees;  ///< dead once this instruction is done
  std::vector<int> moves;  ///< kOffload, kReload: the buffers that are copied
  /// Offloaded buffers whose device bytes are given up before this instruction begins; it depends on their kOffload. The
  /// wait bounds what is held however slow the copies are.
  std::vector<int> releases;
  int64_t workspace_bytes = 0;  ///< extra memory held only while it runs
  double flops = 0.0;
  int group = -1;  ///< kCommunication: index in Program::groups
  int peer = -1;   ///< kSend, kReceive: the other rank's place in the group
  /// Which piece of a part's work it is, from 1, where exchanges with other ranks cut it; 0: all of it.
  int phase = 0;
  bool of_gradient =
      false;  ///< kSend, kReceive: of the part's output's gradient, not of its output
  /// kReduceGradients, kCombinePieces, kGatherGradients: among the replicas of a slice, whose blocks of ranks have each summed
  /// up their own lanes.
  bool of_replicas = false;
  /// kReduceGradients, and the kCombinePieces after it: in ascending order of lanes. A rank sends its own in this order.
  std::vector<Piece> pieces;
};

/// Elements of a block of squares; what kernels::squares_by_block() takes.
inline constexpr int64_t kSquaresBlock = 1024;

/// A stretch of a part's flat elements in which blocks of squares count from its beginning (shards.h).
struct SquaresRange {
  int64_t first = 0;
  int64_t elements = 0;
  int64_t holders =
      1;  ///< tensor parallel ranks, next to one another, that hold the same; the first of them counts it
  bool operator==(const SquaresRange&) const = default;
  int64_t blocks() const { return (elements + kSquaresBlock - 1) / kSquaresBlock; }
};

/// Expert parallelism: a micro-batch as the ranks see it that have its experts, for each of the ranks that share its sequences.
struct ExpertSource {
  int64_t leaf = 0;  ///< to which its gradients are added
  int64_t micro_batch = 0;
};

/// Parts [first, end) of the model, on the rank with that place in the pipeline.
struct PipelineStage {
  int first_part = 0;
  int end_part = 0;
  int rank = 0;
  bool operator==(const PipelineStage&) const = default;
};

struct Program {
  Strategy strategy;  ///< as built: loss_chunk_rows chosen, recompute filled in
  std::vector<Instruction> instructions;
  std::vector<Buffer> buffers;
  int rank = 0;
  std::vector<char> has_part;  ///< by part: whether this rank computes it; empty: all
  bool has(int part) const { return has_part.empty() || has_part[static_cast<size_t>(part)] != 0; }
  std::vector<PipelineStage> stages;  ///< in the order of the model; empty: no pipeline
  /// Place in the pipeline of the rank that computes a part.
  int pipeline_rank_of(int part) const;
  /// Of this rank, in the order in which it computes them; leaves of the tree: lane l of the rank at place c of those that share
  /// its sequences is leaf l cp + c, and so it is in buffers and instructions.
  std::vector<int64_t> lanes;
  int context = 0;  ///< place of this rank among those that share its sequences
  int64_t leaf_of(int64_t micro_batch) const {
    return micro_batch / strategy.micro_batches_per_lane() * strategy.parallel.cp + context;
  }
  /// Members of each group that talks, ascending; the same list on every rank, of the whole world first.
  std::vector<std::vector<int>> groups;
  /// By part: boundaries of the slices of the ranks that share its states; {0, elements} where nobody shares.
  std::vector<std::vector<int64_t>> slices;
  std::vector<std::vector<SquaresRange>>
      squares;  ///< by part: squares_ranges() of what the rank has of it
  /// Of a part whose experts are spread, by part: of the whole part; empty of others.
  std::vector<std::vector<SquaresRange>> whole_squares;
  int slice = 0;  ///< this rank's place among them; of experts: see slice_of()
  /// Expert parallelism: the place among the ranks that have the same experts, and the lanes whose rows these get, in the order in
  /// which they are computed. Empty: every rank has all experts.
  int expert_slice = 0;
  std::vector<int64_t> expert_lanes;
  std::vector<char> is_expert_part;  ///< by part: whether its parameters are spread so; empty: none
  bool spreads(int part) const {
    return !is_expert_part.empty() && is_expert_part[static_cast<size_t>(part)] != 0;
  }
  /// By micro-batch of this rank, in order: those whose rows come to its experts at the same time, of every rank of the group; its own
  /// is at expert_source().
  std::vector<std::vector<ExpertSource>> exchanged_micro_batches() const;
  size_t expert_source() const;
  int slice_of(int part) const { return spreads(part) ? expert_slice : slice; }
  /// Who share a part's states leave its sums to the transport (Reduction::kFast).
  bool adds_in_transport(int part) const {
    return strategy.parallel.reduction == Reduction::kFast &&
           slices[static_cast<size_t>(part)].size() > 2;
  }
  /// The lane whose accumulator takes a part's gradients of `lane`: where nobody needs lanes apart, the rank's first.
  int64_t accumulator_of(int part, int64_t lane) const {
    return adds_in_transport(part) && strategy.parallel.zero < 2 ? first_lane(part) : lane;
  }
  /// The first lane that the rank computes a part for.
  int64_t first_lane(int part) const {
    return spreads(part) ? expert_lanes.front() : lanes.front();
  }
  /// Hybrid sharding: this rank's block among those that have all states each, and by part the boundaries, in its slice, of what
  /// each of the slice's replicas adds up of it. Empty where there is one block.
  int replica = 0;
  std::vector<std::vector<int64_t>> replica_slices;
  /// The lanes that this rank's block computes.
  cluster::LaneRange block_lanes() const;
  /// Numbers of this rank's micro-batches in the global batch, in the order in which it computes them.
  std::vector<int64_t> micro_batches() const;
  int64_t resident_bytes = 0;  ///< parameters, master copies, optimizer state, tables: always held
  int64_t recorded_bytes = 0;  ///< of it, what recorded work holds
  int64_t host_resident_bytes = 0;  ///< optimizer states that are kept on the host
};

/// Whether a copy out may end after the step: the next step gives its buffers up.
bool runs_on(const Program& program, const Instruction& copy);
/// Parts whose states are still on the device when the step begins; in order.
std::vector<int> parts_carried_in(const Program& program);

/// Recompute of every part from a run file's list: "none", "selective" or "full" for all parts, or
/// entries "part[:mode]" with a part's name ("layer.3.mlp"), its kind ("mlp"), or its layer
/// ("layer.3"), and full as the mode if none is given; later entries win. Error{kConfig} for an
/// unknown name.
std::vector<Recompute> recompute_from_names(const model::ModelSpec& spec,
                                            const std::vector<std::string>& names);
/// Strategy::offload_activations from a run file's list: "none" or "all" parts, or entries with a part's name
/// ("layer.3.mlp"), its kind ("attention", "mlp", "experts" ...) or its layer ("layer.3"). Error{kConfig} for an unknown
/// name, and for embedding and heads.
std::vector<char> offload_from_names(const model::ModelSpec& spec,
                                     const std::vector<std::string>& names);
const char* to_string(Recompute recompute);
/// By part, for model::flops_per_token(): whether its whole forward runs again.
std::vector<bool> recomputed_parts(const model::ModelSpec& spec, const Strategy& strategy);
const char* to_string(Precision precision);

/// Rows of logits that exist at once where the strategy leaves the choice: about 32 MiB of float32,
/// and never the whole micro-batch.
int64_t choose_loss_chunk_rows(const model::ModelSpec& spec, const Strategy& strategy);

/// Reasons why this strategy cannot run this model; empty if it can.
std::vector<std::string> validate(const model::ModelSpec& spec, const Strategy& strategy);

/// Builds the program of one step on one rank of strategy.parallel. Throws Error{kConfig} with validate()'s first
/// reason.
Program build_program(const model::ModelSpec& spec, const Strategy& strategy, int rank = 0);

/// Lanes of data-parallel rank `index` of `ranks`, in the order in which it computes them. Contiguous, so that a rank combines
/// what it can before it sends; under ZeRO 2 and 3, which send lane by lane, the ranks of a block that shares states take turns,
/// so that what an owner has is combined at once; so they are where ranks share sequences, whose leaves are never neighbours.
std::vector<int64_t> lanes_of(const Strategy& strategy, int64_t index, int64_t ranks);
/// The same as leaves, of the rank at place `context` of those that share its sequences.
std::vector<int64_t> leaves_of(const Strategy& strategy, int64_t index, int64_t ranks,
                               int64_t context);

/// Of a part on a tensor parallel rank: its phases between the exchanges before and after its products, the first of which is phase 2;
/// the same each way. Several of an attention whose keys other ranks have.
int product_phases(const model::ModelSpec& spec, const Strategy& strategy, int part);

/// One instruction's name, e.g. "forward layer.3.mlp micro-batch 2 (lane 1)".
std::string describe(const model::ModelSpec& spec, const Instruction& instruction);

}  // namespace trireme::plan
