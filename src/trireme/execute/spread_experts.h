// The experts of one layer that are spread over ranks: rows go to the ranks that have their experts and come back.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "trireme/comm/group.h"
#include "trireme/nn/part.h"

namespace trireme::execute {

/// For one micro-batch of this rank and those of the other ranks of the group that are at the same place. Every source's rows are
/// computed on their own, as one rank would (docs/reduction.md). What others send is waited for by who calls: the transfers of a
/// call are given back. Order of calls: send_counts, send_rows, forward of each source, return_rows; then send_gradients,
/// backward_input of each source, return_gradients; backward_weight of each source. Thread-safety: the step thread only.
/// Ownership: borrows part and group. Collective over the group but for what is of one source.
class SpreadExperts {
 public:
  using Transfers = std::vector<comm::Group::Pending>;

  /// `part`: with this rank's experts, as many as any other's.
  SpreadExperts(nn::Part& part, comm::Group& group);

  size_t num_sources() const { return sources_.size(); }

  /// How many rows each expert gets from `own`, whose rows are those of the whole layer's experts.
  Transfers send_counts(const nn::MoeFlow& own, device::Queue& queue);
  /// `rows` [M, d] in the order of experts, with own.row_weights. After the counts came: waits for them on the host.
  Transfers send_rows(const at::Tensor& rows, const nn::MoeFlow& own, device::Queue& queue);
  void forward(size_t source, bool with_graph, nn::SaveMode mode);
  /// `mine` is filled with what experts made of the rows of send_rows().
  Transfers return_rows(at::Tensor& mine, device::Queue& queue);

  Transfers send_gradients(const at::Tensor& d_rows, device::Queue& queue);
  void recompute(size_t source) { graph(source).recompute(); }
  void backward_input(size_t source);
  /// `mine` is filled with the gradient of the rows of send_rows(), own.d_row_weights with that of their weights.
  Transfers return_gradients(at::Tensor& mine, nn::MoeFlow& own, device::Queue& queue);
  void backward_weight(size_t source, nn::GradientSink& sink);

  // Give memory back, when nobody reads it any more.
  void drop_rows();
  void drop_output() { output_.reset(); }
  void drop_gradients() { d_output_.reset(); }
  void drop_input_gradients();

 private:
  /// A micro-batch as this rank's experts see it.
  struct Source {
    nn::BatchTensors batch;
    std::unique_ptr<nn::PartGraph> graph;
    int64_t first = 0;  ///< of its rows here
    int64_t count = 0;
  };

  nn::MoeFlow& flow(Source& source) const;
  nn::PartGraph& graph(size_t source) const;
  at::Tensor of(const at::Tensor& all, const Source& source) const {
    return all.narrow(0, source.first, source.count);
  }
  /// Rows of width `width` to the ranks of their experts, or back.
  comm::Group::Pending exchange(const at::Tensor& out, const at::Tensor& in, bool back,
                                device::Queue& queue) const;

  nn::Part& part_;
  comm::Group& group_;
  std::vector<Source> sources_;
  at::Tensor counts_;          ///< int64 [ranks, experts here], then on the host
  std::vector<int64_t> to_;    ///< rows of this rank by rank that has their experts
  std::vector<int64_t> from_;  ///< rows that come, by rank
  at::Tensor rows_;            ///< [rows that come, d], as the next ones
  at::Tensor row_weights_;
  at::Tensor output_;
  at::Tensor d_output_;
  at::Tensor d_rows_;
  at::Tensor d_row_weights_;
};

}  // namespace trireme::execute
