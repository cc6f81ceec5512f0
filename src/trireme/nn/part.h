// A part: the unit of work of an instruction (embedding; attention; mlp; head with loss).
//
// Forward takes a detached input and builds a local graph: what its backward needs, nothing else.
// The executor calls backward_input and backward_weight on that graph when the program says so;
// there are no hooks and no global autograd graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "trireme/cluster/sequence_pieces.h"
#include "trireme/model/model_spec.h"
#include "trireme/nn/context_graph.h"
#include "trireme/nn/moe_flow.h"

namespace trireme::nn {

/// Integer tensors of one micro-batch on the device, shared by all parts. Shapes [rows, seq_len].
struct BatchTensors {
  int64_t rows = 0;
  int64_t seq_len = 0;
  at::Tensor tokens;     ///< int32
  at::Tensor targets;    ///< int32, -100 where ignored; undefined where no loss is asked for
  at::Tensor positions;  ///< int32
  /// Start offsets of documents, per row; the first is 0. Attention stays inside a document.
  std::vector<std::vector<int32_t>> segments;
  /// Where ranks share sequences: what of them is here, one after the other; `rows`, `seq_len` and the tensors are of that, `segments`
  /// of whole sequences of `whole_len` places. Empty: all.
  std::vector<cluster::PlaceRange> pieces;
  int64_t whole_len = 0;
  int64_t context_ranks = 1;  ///< who share
  int64_t context_rank = 0;
  /// Tokens of the sequences that the positions belong to.
  int64_t length() const { return pieces.empty() ? tokens.size(1) : whole_len; }
  /// What module k of multi-token prediction reads and predicts, at k - 1 (data::tokens_ahead()); as `tokens` and `targets`.
  struct Ahead {
    at::Tensor tokens;
    at::Tensor targets;
  };
  std::vector<Ahead> ahead;
  /// By layer: what the parts of a MoE layer hand on beside the hidden state. Copies share it.
  std::shared_ptr<std::map<int, MoeFlow>> moe = std::make_shared<std::map<int, MoeFlow>>();
  /// Experts are spread over ranks: what a dispatch makes leaves with the weights of its rows.
  bool experts_are_spread = false;
  /// This micro-batch's share of the step's tokens: what its balancing losses are multiplied with.
  double share_of_step = 1.0;
  /// By layer: tokens of every expert in a global batch, for balancing losses over it; or null.
  const std::map<int, std::vector<int64_t>>* expert_load = nullptr;
};

/// Where gradients go: fp32 views of a lane's flat accumulators, one per entry of
/// Part::gradient_parameters(), in that order. An entry whose accumulate flag is false is
/// overwritten (the first micro-batch of a lane), so nobody fills with zeros.
struct GradientSink {
  std::vector<at::Tensor> gradients;
  std::vector<char> accumulate;
};

/// How a part keeps what its backward needs. Gradients are bit-equal in all three.
enum class SaveMode {
  kAll,        ///< everything
  kSelective,  ///< inputs of products and of attention's kernel stay; element-wise results are made
               ///< again in backward
  kInputOnly   ///< only the input: recompute() makes the rest again
};

/// How much of a part one object computes.
enum class PartScope {
  kWhole,    ///< all of it
  kProducts  ///< what lies between its norms, of an input that is normed: without them, without the residual, and without
  ///< the bias of the last product, whose gradient it has. What tensor parallel ranks share (split_part.h).
};

/// The local graph of one part and one micro-batch. Thread-safety: used by the step thread only.
/// Order of calls: [recompute] backward_input backward_weight.
class PartGraph {
 public:
  virtual ~PartGraph() = default;
  /// SaveMode::kInputOnly: makes the rest again from the input. Call before backward_input.
  virtual void recompute() = 0;
  /// Returns the gradient of the input (undefined for the embedding) and keeps what the weight
  /// gradients still need. Frees the saved tensors as it goes; `grad_output` may be kept until
  /// backward_weight.
  virtual at::Tensor backward_input(at::Tensor grad_output) = 0;
  /// What the forward kept for backward and only this graph (or its layer's flow) holds, undefined tensors among it: not
  /// the part's input nor the batch. Between calls their storage may be emptied, if it is filled again before the next one.
  virtual std::vector<at::Tensor> kept() const = 0;
  /// Of an attention whose sequences ranks share; null of others.
  virtual ContextGraph* context() { return nullptr; }
  /// Adds the parameters' gradients to `sink` and frees the rest.
  virtual void backward_weight(GradientSink& sink) = 0;
};

/// Of a part of PartScope::kProducts. Its input may be away between forward and backward, if it comes again before
/// recompute() or backward_input().
class ProductsGraph : public PartGraph {
 public:
  virtual void drop_input() = 0;
  virtual void give_input(at::Tensor input) = 0;
};

struct ForwardResult {
  at::Tensor output;                 ///< [rows, seq_len, hidden], compute dtype
  std::unique_ptr<PartGraph> graph;  ///< null when run without gradients
};

/// A part of a model. Thread-safety: one thread at a time. Ownership: borrows the parameters'
/// storage from the ParameterStore, which must outlive it.
class Part {
 public:
  virtual ~Part() = default;
  virtual const model::PartSpec& spec() const = 0;
  /// Indices into ModelSpec::parameters of what backward_weight writes. A head tied to the
  /// embedding lists the token embedding as well, and the parts of multi-token prediction what they share with the model.
  virtual const std::vector<int>& gradient_parameters() const = 0;
  /// `hidden` is undefined for the embedding. With `with_graph` false nothing is kept. `batch` must
  /// outlive the graph.
  virtual ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch,
                                bool with_graph, SaveMode mode) = 0;
};

/// What a part hands on of a micro-batch: [rows, seq_len, hidden]; of a spec that is cut over tensor parallel ranks the rank's own
/// tokens, [1, n, hidden].
inline std::vector<int64_t> hidden_shape(const model::ModelSpec& spec, int64_t rows,
                                         int64_t seq_len) {
  if (spec.tensor.is_cut()) return {1, spec.tensor.count(rows * seq_len), spec.hidden};
  return {rows, seq_len, spec.hidden};
}

/// What the head's loss leaves: the sum of the losses in nats (not yet divided) and the input's
/// gradient.
struct LossResult {
  double loss_sum = 0.0;    ///< over counted targets, unscaled
  at::Tensor grad_hidden;   ///< [rows, seq_len, hidden]; undefined without gradients
  at::Tensor token_losses;  ///< fp32 [rows, seq_len], zero where ignored
};

}  // namespace trireme::nn
