// What tensor parallel ranks do with a model's parts beside their products.
#pragma once

#include <map>
#include <memory>

#include "trireme/nn/model.h"
#include "trireme/nn/split_embedding.h"
#include "trireme/nn/split_head.h"
#include "trireme/nn/split_part.h"

namespace trireme::nn {

/// Of a model whose spec is cut; the parts that its store has. Ownership: borrows the model and its store. Thread-safety: one thread at
/// a time.
class SplitModel {
 public:
  explicit SplitModel(Model& model);
  /// Attention or an MLP.
  const SplitPart& part(int index) const { return *parts_.at(index); }
  const SplitEmbedding& embedding() const { return *embedding_; }
  const SplitHead& head() const { return *head_; }

 private:
  std::map<int, std::unique_ptr<SplitPart>> parts_;
  std::unique_ptr<SplitEmbedding> embedding_;
  std::unique_ptr<SplitHead> head_;
};

}  // namespace trireme::nn
