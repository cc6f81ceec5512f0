#include "trireme/comm/transfer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::comm {

const char* to_string(TransferKind kind) {
  switch (kind) {
    case TransferKind::kSend:
      return "send";
    case TransferKind::kReceive:
      return "receive";
    case TransferKind::kAllToAll:
      return "all_to_all";
    case TransferKind::kAllGather:
      return "all_gather";
    case TransferKind::kBroadcast:
      return "broadcast";
    case TransferKind::kAllReduce:
      return "all_reduce";
    case TransferKind::kReduceScatter:
      return "reduce_scatter";
  }
  return "?";
}

std::string list_ranks(const std::vector<int>& ranks) {
  return fmt::format("{}", fmt::join(ranks, ","));
}

std::string describe(const Request& request, const std::vector<int>& members) {
  const std::string group = list_ranks(members);
  if (is_collective(request.kind))
    return fmt::format("{} #{} of group {}", to_string(request.kind), request.number, group);
  return fmt::format("{} #{} {} rank {} of group {}", to_string(request.kind), request.number,
                     request.kind == TransferKind::kSend ? "to" : "from",
                     members.at(static_cast<size_t>(request.peer)), group);
}

void check_members(const std::vector<int>& members, int size) {
  bool ascending = !members.empty() && members.front() >= 0 && members.back() < size;
  for (size_t i = 1; i < members.size(); ++i) ascending = ascending && members[i - 1] < members[i];
  TRIREME_CHECK(ascending, "a group of ranks {} in a world of {}", list_ranks(members), size);
}

void check_same_group(const std::vector<std::string>& lists, int rank) {
  const std::string& list = lists.at(static_cast<size_t>(rank));
  for (size_t other = 0; other < lists.size(); ++other)
    TRIREME_CHECK(lists[other] == list, "rank {} makes group {} where rank {} makes group {}", rank,
                  list, other, lists[other]);
}

std::string this_host() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown host";
  return name.data();
}

const char* Transfer::in_data() const {
  return host_in.defined() ? static_cast<const char*>(host_in.const_data_ptr()) : nullptr;
}

char* Transfer::out_data() const {
  return host_out.defined() ? static_cast<char*>(host_out.mutable_data_ptr()) : nullptr;
}

void Transfer::arrived(double start_s, double end_s) {
  if (!then) {
    finish(start_s, end_s);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    if (done_) return;  // it failed meanwhile
    start_s_ = start_s;
    end_s_ = end_s;
  }
  then(shared_from_this());
}

void Transfer::finish(double start_s, double end_s) {
  const std::lock_guard lock(mutex_);
  if (done_) return;
  start_s_ = start_s;
  end_s_ = end_s;
  done_ = true;
  ended_.notify_all();
}

void Transfer::fail(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  if (done_) return;
  error_ = std::move(error);
  done_ = true;
  ended_.notify_all();
}

void Transfer::let_go() {
  const std::lock_guard lock(mutex_);
  if (!done_ || error_ != nullptr) return;
  for (at::Tensor* const tensor : {&request_.in, &request_.out, &host_in, &host_out})
    tensor->reset();
}

bool Transfer::done() const {
  const std::lock_guard lock(mutex_);
  return done_;
}

bool Transfer::failed() const {
  const std::lock_guard lock(mutex_);
  return done_ && error_ != nullptr;
}

bool Transfer::wait_until_done(double timeout_s) const {
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, std::chrono::duration<double>(timeout_s), [this] { return done_; });
}

void Transfer::rethrow() const {
  const std::lock_guard lock(mutex_);
  TRIREME_CHECK(done_, "{} has not ended", name_);
  if (error_ != nullptr) std::rethrow_exception(error_);
}

}  // namespace trireme::comm
