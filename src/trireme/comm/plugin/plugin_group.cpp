#include "trireme/comm/plugin/plugin_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <optional>
#include <utility>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"

namespace trireme::comm {
namespace {

using WorkRef = c10::intrusive_ptr<c10d::Work>;

std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

at::Tensor as_bytes(const at::Tensor& tensor) {
  return tensor.view({-1}).view(at::kByte);
}

bool are_equal(const std::vector<int64_t>& counts) {
  return std::ranges::all_of(counts, [&](int64_t count) { return count == counts.front(); });
}

std::vector<at::Tensor> pieces_of(const at::Tensor& flat, const std::vector<int64_t>& counts) {
  return flat.split_with_sizes(counts);
}

}  // namespace

void PluginSession::add(const c10::intrusive_ptr<c10d::Backend>& backend) {
  const std::lock_guard lock(mutex_);
  backends_.push_back(backend);
}

void PluginSession::remove(const c10::intrusive_ptr<c10d::Backend>& backend) {
  const std::lock_guard lock(mutex_);
  std::erase(backends_, backend);
}

void PluginSession::abort(const std::string& reason) {
  std::vector<c10::intrusive_ptr<c10d::Backend>> backends;
  {
    const std::lock_guard lock(mutex_);
    if (!reason_.empty()) return;
    reason_ = reason.empty() ? "the run was ended" : reason;
    backends = backends_;
  }
  for (const auto& backend : backends) backend->abort();
}

std::string PluginSession::reason() const {
  const std::lock_guard lock(mutex_);
  return reason_;
}

/// What one transfer became. Its tensors live until it was waited for, or is gone.
class PluginGroup::Issued final : public Work {
 public:
  Issued(Request request, std::string name, bool on_device, device::Queue& after,
         std::shared_ptr<PluginSession> session)
      : request_(std::move(request)),
        name_(std::move(name)),
        on_device_(on_device),
        session_(std::move(session)) {
    if (on_device_) started_ = after.record();
    start_s_ = steady_clock().now_s();
  }

  const Request& request() const { return request_; }
  void add(WorkRef work) {
    if (work != nullptr) works_.push_back(std::move(work));
  }
  /// Kept for the back end until the transfer ended.
  at::Tensor keep(at::Tensor tensor) {
    kept_.push_back(tensor);
    return tensor;
  }
  /// Called once the back end's part is done.
  void then(std::function<void()> last) { last_ = std::move(last); }
  /// Calls the back end, and says what failed.
  template <typename Call>
  void guarded(const Call& call) {
    const std::string before = session_->reason();
    if (!before.empty()) throw Error(ErrorCode::kDevice, before);
    try {
      call();
    } catch (const std::exception& error) {
      const std::string reason = session_->reason();
      if (!reason.empty()) throw Error(ErrorCode::kDevice, reason);
      throw Error(ErrorCode::kDevice, fmt::format("{} failed: {}", name_, first_line(error)),
                  "look at what its other ranks printed last");
    }
  }

  bool done() const override {
    return std::ranges::all_of(works_, [](const WorkRef& work) { return work->isCompleted(); });
  }
  void wait(device::Queue& queue) override {
    std::optional<device::QueueGuard> guard;
    if (on_device_) guard.emplace(queue);
    guarded([&] {
      for (const WorkRef& work : works_) TORCH_CHECK(work->wait(), "it was ended");
      if (last_) std::exchange(last_, {})();
    });
    if (on_device_) ended_ = queue.record();
    end_s_ = steady_clock().now_s();
  }
  double start_s() const override { return on_device_ ? seconds(*started_) : start_s_; }
  double end_s() const override { return on_device_ ? seconds(*ended_) : end_s_; }

 private:
  static double seconds(device::Event& event) {
    event.wait();
    return event.seconds();
  }

  const Request request_;
  const std::string name_;
  const bool on_device_;
  const std::shared_ptr<PluginSession> session_;
  std::vector<WorkRef> works_;
  std::vector<at::Tensor> kept_;
  std::function<void()> last_;
  std::unique_ptr<device::Event> started_;
  std::unique_ptr<device::Event> ended_;  ///< when the queue that waited goes on
  double start_s_ = 0.0;
  double end_s_ = 0.0;
};

PluginGroup::PluginGroup(std::vector<int> members, int rank, device::Device& device,
                         GroupBackends backends, std::shared_ptr<PluginSession> session)
    : RequestGroup(std::move(members), rank, device),
      on_device_(device.capabilities().asynchronous),
      backends_(std::move(backends)),
      session_(std::move(session)) {
  session_->add(backends_.collectives);
  session_->add(backends_.up);
  session_->add(backends_.down);
}

PluginGroup::~PluginGroup() {
  session_->remove(backends_.collectives);
  session_->remove(backends_.up);
  session_->remove(backends_.down);
}

Group::Pending PluginGroup::start(Request request, device::Queue& after) {
  std::string name = describe(request, members());
  auto issued =
      std::make_unique<Issued>(std::move(request), std::move(name), on_device_, after, session_);
  std::optional<device::QueueGuard> guard;
  if (on_device_) guard.emplace(after);
  issued->guarded([&] { issue(issued->request(), *issued); });
  return issued;
}

// What only moves goes as bytes: no back end knows all dtypes.
void PluginGroup::issue(const Request& request, Issued& issued) {
  c10d::Backend& all = *backends_.collectives;
  switch (request.kind) {
    case TransferKind::kSend: {
      std::vector<at::Tensor> tensors = {issued.keep(as_bytes(request.in))};
      const auto& way = request.peer > rank() ? backends_.up : backends_.down;
      issued.add(way->send(tensors, request.peer, 0));
      return;
    }
    case TransferKind::kReceive: {
      std::vector<at::Tensor> tensors = {issued.keep(as_bytes(request.out))};
      const auto& way = request.peer < rank() ? backends_.up : backends_.down;
      issued.add(way->recv(tensors, request.peer, 0));
      return;
    }
    case TransferKind::kAllToAll: {
      at::Tensor out = issued.keep(as_bytes(request.out));
      at::Tensor in = issued.keep(as_bytes(request.in));
      std::vector<int64_t> from = request.from_bytes;
      std::vector<int64_t> to = request.to_bytes;
      issued.add(all.alltoall_base(out, in, from, to));
      return;
    }
    case TransferKind::kAllGather: {
      at::Tensor out = issued.keep(as_bytes(request.out));
      at::Tensor in = issued.keep(as_bytes(request.in));
      if (are_equal(request.from_bytes)) {
        issued.add(all._allgather_base(out, in));
        return;
      }
      std::vector<at::Tensor> pieces = pieces_of(out, request.from_bytes);
      at::Tensor& own = pieces[static_cast<size_t>(rank())];
      if (own.const_data_ptr() != in.const_data_ptr()) own.copy_(in);
      const bool together = all.supportsCoalescing();
      if (together) all.startCoalescing();
      for (int root = 0; root < size(); ++root) {
        std::vector<at::Tensor> piece = {pieces[static_cast<size_t>(root)]};
        if (piece.front().numel() == 0) continue;
        c10d::BroadcastOptions options;
        options.rootRank = root;
        issued.keep(piece.front());
        WorkRef work = all.broadcast(piece, options);
        if (!together) issued.add(std::move(work));
      }
      if (together) issued.add(all.endCoalescing());
      return;
    }
    case TransferKind::kBroadcast: {
      const at::Tensor& tensor = request.peer == rank() ? request.in : request.out;
      std::vector<at::Tensor> tensors = {issued.keep(as_bytes(tensor))};
      c10d::BroadcastOptions options;
      options.rootRank = request.peer;
      issued.add(all.broadcast(tensors, options));
      return;
    }
    case TransferKind::kAllReduce: {
      std::vector<at::Tensor> tensors = {issued.keep(request.in.view({-1}))};
      issued.add(all.allreduce(tensors));
      return;
    }
    case TransferKind::kReduceScatter: {
      at::Tensor out = issued.keep(request.out.view({-1}));
      at::Tensor in = issued.keep(request.in.view({-1}));
      if (are_equal(request.to_bytes)) {
        issued.add(all._reduce_scatter_base(out, in));
        return;
      }
      std::vector<int64_t> counts = request.to_bytes;
      for (int64_t& count : counts) count /= static_cast<int64_t>(in.element_size());
      // The root's sum lands where its own part lay, which the caller keeps.
      std::vector<at::Tensor> pieces = pieces_of(issued.keep(in.clone()), counts);
      for (int root = 0; root < size(); ++root) {
        std::vector<at::Tensor> piece = {pieces[static_cast<size_t>(root)]};
        if (piece.front().numel() == 0) continue;
        c10d::ReduceOptions options;
        options.rootRank = root;
        WorkRef work = all.reduce(piece, options);
        issued.add(std::move(work));
        if (root == rank()) issued.then([out, sum = piece.front()] { out.copy_(sum); });
      }
      return;
    }
  }
}

}  // namespace trireme::comm
