// Whether all ranks are about to do the same: before step 0 they compare digests of what they were given.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace trireme::comm {

class World;

/// Names with what they stand for: {{"program", "3fa9..."}, {"code", "0.1.0"}, {"data", "77c1..."}}.
using Digests = std::vector<std::pair<std::string, std::string>>;

/// What differs, for people: "program differs: ranks 0-2 (alpha) have 3fa9..., rank 3 (beta) has 77c1...", a line for each name, most
/// frequent value first. "" if all say the same. A rank that lacks a name differs. `by_rank` has every rank's digests, `hosts` its machine's name
/// (may be short). Pure.
std::string find_disagreement(const std::vector<Digests>& by_rank,
                              const std::vector<std::string>& hosts);

/// Collective over the world; blocks. Error{kConfig} at every rank with find_disagreement()'s text if ranks differ.
void agree(World& world, const Digests& digests);

}  // namespace trireme::comm
