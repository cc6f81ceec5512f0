// A part: the unit of work of an instruction (embedding; attention; mlp; head with loss).
//
// Forward takes a detached input and builds a local graph: what its backward needs, nothing else. The
// executor calls backward_input and backward_weight on that graph when the program says so; there are
// no hooks and no global autograd graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "trireme/model/model_spec.h"

namespace trireme::nn {

/// Integer tensors of one micro-batch on the device, shared by all parts. Shapes [rows, seq_len].
struct BatchTensors {
  at::Tensor tokens;     ///< int64
  at::Tensor targets;    ///< int64, -100 where ignored
  at::Tensor positions;  ///< int64
  std::vector<std::vector<int32_t>> segments;  ///< per row, start offsets of documents; first is 0
  bool single_segment = true;                  ///< every row is one document: plain causal attention
};

/// One part's parameters and where their gradients go. Views into the part's flat buffers.
struct PartParameters {
  std::vector<at::Tensor> weights;    ///< compute dtype, in the order of ModelSpec::parameters
};

/// Where backward_weight puts gradients: fp32 views of the lane's flat accumulator of the part. The first
/// micro-batch of a lane overwrites (accumulate = false), so nobody fills with zeros.
struct GradientSink {
  std::vector<at::Tensor> gradients;  ///< fp32, same order and shapes as PartParameters::weights
  bool accumulate = false;
};

/// How a part keeps what its backward needs.
enum class SaveMode {
  kAll,        ///< everything
  kSelective,  ///< inputs of products and of attention's kernel stay; element-wise results are made again in backward
  kInputOnly   ///< only the input: recompute() makes the rest again
};

/// The local graph of one part and one micro-batch. Thread-safety: used by the step thread only.
class PartGraph {
 public:
  virtual ~PartGraph() = default;
  /// Returns the gradient of the input (undefined for the embedding) and keeps what the weight gradients
  /// still need. `grad_output` is consumed.
  virtual at::Tensor backward_input(at::Tensor grad_output) = 0;
  /// Adds the parameters' gradients to `sink` and frees the rest. After backward_input.
  virtual void backward_weight(GradientSink& sink) = 0;
  /// Bytes of tensors that only this graph holds: for the memory trace.
  virtual int64_t held_bytes() const = 0;
};

struct ForwardResult {
  at::Tensor output;                 ///< [rows, seq_len, hidden]
  std::unique_ptr<PartGraph> graph;  ///< null when run without gradients
};

/// A part of a model. Thread-safety: const calls from one thread at a time per part.
/// Ownership: borrows the parameters' storage from the ParameterStore.
class Part {
 public:
  virtual ~Part() = default;
  virtual const model::PartSpec& spec() const = 0;
  /// `hidden` is undefined for the embedding. With `with_graph` false nothing is kept.
  virtual ForwardResult forward(const at::Tensor& hidden, const BatchTensors& batch, bool with_graph, SaveMode mode) = 0;
};

}  // namespace trireme::nn
