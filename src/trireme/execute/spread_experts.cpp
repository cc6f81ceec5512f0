#include "trireme/execute/spread_experts.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

#include "trireme/base/error.h"

namespace trireme::execute {

namespace {

at::Tensor empty_rows(const at::Tensor& like, int64_t rows) {
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes.front() = rows;
  return at::empty(sizes, like.options());
}

int64_t sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

}  // namespace

SpreadExperts::SpreadExperts(nn::Part& part, comm::Group& group)
    : part_(part), group_(group), sources_(static_cast<size_t>(group.size())) {}

nn::MoeFlow& SpreadExperts::flow(Source& source) const {
  return (*source.batch.moe)[part_.spec().layer];
}

nn::PartGraph& SpreadExperts::graph(size_t source) const {
  const auto& graph = sources_.at(source).graph;
  TRIREME_CHECK(graph != nullptr, "{}: backward of source {} before its forward", part_.spec().name,
                source);
  return *graph;
}

SpreadExperts::Transfers SpreadExperts::send_counts(const nn::MoeFlow& own, device::Queue& queue) {
  const kernels::GroupOffsets& offsets = own.rows.offsets;
  const auto experts = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t ranks = group_.size();
  TRIREME_CHECK(experts % ranks == 0, "{} experts over {} ranks", experts, ranks);
  const int64_t here = experts / ranks;
  const at::Tensor mine = at::empty({experts}, at::kLong);
  auto* const counts = mine.data_ptr<int64_t>();
  to_.assign(static_cast<size_t>(ranks), 0);
  for (int64_t e = 0; e < experts; ++e) {
    counts[e] = offsets[static_cast<size_t>(e) + 1] - offsets[static_cast<size_t>(e)];
    to_[static_cast<size_t>(e / here)] += counts[e];
  }
  const at::Tensor sent = mine.to(own.weights.device());
  counts_ = at::empty({ranks, here}, sent.options());
  const std::vector<int64_t> even(static_cast<size_t>(ranks), here);
  Transfers transfers;
  transfers.push_back(group_.all_to_all(counts_.view({-1}), even, sent, even, queue));
  return transfers;
}

comm::Group::Pending SpreadExperts::exchange(const at::Tensor& out, const at::Tensor& in, bool back,
                                             device::Queue& queue) const {
  const int64_t width = in.dim() == 1 ? 1 : in.size(1);
  const auto elements = [&](std::vector<int64_t> rows) {
    for (int64_t& count : rows) count *= width;
    return rows;
  };
  return group_.all_to_all(out.view({-1}), elements(back ? to_ : from_), in.view({-1}),
                           elements(back ? from_ : to_), queue);
}

SpreadExperts::Transfers SpreadExperts::send_rows(const at::Tensor& rows, const nn::MoeFlow& own,
                                                  device::Queue& queue) {
  const at::Tensor counts = counts_.cpu();
  const auto* const of_rank = counts.data_ptr<int64_t>();
  const int64_t experts = counts.size(1);
  counts_.reset();
  from_.clear();
  // A micro-batch is like any other: none has more choices, or room for more. (In an evaluation a rank may have none itself.)
  const int64_t most = std::max(own.weights.numel(), own.rows.count());
  int64_t first = 0;
  for (size_t s = 0; s < sources_.size(); ++s) {
    Source& source = sources_[s];
    kernels::GroupOffsets& offsets = flow(source).rows.offsets;
    offsets.assign(1, 0);
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t rows_of_expert = of_rank[static_cast<int64_t>(s) * experts + e];
      TRIREME_CHECK(rows_of_expert >= 0, "rank {} sends {} rows", s, rows_of_expert);
      offsets.push_back(offsets.back() + rows_of_expert);
    }
    source.first = first;
    source.count = offsets.back();
    TRIREME_CHECK(source.count >= 0 && (most == 0 || source.count <= most),
                  "rank {} sends {} rows of at most {}", s, source.count, most);
    from_.push_back(source.count);
    first += source.count;
  }
  rows_ = empty_rows(rows, first);
  row_weights_ = empty_rows(own.row_weights, first);
  Transfers transfers;
  transfers.push_back(exchange(rows_, rows, false, queue));
  transfers.push_back(exchange(row_weights_, own.row_weights, false, queue));
  return transfers;
}

void SpreadExperts::forward(size_t index, bool with_graph, nn::SaveMode mode) {
  Source& source = sources_.at(index);
  if (!output_.defined()) output_ = empty_rows(rows_, sum(from_));
  nn::MoeFlow& into = flow(source);
  into.row_weights = of(row_weights_, source);
  into.into = of(output_, source);
  source.graph = std::move(part_.forward(of(rows_, source), source.batch, with_graph, mode).graph);
  into.into.reset();
}

SpreadExperts::Transfers SpreadExperts::return_rows(at::Tensor& mine, device::Queue& queue) {
  mine = empty_rows(output_, sum(to_));
  Transfers transfers;
  transfers.push_back(exchange(mine, output_, true, queue));
  return transfers;
}

SpreadExperts::Transfers SpreadExperts::send_gradients(const at::Tensor& d_rows,
                                                       device::Queue& queue) {
  d_output_ = empty_rows(d_rows, sum(from_));
  Transfers transfers;
  transfers.push_back(exchange(d_output_, d_rows, false, queue));
  return transfers;
}

void SpreadExperts::backward_input(size_t index) {
  Source& source = sources_.at(index);
  if (!d_rows_.defined()) {
    d_rows_ = empty_rows(d_output_, sum(from_));
    d_row_weights_ = empty_rows(row_weights_, sum(from_));
  }
  nn::MoeFlow& into = flow(source);
  into.d_into = of(d_rows_, source);
  into.d_row_weights = of(d_row_weights_, source);
  graph(index).backward_input(of(d_output_, source));
  into.d_into.reset();
  into.d_row_weights.reset();
}

SpreadExperts::Transfers SpreadExperts::return_gradients(at::Tensor& mine, nn::MoeFlow& own,
                                                         device::Queue& queue) {
  mine = empty_rows(d_rows_, sum(to_));
  own.d_row_weights = empty_rows(d_row_weights_, sum(to_));
  Transfers transfers;
  transfers.push_back(exchange(mine, d_rows_, true, queue));
  transfers.push_back(exchange(own.d_row_weights, d_row_weights_, true, queue));
  return transfers;
}

void SpreadExperts::backward_weight(size_t index, nn::GradientSink& sink) {
  graph(index).backward_weight(sink);
  sources_.at(index).graph.reset();
}

void SpreadExperts::drop_rows() {
  rows_.reset();
  row_weights_.reset();
  for (Source& source : sources_) flow(source).row_weights.reset();
}

void SpreadExperts::drop_input_gradients() {
  d_rows_.reset();
  d_row_weights_.reset();
}

}  // namespace trireme::execute
