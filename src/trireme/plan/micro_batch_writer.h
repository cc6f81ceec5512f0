// Writes the instructions of one micro-batch, part by part; who calls decides their order. Internal to this room.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "trireme/model/flops.h"
#include "trireme/plan/context_writer.h"
#include "trireme/plan/gradient_sums.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/program_writer.h"
#include "trireme/plan/tensor_writer.h"

namespace trireme::plan {

/// The same of a part that tensor parallel ranks share.
struct SplitBuffers {
  int source = ProgramWriter::kNone;      ///< what the exchange that is under way was given
  int brought = ProgramWriter::kNone;     ///< and what it brings
  int gathered = ProgramWriter::kNone;    ///< all tokens of the products' input
  int again = ProgramWriter::kNone;       ///< what it is gathered from a second time
  int gradient = ProgramWriter::kNone;    ///< all tokens of the products' output's gradient
  int statistics = ProgramWriter::kNone;  ///< of the norm before
  int projected = ProgramWriter::kNone;   ///< of the norm after
  bool has_weight = false;                ///< backward-weight is written
};

/// What a micro-batch's instructions hand to one another: buffers, per part.
struct MicroBatch {
  int64_t index = 0;
  int64_t lane = 0;
  bool last_of_lane = false;
  int batch = ProgramWriter::kNone;
  std::vector<int> hidden;
  std::vector<int> hidden_gradient;
  std::vector<int> saved_input;
  std::vector<int> saved_weight;
  std::vector<int> delayed;
  std::vector<int> weight_gradient;  ///< of a router: of its weights
  /// Expert parallelism: the micro-batches whose rows come to this rank's experts at the same time, its own among them, in the order
  /// of their ranks. Of each only what its experts keep.
  std::vector<MicroBatch> sources;
  std::map<int, SplitBuffers> split;  ///< by part
  std::map<int, ContextBuffers> context;
};

/// Ownership: borrows spec, writer and sums. The writer's program has its strategy, as validate() accepts it.
class MicroBatchWriter {
 public:
  /// Fills in what the strategy leaves to be chosen.
  MicroBatchWriter(const model::ModelSpec& spec, ProgramWriter& writer, GradientSums& sums);

  /// Brings the batch to the device. Two batches exist at most.
  void load(int64_t index);
  MicroBatch begin(int64_t index) const;  ///< after its load()
  /// All losses wait for this instruction, which knows how many targets the step has.
  void count_first(int instruction) { counted_ = instruction; }

  void forward(MicroBatch& micro, int part);  ///< any but the last head
  /// A head's loss; of another part, recompute where the strategy says so, and backward-input. Neither of part 0. `with_weight`: its
  /// backward-weight is the next call, and may be written already where it hides an exchange.
  void backward_input(MicroBatch& micro, int part, bool with_weight);
  void backward_weight(MicroBatch& micro, int part);  ///< any with parameters but a head

  /// All parts of pairs of micro-batches, part by part in turn; of a rank whose parts_take_turns().
  using Pair = std::pair<MicroBatch*, MicroBatch*>;
  bool parts_take_turns() const;
  /// To their losses; with the backward of a pair whose losses are there, if one is given.
  void forward_in_turn(Pair pair, std::optional<Pair> backward);
  void backward_in_turn(Pair pair);

  bool has_parameters(int part) const { return sums_.has_parameters(part); }
  /// Whether its backward-weight comes after all backward-inputs. Heads and the input of multi-token prediction write to
  /// accumulators that they share (of the embedding, of the head): they keep their order among them.
  bool delays(int part) const;

 private:
  static constexpr int kNone = ProgramWriter::kNone;

  void forward_experts(MicroBatch& micro, int part);
  void backward_input_experts(MicroBatch& micro, int part);
  void backward_weight_experts(MicroBatch& micro, int part);
  void exchange_counts(MicroBatch& micro, int router);
  void exchange_rows(MicroBatch& micro, int experts, int phase, bool of_gradient);
  /// writer_.read(), and of what was exchanged the end of its sending.
  void read_exchanged(int buffer);
  /// The micro-batch's experts are on other ranks too.
  bool spreads(int part) const { return writer_.program().spreads(part); }
  bool follows_spread(int part) const { return part > 0 && spreads(part - 1); }
  bool precedes_spread(int part) const { return part + 1 < num_parts_ && spreads(part + 1); }

  bool goes_on(int head) const;
  model::PartKind kind(int part) const { return spec_.parts[static_cast<size_t>(part)].kind; }
  int router_of(int part) const;
  bool has_shared_expert(int part) const;
  bool reads_input_for_weights(int part) const;
  Recompute recompute(int part) const { return strategy_.recompute[static_cast<size_t>(part)]; }

  void make_for(MicroBatch& micro, std::vector<int>& slot, int part, BufferKind kind,
                int64_t bytes);
  void make_saved(MicroBatch& micro, int part);
  void recompute_forward(MicroBatch& micro, int part);
  void read_inputs(const MicroBatch& micro, int part);
  void read_residual(const MicroBatch& micro, int part);
  void loss(MicroBatch& micro, int part);
  void gradient_of_input(MicroBatch& micro, int part);
  void read_backward_inputs(const MicroBatch& micro, int part);
  void make_input_gradients(MicroBatch& micro, int part);
  void embedding_backward(MicroBatch& micro);

  bool shares_sequences(int part) const { return context_ && context_->shares_sequences(part); }
  ContextEdges context_edges(MicroBatch& micro, int part);

  std::unique_ptr<TensorWriter> tensor_;  ///< of one of several tensor parallel ranks
  std::unique_ptr<ContextWriter>
      context_;  ///< of one of several that share sequences, and nothing else
  const model::ModelSpec& spec_;
  ProgramWriter& writer_;
  GradientSums& sums_;
  Strategy& strategy_;
  const int num_parts_;
  std::vector<model::TokenFlops> flops_;
  std::vector<PartBytes> bytes_;
  double tokens_ = 0.0;
  int counted_ = kNone;
  std::vector<std::vector<ExpertSource>> at_once_;  ///< Program::exchanged_micro_batches()
  std::map<std::pair<int, int64_t>, int>
      counts_;                      ///< by experts part and micro-batch: kExchangeCounts
  std::map<int, int> sent_rows_;    ///< by buffer that arrives: what is sent for it
  std::map<int64_t, int> batches_;  ///< by index: the buffer
  std::vector<int64_t> order_;      ///< as they were loaded
};

}  // namespace trireme::plan
