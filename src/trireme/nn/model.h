// The parts of a model, built from its spec over a ParameterStore.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "trireme/nn/attention_part.h"
#include "trireme/nn/combine_part.h"
#include "trireme/nn/dispatch_part.h"
#include "trireme/nn/embedding_part.h"
#include "trireme/nn/experts_part.h"
#include "trireme/nn/head_part.h"
#include "trireme/nn/mlp_part.h"
#include "trireme/nn/mtp_input_part.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"
#include "trireme/nn/router_part.h"

namespace trireme::nn {

/// Those that the store has: asking for another part is a mistake. Of a spec that is cut over tensor parallel ranks, attention
/// and MLPs are products alone (PartScope), and what else there is to do is split_model.h's business. Thread-safety: one thread at a time. Ownership: borrows the
/// store, which must outlive it.
class Model {
 public:
  explicit Model(const ParameterStore& store);

  const model::ModelSpec& spec() const { return store_.spec(); }
  const ParameterStore& store() const { return store_; }
  int num_parts() const { return static_cast<int>(parts_.size()); }
  Part& part(int index) { return *parts_[index]; }  ///< any but a head
  /// The model's own, without those of multi-token prediction.
  int num_layers() const { return spec().num_main_layers(); }
  EmbeddingPart& embedding() { return *embedding_; }
  AttentionPart& attention(int layer) { return *attention_[layer]; }
  /// The MLP or the experts of a layer, without gradients. hidden [rows, seq_len, d] -> the same.
  at::Tensor feed_forward(int layer, const at::Tensor& hidden, const BatchTensors& batch);
  HeadPart& head() { return *head_; }
  HeadPart& head(int part) { return *heads_.at(part); }  ///< the one that is this part

 private:
  const ParameterStore& store_;
  std::vector<std::unique_ptr<Part>> parts_;
  EmbeddingPart* embedding_ = nullptr;
  std::vector<AttentionPart*> attention_;
  std::vector<std::vector<Part*>>
      feed_forward_;  ///< per layer: its MLP, or the four parts of a MoE
  HeadPart* head_ = nullptr;
  std::map<int, HeadPart*> heads_;  ///< by part
};

}  // namespace trireme::nn
