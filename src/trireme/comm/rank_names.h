// How messages speak of ranks.
#pragma once

#include <string>
#include <vector>

namespace trireme::comm {

/// "rank 3", "ranks 1 and 3", "ranks 0-2, 5 and 7": `ranks` in ascending order, not empty.
std::string name_ranks(const std::vector<int>& ranks);

/// "rank 3 (host)"; without a host "rank 3".
std::string name_rank(int rank, const std::string& host);

/// "ranks 1 and 3 (alpha), rank 5 (beta)": ranks by host, hosts in the order of their first rank. `hosts` by rank; what it lacks
/// has no host.
std::string name_ranks_by_host(const std::vector<int>& ranks,
                               const std::vector<std::string>& hosts);

}  // namespace trireme::comm
