#include "trireme/comm/request_group.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::comm {
namespace {

/// A copy in the queue that issued it: in a group of one.
class CopyWork final : public Work {
 public:
  CopyWork(const Request& request, device::Device& device, device::Queue& queue)
      : request_(request), start_(queue.record()) {
    if (request.out.defined() && request.out.const_data_ptr() != request.in.const_data_ptr())
      device.copy(request.out.view({-1}), request.in.view({-1}), queue);
    end_ = queue.record();
  }
  bool done() const override { return end_->done(); }
  void wait(device::Queue& queue) override {
    if (request_.out.is_cpu()) return;
    queue.wait_for(*end_);
  }
  double start_s() const override {
    start_->wait();
    return start_->seconds();
  }
  double end_s() const override {
    end_->wait();
    return end_->seconds();
  }

 private:
  const Request request_;
  std::unique_ptr<device::Event> start_;
  std::unique_ptr<device::Event> end_;
};

int64_t sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

}  // namespace

RequestGroup::RequestGroup(std::vector<int> members, int rank, device::Device& device)
    : members_(std::move(members)),
      rank_(rank),
      device_(device),
      num_sends_(members_.size(), 0),
      num_receives_(members_.size(), 0) {
  TRIREME_CHECK(rank >= 0 && rank < size() && std::ranges::is_sorted(members_),
                "rank {} of group {}", rank, list_ranks(members_));
}

Group::Pending RequestGroup::send(const at::Tensor& tensor, int to, device::Queue& after) {
  check_peer(TransferKind::kSend, to);
  Request request = request_of(TransferKind::kSend, tensor);
  request.peer = to;
  request.number = num_sends_[static_cast<size_t>(to)]++;
  request.in = tensor;
  request.to_bytes[static_cast<size_t>(to)] = static_cast<int64_t>(tensor.nbytes());
  return issue(std::move(request), after);
}

Group::Pending RequestGroup::receive(const at::Tensor& tensor, int from, device::Queue& after) {
  check_peer(TransferKind::kReceive, from);
  Request request = request_of(TransferKind::kReceive, tensor);
  request.peer = from;
  request.number = num_receives_[static_cast<size_t>(from)]++;
  request.out = tensor;
  request.from_bytes[static_cast<size_t>(from)] = static_cast<int64_t>(tensor.nbytes());
  return issue(std::move(request), after);
}

Group::Pending RequestGroup::all_to_all(const at::Tensor& out,
                                        const std::vector<int64_t>& out_counts,
                                        const at::Tensor& in, const std::vector<int64_t>& in_counts,
                                        device::Queue& after) {
  Request request = request_of(TransferKind::kAllToAll, in);
  check(request.kind, out, in.scalar_type());
  request.to_bytes = bytes_of(request.kind, in, in_counts);
  request.from_bytes = bytes_of(request.kind, out, out_counts);
  const auto own = static_cast<size_t>(rank_);
  TRIREME_CHECK(out_counts[own] == in_counts[own],
                "all_to_all: rank {} gives itself {} elements and takes {}", rank_, in_counts[own],
                out_counts[own]);
  return issue_collective(std::move(request), out, in, after);
}

void RequestGroup::check_own_piece(TransferKind kind, const at::Tensor& piece,
                                   const std::vector<int64_t>& counts) const {
  const int64_t count = counts[static_cast<size_t>(rank_)];
  TRIREME_CHECK(count == piece.numel(), "{}: the piece of rank {} has {} elements, its count is {}",
                to_string(kind), rank_, piece.numel(), count);
}

Group::Pending RequestGroup::issue_collective(Request request, const at::Tensor& out,
                                              const at::Tensor& in, device::Queue& after) {
  request.number = num_collectives_++;
  request.in = in;
  request.out = out;
  return issue(std::move(request), after);
}

Group::Pending RequestGroup::all_gather(const at::Tensor& out, const std::vector<int64_t>& counts,
                                        const at::Tensor& in, device::Queue& after) {
  Request request = request_of(TransferKind::kAllGather, in);
  check(request.kind, out, in.scalar_type());
  request.from_bytes = bytes_of(request.kind, out, counts);
  check_own_piece(request.kind, in, counts);
  request.to_bytes.assign(members_.size(), static_cast<int64_t>(in.nbytes()));
  return issue_collective(std::move(request), out, in, after);
}

Group::Pending RequestGroup::broadcast(const at::Tensor& tensor, int root, device::Queue& after) {
  Request request = request_of(TransferKind::kBroadcast, tensor);
  TRIREME_CHECK(root >= 0 && root < size(), "broadcast from rank {} of {}", root, size());
  request.peer = root;
  request.number = num_collectives_++;
  const auto bytes = static_cast<int64_t>(tensor.nbytes());
  if (root == rank_) {
    request.in = tensor;
    request.to_bytes.assign(members_.size(), bytes);
    request.to_bytes[static_cast<size_t>(root)] = 0;
  } else {
    request.out = tensor;
    request.from_bytes[static_cast<size_t>(root)] = bytes;
  }
  return issue(std::move(request), after);
}

Group::Pending RequestGroup::all_reduce(const at::Tensor& tensor, device::Queue& after) {
  Request request = request_of(TransferKind::kAllReduce, tensor);
  TRIREME_CHECK(tensor.scalar_type() == c10::kFloat || tensor.scalar_type() == c10::kBFloat16,
                "all_reduce of {}", c10::toString(tensor.scalar_type()));
  std::vector<int64_t> counts(members_.size());
  for (int64_t r = 0; r < size(); ++r)
    counts[static_cast<size_t>(r)] =
        (r + 1) * tensor.numel() / size() - r * tensor.numel() / size();
  request.to_bytes = bytes_of(request.kind, tensor, counts);
  request.from_bytes = request.to_bytes;
  request.number = num_collectives_++;
  request.in = tensor;
  request.out = tensor;
  return issue(std::move(request), after);
}

Group::Pending RequestGroup::reduce_scatter(const at::Tensor& out, const at::Tensor& in,
                                            const std::vector<int64_t>& counts,
                                            device::Queue& after) {
  Request request = request_of(TransferKind::kReduceScatter, in);
  TRIREME_CHECK(in.scalar_type() == c10::kFloat || in.scalar_type() == c10::kBFloat16,
                "reduce_scatter of {}", c10::toString(in.scalar_type()));
  check(request.kind, out, in.scalar_type());
  request.to_bytes = bytes_of(request.kind, in, counts);
  check_own_piece(request.kind, out, counts);
  request.from_bytes.assign(members_.size(), static_cast<int64_t>(out.nbytes()));
  return issue_collective(std::move(request), out, in, after);
}

Request RequestGroup::request_of(TransferKind kind, const at::Tensor& tensor) const {
  check(kind, tensor, tensor.scalar_type());
  Request request;
  request.kind = kind;
  request.dtype = tensor.scalar_type();
  request.to_bytes.assign(members_.size(), 0);
  request.from_bytes.assign(members_.size(), 0);
  return request;
}

Group::Pending RequestGroup::issue(Request request, device::Queue& after) {
  count(request);
  if (size() == 1) return std::make_unique<CopyWork>(request, device_, after);
  return start(std::move(request), after);
}

void RequestGroup::count(const Request& request) {
  const auto own = static_cast<size_t>(rank_);
  ++traffic_.transfers;
  traffic_.sent_bytes += sum(request.to_bytes) - request.to_bytes[own];
  traffic_.received_bytes += sum(request.from_bytes) - request.from_bytes[own];
  if (request.kind == TransferKind::kAllReduce) {  // the sums go to everybody
    traffic_.sent_bytes += (size() - 1) * request.to_bytes[own];
    traffic_.received_bytes += (size() - 1) * request.to_bytes[own];
  }
}

void RequestGroup::check(TransferKind kind, const at::Tensor& tensor, c10::ScalarType dtype) const {
  TRIREME_CHECK(tensor.defined() && tensor.is_contiguous(), "{}: a tensor that is not contiguous",
                to_string(kind));
  const c10::Device device = device_.torch_device();
  TRIREME_CHECK(device.is_cpu() ? tensor.is_cpu() : tensor.device() == device,
                "{}: a tensor on {} in a group on {}", to_string(kind), tensor.device().str(),
                device.str());
  TRIREME_CHECK(tensor.scalar_type() == dtype, "{}: {} to {}", to_string(kind),
                c10::toString(dtype), c10::toString(tensor.scalar_type()));
}

std::vector<int64_t> RequestGroup::bytes_of(TransferKind kind, const at::Tensor& tensor,
                                            const std::vector<int64_t>& counts) const {
  TRIREME_CHECK(counts.size() == members_.size(), "{}: {} counts in a group of {}", to_string(kind),
                counts.size(), members_.size());
  TRIREME_CHECK(std::ranges::all_of(counts, [](int64_t c) { return c >= 0; }) &&
                    sum(counts) == tensor.numel(),
                "{}: counts of {} elements in all for a tensor of {}", to_string(kind), sum(counts),
                tensor.numel());
  std::vector<int64_t> bytes = counts;
  for (int64_t& count : bytes) count *= static_cast<int64_t>(tensor.element_size());
  return bytes;
}

void RequestGroup::check_peer(TransferKind kind, int peer) const {
  TRIREME_CHECK(peer >= 0 && peer < size() && peer != rank_, "rank {} of {}: {} with rank {}",
                rank_, size(), to_string(kind), peer);
}

}  // namespace trireme::comm
