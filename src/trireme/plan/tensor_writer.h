// Writes what a tensor parallel rank does with a micro-batch: parts in phases, and the exchanges between them (nn/split_part.h has
// the picture). Internal to this room.
//
// Held beside what one rank would hold of its share: of a part whose input is normed, or gathered, all tokens [N, d] from the
// forward to backward-weight; with recompute only from where it is gathered again. A partial sum and what came of it, 2 [N, d], are
// held from one phase to the next.
#pragma once

#include <memory>
#include <vector>

#include "trireme/model/flops.h"
#include "trireme/plan/context_writer.h"
#include "trireme/plan/gradient_sums.h"
#include "trireme/plan/program_writer.h"
#include "trireme/plan/tensor_memory.h"

namespace trireme::plan {

struct MicroBatch;

/// Ownership: borrows the spec, which is cut, the writer and the sums. The strategy has its chunks of the loss and its recompute.
class TensorWriter {
 public:
  TensorWriter(const model::ModelSpec& spec, ProgramWriter& writer, GradientSums& sums);

  void forward(MicroBatch& micro, int part);  ///< any but the head
  /// All parts but the head of two micro-batches: the exchanges of one lie behind the products of the other.
  void forward_in_turn(MicroBatch& first, MicroBatch& second);
  /// forward_in_turn() of two with backward_in_turn() of two others.
  void both_in_turn(MicroBatch& first, MicroBatch& second, MicroBatch& first_back,
                    MicroBatch& second_back);
  /// All of both backward after their losses. Gradients are added in the order of the micro-batches.
  void backward_in_turn(MicroBatch& first, MicroBatch& second);
  /// The head: forward, loss and all gradients. `counted`: the instruction that knows how many targets the step has.
  void loss(MicroBatch& micro, int part, int counted);
  /// Attention or an MLP. `with_weight`: its backward-weight too, behind the exchange of the input's gradient.
  void backward_input(MicroBatch& micro, int part, bool with_weight);
  /// Of a part whose backward-input has not brought it along; nothing else.
  void backward_weight(MicroBatch& micro, int part);

 private:
  static constexpr int kNone = ProgramWriter::kNone;

  Instruction& compute(OpKind kind, MicroBatch& micro, int part, int phase,
                       int64_t workspace_bytes);
  int new_tokens(const MicroBatch& micro, int part, int64_t bytes);
  /// The exchange of `source`, which somebody made before; returns the buffer that it makes.
  int exchange(OpKind kind, const MicroBatch& micro, int part, int source, int64_t bytes,
               bool of_gradient);
  /// The current instruction reads what an exchange brought, and keeps what it was made from until then.
  void read_exchanged(int source, int brought);
  void read_input(const MicroBatch& micro, int part);

  // A part in pieces, each up to the exchange that the next one waits for.
  void begin_forward(MicroBatch& micro, int part);
  void forward_products(MicroBatch& micro, int part);
  void finish_forward(MicroBatch& micro, int part);
  void begin_backward(MicroBatch& micro, int part);
  void backward_products(MicroBatch& micro, int part);
  void finish_backward(MicroBatch& micro, int part, bool with_weight);
  /// The last two and the products, and the begin of the part before.
  void backward_in_turn(MicroBatch& micro, int part);

  int last_phase(int part) const { return 2 + product_phases(spec_, strategy_, part); }
  bool shares_sequences(int part) const { return context_ && context_->shares_sequences(part); }
  ContextEdges context_edges(MicroBatch& micro, int part);

  void embedding_backward(MicroBatch& micro);
  void gather_input_again(MicroBatch& micro, int part);
  void weight_products(MicroBatch& micro, int part);
  bool has_norm_before(int part) const;
  bool has_norm_after(int part) const;
  Recompute recompute(int part) const { return strategy_.recompute[static_cast<size_t>(part)]; }
  const model::LayerSpec& layer_of(int part) const;

  const model::ModelSpec& spec_;
  ProgramWriter& writer_;
  GradientSums& sums_;
  const Strategy& strategy_;
  const int group_;
  const int64_t tokens_;
  std::vector<SplitBytes> bytes_;
  std::vector<model::TokenFlops> flops_;
  std::unique_ptr<ContextWriter> context_;  ///< of ranks that share sequences with others
};

}  // namespace trireme::plan
