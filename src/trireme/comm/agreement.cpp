#include "trireme/comm/agreement.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/comm/group.h"
#include "trireme/comm/rank_names.h"

namespace trireme::comm {

namespace {

// Long values are told apart by their beginning.
constexpr size_t kShownBytes = 48;

/// One value, and who has it.
struct Camp {
  std::string value;
  bool present = true;
  std::vector<int> ranks;
};

std::vector<Camp> camps_of(const std::string& name, const std::vector<Digests>& by_rank) {
  std::vector<Camp> camps;
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    const auto found = std::find_if(by_rank[rank].begin(), by_rank[rank].end(),
                                    [&](const auto& digest) { return digest.first == name; });
    const bool present = found != by_rank[rank].end();
    const std::string value = present ? found->second : "";
    const auto camp = std::find_if(camps.begin(), camps.end(), [&](const Camp& other) {
      return other.present == present && other.value == value;
    });
    if (camp == camps.end()) {
      camps.push_back({value, present, {static_cast<int>(rank)}});
    } else {
      camp->ranks.push_back(static_cast<int>(rank));
    }
  }
  // The majority first; of equals, whoever has the smallest rank.
  std::stable_sort(camps.begin(), camps.end(),
                   [](const Camp& a, const Camp& b) { return a.ranks.size() > b.ranks.size(); });
  return camps;
}

std::string shown(const Camp& camp) {
  if (!camp.present) return "none";
  if (camp.value.size() <= kShownBytes) return camp.value;
  return camp.value.substr(0, kShownBytes) + "...";
}

std::string to_bytes(const Digests& digests) {
  OrderedJson json = OrderedJson::array();
  for (const auto& [name, value] : digests) json.push_back({name, value});
  return json.dump();
}

Digests from_bytes(const std::string& bytes, int rank) {
  Digests digests;
  try {
    for (const Json& entry : parse_json(bytes, fmt::format("rank {}", rank)))
      digests.emplace_back(entry.at(0).get<std::string>(), entry.at(1).get<std::string>());
  } catch (const std::exception&) {
    // Another version's: it has none of the names, and so differs in all.
    digests.clear();
  }
  return digests;
}

}  // namespace

std::string find_disagreement(const std::vector<Digests>& by_rank,
                              const std::vector<std::string>& hosts) {
  std::vector<std::string> names;
  for (const Digests& digests : by_rank) {
    for (const auto& [name, value] : digests) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  std::string text;
  for (const std::string& name : names) {
    const std::vector<Camp> camps = camps_of(name, by_rank);
    if (camps.size() < 2) continue;
    if (!text.empty()) text += "\n";
    text += name + " differs: ";
    for (size_t i = 0; i < camps.size(); ++i) {
      text +=
          fmt::format("{}{} {} {}", i == 0 ? "" : "; ", name_ranks_by_host(camps[i].ranks, hosts),
                      camps[i].ranks.size() == 1 ? "has" : "have", shown(camps[i]));
    }
  }
  return text;
}

void agree(World& world, const Digests& digests) {
  const std::vector<std::string> all = world.exchange(to_bytes(digests));
  std::vector<Digests> by_rank;
  std::vector<std::string> hosts;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    by_rank.push_back(from_bytes(all[rank], static_cast<int>(rank)));
    hosts.push_back(world.host(static_cast<int>(rank)));
  }
  const std::string text = find_disagreement(by_rank, hosts);
  TRIREME_USER_CHECK(text.empty(), kConfig,
                     "give every rank the same run file, data and version of trireme",
                     "the ranks were not started alike: {}", text);
}

}  // namespace trireme::comm
