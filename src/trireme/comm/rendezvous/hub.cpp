#include "trireme/comm/rendezvous/hub.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/comm/rank_names.h"

namespace trireme::comm {

namespace {

constexpr size_t kEntryBytes = 64;  // what a key costs beside its bytes
constexpr size_t kMaxWaiting = 1 << 16;
constexpr size_t kMaxReasons = 3;
constexpr size_t kMaxHostBytes = 128;
constexpr size_t kMaxReasonBytes = 4096;

[[noreturn]] void protocol_error(const char* what) {
  throw Error(ErrorCode::kDevice, fmt::format("a rank breaks the rendezvous' protocol: {}", what),
              "start all ranks with the same version of trireme");
}

void check_texts(const Message& message, size_t count) {
  if (message.texts.size() != count) protocol_error("a request has too many or too few parts");
}

std::optional<int64_t> to_number(const std::string& text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end) return std::nullopt;
  return value;
}

/// What a host calls itself goes into messages: without control characters.
std::string printable(std::string host) {
  host.resize(std::min(host.size(), kMaxHostBytes));
  std::replace_if(host.begin(), host.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return host;
}

}  // namespace

RendezvousHub::RendezvousHub(RendezvousHubOptions options) : options_(std::move(options)) {
  TRIREME_CHECK(options_.size >= 1, "a rendezvous of {} ranks", options_.size);
}

std::vector<RendezvousHub::Outgoing> RendezvousHub::take_outgoing() {
  return std::exchange(outgoing_, {});
}

int RendezvousHub::num_present() const {
  return static_cast<int>(std::count_if(members_.begin(), members_.end(),
                                        [](const auto& entry) { return !entry.second.left; }));
}

void RendezvousHub::reply(Connection to, uint64_t id, int64_t number,
                          std::vector<std::string> texts) {
  outgoing_.push_back({to, {MessageKind::kReply, id, number, std::move(texts)}});
}

void RendezvousHub::refuse(Connection to, uint64_t id, const std::string& reason) {
  outgoing_.push_back({to, {MessageKind::kRefused, id, 0, {reason.substr(0, kMaxReasonBytes)}}});
}

void RendezvousHub::receive(Connection from, const Message& message) {
  const auto found = members_.find(from);
  if (found == members_.end()) {
    if (message.kind != MessageKind::kJoin) protocol_error("it asks before it has joined");
    join(from, message);
    return;
  }
  Member& member = found->second;
  switch (message.kind) {
    case MessageKind::kAbort:
      check_texts(message, 1);
      // A reason makes the difference between a rank that stops the run and one whose connection closed.
      announce_loss(member, message.texts[0].empty() ? "for no reason"
                                                     : message.texts[0].substr(0, kMaxReasonBytes));
      member.left = true;  // that its connection closes is no news then
      break;
    case MessageKind::kGoodbye:
      member.left = true;
      reply(from, message.id);
      break;
    case MessageKind::kJoin:
      protocol_error("it joins twice");
    default:
      if (!met_) protocol_error("it asks before all are there");
      answer_store(from, message);
  }
}

void RendezvousHub::join(Connection from, const Message& message) {
  check_texts(message, 2);
  const std::string host = printable(message.texts[0]);
  const std::optional<int64_t> size = to_number(message.texts[1]);
  const int64_t rank = message.number;
  std::string reason;
  if (failed_) {
    reason = "the meeting is over, for a rank was missing or gone";
  } else if (!size || *size != options_.size) {
    reason = fmt::format("{} is one of {} ranks there, but rank 0 waits for {}",
                         name_rank(static_cast<int>(rank), host), printable(message.texts[1]),
                         options_.size);
  } else if (rank < -1 || rank >= options_.size) {
    reason = fmt::format("there is no rank {} among {}", rank, options_.size);
  } else if (met_) {
    reason = fmt::format("all {} ranks are there already", options_.size);
  } else {
    for (const auto& [connection, member] : members_) {
      if (rank >= 0 && member.rank == rank) {
        reason = fmt::format("two processes say that they are rank {}: on {} and on {}", rank,
                             member.host, host);
      }
    }
  }
  if (!reason.empty()) {
    refuse(from, message.id, reason);
    turned_away(reason);
    return;
  }
  members_[from] = {static_cast<int>(rank), host, false};
  arrivals_.push_back(from);
  welcome_if_complete();
}

void RendezvousHub::welcome_if_complete() {
  if (members_.size() != static_cast<size_t>(options_.size)) return;
  std::set<int> taken;
  for (const auto& [connection, member] : members_) taken.insert(member.rank);
  // Who did not say which rank it is gets what is left, in the order of arrival.
  int next = 0;
  for (const Connection connection : arrivals_) {
    Member& member = members_.at(connection);
    if (member.rank >= 0) continue;
    while (taken.contains(next)) ++next;
    member.rank = next++;
  }
  std::vector<std::string> hosts(members_.size());
  for (const auto& [connection, member] : members_)
    hosts[static_cast<size_t>(member.rank)] = member.host;
  met_ = true;
  for (const auto& [connection, member] : members_)
    outgoing_.push_back({connection, {MessageKind::kWelcome, 0, member.rank, hosts}});
}

void RendezvousHub::turned_away(const std::string& reason) {
  if (turned_away_.size() < kMaxReasons &&
      std::find(turned_away_.begin(), turned_away_.end(), reason) == turned_away_.end())
    turned_away_.push_back(reason);
}

void RendezvousHub::fail_meeting(const std::string& reason) {
  failed_ = true;
  for (const auto& [connection, member] : members_) refuse(connection, 0, reason);
}

void RendezvousHub::time_is_over() {
  if (met_ || failed_) return;
  std::vector<int> missing;
  int unnamed = 0;
  std::set<int> there;
  for (const auto& [connection, member] : members_) {
    there.insert(member.rank);
    unnamed += member.rank < 0;
  }
  for (int rank = 0; rank < options_.size; ++rank) {
    if (!there.contains(rank)) missing.push_back(rank);
  }
  std::string text = fmt::format("{} of {} ranks came to {} within {:g} s", members_.size(),
                                 options_.size, options_.address, options_.timeout_s);
  // With ranks by arrival nobody in particular is missing.
  if (unnamed == 0) {
    text += fmt::format(": {} {} missing", name_ranks_by_host(missing, options_.expected_hosts),
                        missing.size() == 1 ? "is" : "are");
  }
  if (!turned_away_.empty())
    text += fmt::format(" (turned away: {})", fmt::join(turned_away_, "; "));
  fail_meeting(text);
}

void RendezvousHub::closed(Connection connection) {
  const auto found = members_.find(connection);
  if (found == members_.end()) return;
  const Member member = found->second;
  members_.erase(found);
  std::erase(arrivals_, connection);
  std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.from == connection; });
  if (member.left || failed_) return;
  if (!met_) {
    fail_meeting(fmt::format("{} came and went before all ranks were there",
                             member.rank < 0 ? member.host : name_rank(member.rank, member.host)));
    return;
  }
  announce_loss(member, "");
}

void RendezvousHub::announce_loss(const Member& member, const std::string& reason) {
  if (!met_) {
    fail_meeting(fmt::format("{} gave up before all ranks were there: {}",
                             name_rank(member.rank, member.host), reason));
    return;
  }
  lost_ = name_rank(member.rank, member.host) +
          (reason.empty() ? " is gone" : " stopped the run: " + reason);
  for (const auto& [connection, other] : members_) {
    if (other.rank != member.rank) {
      outgoing_.push_back(
          {connection, {MessageKind::kLost, 0, member.rank, {member.host, reason}}});
    }
  }
  for (const Waiting& waiting : waiting_) refuse(waiting.from, waiting.id, lost_);
  waiting_.clear();
}

bool RendezvousHub::have_all(const std::vector<std::string>& keys) const {
  return std::all_of(keys.begin(), keys.end(),
                     [&](const std::string& key) { return values_.contains(key); });
}

void RendezvousHub::answer_wait(const Waiting& waiting) {
  std::vector<std::string> texts;
  if (waiting.with_values) {
    size_t bytes = 0;
    for (const std::string& key : waiting.keys) {
      texts.push_back(values_.at(key));
      bytes += texts.back().size() + 4;
    }
    if (bytes > 2 * kMaxValueBytes) {
      refuse(waiting.from, waiting.id, "the values asked for at once are too long");
      return;
    }
  }
  reply(waiting.from, waiting.id, 0, std::move(texts));
}

void RendezvousHub::wait(Connection from, const Message& message) {
  Waiting waiting = {from, message.id, message.texts, message.number != 0};
  if (have_all(waiting.keys)) {
    answer_wait(waiting);
  } else if (!lost_.empty()) {
    refuse(from, message.id, lost_);
  } else if (waiting_.size() >= kMaxWaiting) {
    refuse(from, message.id, "too many requests wait for keys");
  } else {
    waiting_.push_back(std::move(waiting));
  }
}

void RendezvousHub::wake(const std::string& key) {
  std::vector<Waiting> ready;
  std::erase_if(waiting_, [&](Waiting& waiting) {
    const bool asks =
        std::find(waiting.keys.begin(), waiting.keys.end(), key) != waiting.keys.end();
    if (!asks || !have_all(waiting.keys)) return false;
    ready.push_back(std::move(waiting));
    return true;
  });
  for (const Waiting& waiting : ready) answer_wait(waiting);
}

void RendezvousHub::store(Connection from, uint64_t id, const std::string& key, std::string value,
                          int64_t number, std::vector<std::string> texts) {
  if (key.size() > kMaxKeyBytes || value.size() > kMaxValueBytes) {
    refuse(from, id,
           fmt::format("a key of {} bytes with a value of {} is too long for the store", key.size(),
                       value.size()));
    return;
  }
  const auto found = values_.find(key);
  const size_t before =
      found == values_.end() ? 0 : key.size() + found->second.size() + kEntryBytes;
  const size_t after = key.size() + value.size() + kEntryBytes;
  if (stored_bytes_ - before + after > options_.max_stored_bytes) {
    refuse(from, id, fmt::format("the store is full: it holds {} bytes", stored_bytes_));
    return;
  }
  stored_bytes_ = stored_bytes_ - before + after;
  values_[key] = std::move(value);
  reply(from, id, number, std::move(texts));
  wake(key);
}

void RendezvousHub::answer_store(Connection from, const Message& message) {
  const auto value_of = [&](const std::string& key) {
    const auto found = values_.find(key);
    return found == values_.end() ? std::string() : found->second;
  };
  switch (message.kind) {
    case MessageKind::kWait:
      wait(from, message);
      break;
    case MessageKind::kCancel:
      std::erase_if(waiting_, [&](const Waiting& waiting) {
        return waiting.from == from && waiting.id == message.id;
      });
      break;
    case MessageKind::kSet:
      check_texts(message, 2);
      store(from, message.id, message.texts[0], message.texts[1], 0, {});
      break;
    case MessageKind::kAdd: {
      check_texts(message, 1);
      const std::string& key = message.texts[0];
      const std::optional<int64_t> before =
          values_.contains(key) ? to_number(values_.at(key)) : std::optional<int64_t>(0);
      int64_t sum = 0;
      if (!before || __builtin_add_overflow(*before, message.number, &sum)) {
        refuse(from, message.id, fmt::format("'{}' holds no number that can be added to", key));
      } else {
        store(from, message.id, key, std::to_string(sum), sum, {});
      }
      break;
    }
    case MessageKind::kAppend:
      check_texts(message, 2);
      store(from, message.id, message.texts[0], value_of(message.texts[0]) + message.texts[1], 0,
            {});
      break;
    case MessageKind::kCompareSet: {
      check_texts(message, 3);
      const std::string& key = message.texts[0];
      // As c10d's stores do: a key that is not there equals an empty expectation.
      const bool equal =
          values_.contains(key) ? values_.at(key) == message.texts[1] : message.texts[1].empty();
      if (equal) {
        store(from, message.id, key, message.texts[2], 0, {message.texts[2]});
      } else {
        reply(from, message.id, 0, {values_.contains(key) ? values_.at(key) : message.texts[1]});
      }
      break;
    }
    case MessageKind::kRemove: {
      check_texts(message, 1);
      const auto found = values_.find(message.texts[0]);
      const bool there = found != values_.end();
      if (there) {
        stored_bytes_ -= found->first.size() + found->second.size() + kEntryBytes;
        values_.erase(found);
      }
      reply(from, message.id, there);
      break;
    }
    case MessageKind::kCheck:
      reply(from, message.id, have_all(message.texts));
      break;
    case MessageKind::kCount:
      reply(from, message.id, static_cast<int64_t>(values_.size()));
      break;
    default:
      protocol_error("a request that ranks do not make");
  }
}

}  // namespace trireme::comm
