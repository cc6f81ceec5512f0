#include "trireme/comm/rank_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::comm {

std::string name_ranks(const std::vector<int>& ranks) {
  TRIREME_CHECK(!ranks.empty(), "no ranks to name");
  std::vector<std::string> runs;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    if (end - i >= 3) {
      runs.push_back(fmt::format("{}-{}", ranks[i], ranks[end - 1]));
      i = end;
    } else {
      runs.push_back(std::to_string(ranks[i]));
      ++i;
    }
  }
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < runs.size(); ++i) {
    if (i > 0) text += i + 1 == runs.size() ? " and " : ", ";
    text += runs[i];
  }
  return text;
}

std::string name_rank(int rank, const std::string& host) {
  return host.empty() ? fmt::format("rank {}", rank) : fmt::format("rank {} ({})", rank, host);
}

std::string name_ranks_by_host(const std::vector<int>& ranks,
                               const std::vector<std::string>& hosts) {
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (const int rank : ranks) {
    const auto index = static_cast<size_t>(rank);
    const std::string host = index < hosts.size() ? hosts[index] : "";
    const auto found = std::find_if(groups.begin(), groups.end(),
                                    [&](const auto& group) { return group.first == host; });
    if (found == groups.end()) {
      groups.push_back({host, {rank}});
    } else {
      found->second.push_back(rank);
    }
  }
  std::string text;
  for (const auto& [host, members] : groups) {
    if (!text.empty()) text += ", ";
    text += name_ranks(members);
    if (!host.empty()) text += fmt::format(" ({})", host);
  }
  return text;
}

}  // namespace trireme::comm
