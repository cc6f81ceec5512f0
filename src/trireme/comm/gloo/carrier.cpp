#include "trireme/comm/gloo/carrier.h"

#include <ATen/ops/from_blob.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <vector>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/comm/sum.h"

// The shim's declarations must make the class that the wheel has.
static_assert(
    sizeof(c10d::ProcessGroupGloo) == 488,
    "ProcessGroupGloo of this torch is another class than comm/gloo/shim was checked with");

namespace trireme::comm {
namespace {

/// Time-outs are of whoever waits for a transfer, not of its sends and receives.
constexpr std::chrono::milliseconds kForever = std::chrono::hours(24 * 365);

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1e3) + 1);
}

std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

int64_t sum(const std::vector<int64_t>& values, size_t first, size_t last) {
  int64_t total = 0;
  for (size_t i = first; i < last; ++i) total += values[i];
  return total;
}

/// Ranks that have come to different transfers of a number do not take each other's bytes.
int tag_of(const Request& request, int phase) {
  constexpr int64_t kNumbers = 1 << 24;
  const auto kind = is_collective(request.kind) ? static_cast<int64_t>(request.kind) : 0;
  return static_cast<int>((request.number % kNumbers) * 16 + 2 * kind + phase);
}

}  // namespace

class GlooCarrier::Posted {
 public:
  void add(c10::intrusive_ptr<c10d::Work> work, int peer) {
    const std::lock_guard lock(mutex_);
    if (aborted_) work->abort();
    works_.emplace_back(std::move(work), peer);
  }
  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    for (auto& [work, peer] : works_) work->abort();
  }
  /// Blocks until all are done. Throws what the first that failed throws.
  void wait(const TransferRef& transfer) {
    size_t count = 0;
    {
      const std::lock_guard lock(mutex_);
      count = works_.size();
    }
    for (size_t i = 0; i < count; ++i) {
      auto [work, peer] = at(i);
      transfer->waits_for = peer;
      if (!work->wait(kForever))
        throw Error(ErrorCode::kDevice, fmt::format("{} was woken", transfer->name()));
    }
    transfer->waits_for = -1;
    const std::lock_guard lock(mutex_);
    works_.clear();
  }

 private:
  std::pair<c10::intrusive_ptr<c10d::Work>, int> at(size_t i) {
    const std::lock_guard lock(mutex_);
    return works_[i];
  }
  std::mutex mutex_;
  bool aborted_ = false;
  std::vector<std::pair<c10::intrusive_ptr<c10d::Work>, int>> works_;
};

std::shared_ptr<gloo::transport::Device> open_gloo_device(const GlooOptions& options) {
  const bool by_interface = !options.interface.empty();
  const std::string& name = by_interface ? options.interface : options.address;
  try {
    return by_interface ? c10d::ProcessGroupGloo::createDeviceForInterface(name)
                        : c10d::ProcessGroupGloo::createDeviceForHostname(name);
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kConfig,
                fmt::format("{} \"{}\" is not this machine's: {}",
                            by_interface ? "interface" : "address", name, first_line(error)),
                "name one of those that `ip address` shows");
  }
}

GlooCarrier::GlooCarrier(std::shared_ptr<GlooSession> session, int64_t number,
                         std::vector<int> members, int rank,
                         std::shared_ptr<gloo::transport::Device> device)
    : session_(std::move(session)), members_(std::move(members)), rank_(rank) {
  auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(session_->timeout_s()));
  options->devices.push_back(std::move(device));
  options->threads = 1;  // of its own collectives, which are not used
  auto store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("comm/group/{}", number),
                                                      session_->store());
  try {
    group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(
        store, rank, static_cast<int>(members_.size()), options);
  } catch (const std::exception& error) {
    const std::string reason = fmt::format("{} could not connect to group {}: {}",
                                           session_->name_ranks({session_->rank()}),
                                           list_ranks(members_), first_line(error));
    session_->abort(reason);
    throw Error(ErrorCode::kDevice, reason,
                "ranks must reach each other's data ports: see the network's firewall");
  }
}

GlooCarrier::~GlooCarrier() {
  std::map<const Transfer*, std::pair<TransferRef, PostedRef>> running;
  {
    const std::lock_guard lock(mutex_);
    running = running_;
  }
  for (const auto& [key, entry] : running) {
    entry.first->fail(std::make_exception_ptr(
        Error(ErrorCode::kDevice, fmt::format("{} ended with its group", entry.first->name()))));
    entry.second->abort();
  }
  collectives_.close();
  for (auto& [key, thread] : pairs_) thread->close();
}

void GlooCarrier::start(const TransferRef& transfer) {
  auto posted = std::make_shared<Posted>();
  if (!session_->enter(transfer, [posted] { posted->abort(); })) return;
  {
    const std::lock_guard lock(mutex_);
    running_[transfer.get()] = {transfer, posted};
  }
  const Request& request = transfer->request();
  SerialThread* thread = &collectives_;
  if (!is_collective(request.kind)) {
    std::unique_ptr<SerialThread>& pair = pairs_[{request.peer, request.kind}];
    if (pair == nullptr) pair = std::make_unique<SerialThread>("comm-gloo");
    thread = pair.get();
  }
  thread->push([this, transfer, posted] { run(transfer, posted); });
}

void GlooCarrier::wait(const TransferRef& transfer) {
  if (transfer->wait_until_done(session_->timeout_s())) return;
  const int peer = transfer->waits_for;
  const std::string reason =
      peer < 0
          ? fmt::format("{} did not end within {:g} s", transfer->name(), session_->timeout_s())
          : fmt::format("{} did not come to {} within {:g} s",
                        session_->name_ranks({members_[static_cast<size_t>(peer)]}),
                        transfer->name(), session_->timeout_s());
  transfer->fail(std::make_exception_ptr(
      Error(ErrorCode::kDevice, reason, "look at what that rank printed last")));
  session_->abort(reason);
}

void GlooCarrier::run(const TransferRef& transfer, const PostedRef& posted) {
  const double start_s = steady_clock().now_s();
  try {
    if (!transfer->failed()) {
      const TransferKind kind = transfer->request().kind;
      if (kind == TransferKind::kAllReduce || kind == TransferKind::kReduceScatter) {
        reduce(transfer, *posted);
      } else {
        exchange(transfer, *posted);
      }
      session_->leave(transfer);
      transfer->arrived(start_s, steady_clock().now_s());
    }
  } catch (const std::exception& error) {
    // An abort has failed it already; else this is the first sign that a peer is gone.
    if (!transfer->failed()) {
      const int peer = transfer->waits_for;
      const std::string who =
          peer < 0 ? "a peer" : session_->name_ranks({members_[static_cast<size_t>(peer)]});
      session_->abort(fmt::format("{} is lost in {} on {}: {}", who, transfer->name(),
                                  session_->name_ranks({session_->rank()}), first_line(error)));
    }
  }
  const std::lock_guard lock(mutex_);
  running_.erase(transfer.get());
}

// ---- what transfers are made of ------------------------------------------------------------------

void GlooCarrier::post_send(Posted& posted, const TransferRef& transfer, int to, const char* data,
                            int64_t bytes, int tag) {
  if (bytes == 0) return;
  transfer->waits_for = to;
  std::vector<at::Tensor> tensors = {
      at::from_blob(const_cast<char*>(data), {bytes}, at::TensorOptions().dtype(at::kByte))};
  posted.add(group_->send(tensors, to, tag), to);
}

void GlooCarrier::post_receive(Posted& posted, const TransferRef& transfer, int from, char* data,
                               int64_t bytes, int tag) {
  if (bytes == 0) return;
  transfer->waits_for = from;
  std::vector<at::Tensor> tensors = {
      at::from_blob(data, {bytes}, at::TensorOptions().dtype(at::kByte))};
  posted.add(group_->recv(tensors, from, tag), from);
}

/// Everything but sums: each rank's pieces straight to whom they are for.
void GlooCarrier::exchange(const TransferRef& transfer, Posted& posted) {
  const Request& request = transfer->request();
  const size_t size = members_.size();
  const auto own = static_cast<size_t>(rank_);
  const int tag = tag_of(request, 0);
  const bool one_piece = request.kind != TransferKind::kAllToAll;  // the same for everybody
  const bool gathers =
      request.kind == TransferKind::kAllToAll || request.kind == TransferKind::kAllGather;
  const auto in_at = [&](size_t to) {
    return transfer->in_data() + (one_piece ? 0 : sum(request.to_bytes, 0, to));
  };
  const auto out_at = [&](size_t from) {
    return transfer->out_data() + (gathers ? sum(request.from_bytes, 0, from) : 0);
  };
  for (size_t round = 1; round < size; ++round) {
    const size_t to = (own + round) % size;
    const size_t from = (own + size - round) % size;
    if (request.from_bytes[from] > 0)
      post_receive(posted, transfer, static_cast<int>(from), out_at(from), request.from_bytes[from],
                   tag);
    if (request.to_bytes[to] > 0)
      post_send(posted, transfer, static_cast<int>(to), in_at(to), request.to_bytes[to], tag);
  }
  if (gathers && request.from_bytes[own] > 0 && in_at(own) != out_at(own))
    std::memcpy(out_at(own), in_at(own), static_cast<size_t>(request.from_bytes[own]));
  posted.wait(transfer);
}

/// Pieces to their owners, who add them in the order of ranks; sums from there to all.
void GlooCarrier::reduce(const TransferRef& transfer, Posted& posted) {
  const Request& request = transfer->request();
  const size_t size = members_.size();
  const auto own = static_cast<size_t>(rank_);
  const int64_t own_bytes = request.to_bytes[own];
  const char* own_piece = transfer->in_data() + sum(request.to_bytes, 0, own);
  std::vector<char> scratch((size - 1) * static_cast<size_t>(own_bytes));
  std::vector<const char*> pieces(size, own_piece);
  for (size_t round = 1; round < size; ++round) {
    const size_t to = (own + round) % size;
    const size_t from = (own + size - round) % size;
    char* piece = scratch.data() + (round - 1) * static_cast<size_t>(own_bytes);
    pieces[from] = piece;
    post_receive(posted, transfer, static_cast<int>(from), piece, own_bytes, tag_of(request, 0));
    post_send(posted, transfer, static_cast<int>(to),
              transfer->in_data() + sum(request.to_bytes, 0, to), request.to_bytes[to],
              tag_of(request, 0));
  }
  posted.wait(transfer);
  const bool to_all = request.kind == TransferKind::kAllReduce;
  char* target = transfer->out_data() + (to_all ? sum(request.to_bytes, 0, own) : 0);
  if (own_bytes > 0) sum_pieces(request.dtype, pieces, target, own_bytes);
  if (!to_all) return;
  for (size_t round = 1; round < size; ++round) {
    const size_t to = (own + round) % size;
    const size_t from = (own + size - round) % size;
    post_receive(posted, transfer, static_cast<int>(from),
                 transfer->out_data() + sum(request.to_bytes, 0, from), request.to_bytes[from],
                 tag_of(request, 1));
    post_send(posted, transfer, static_cast<int>(to), target, own_bytes, tag_of(request, 1));
  }
  posted.wait(transfer);
}

}  // namespace trireme::comm
