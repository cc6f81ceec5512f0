#include "trireme/train/validation_blocks.h"

#include <cstring>

#include "trireme/base/error.h"

namespace trireme::train {

std::vector<BlockFigures> in_turns(const std::vector<BlockFigures>& mine, int64_t count,
                                   comm::World& world) {
  std::string bytes(mine.size() * sizeof(BlockFigures), '\0');
  std::memcpy(bytes.data(), mine.data(), bytes.size());
  const std::vector<std::string> all = world.exchange(bytes);
  std::vector<BlockFigures> blocks(static_cast<size_t>(count));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string& of_rank = all[i % all.size()];
    const size_t at = i / all.size() * sizeof(BlockFigures);
    TRIREME_CHECK(at + sizeof(BlockFigures) <= of_rank.size(), "rank {} evaluated {} bytes",
                  i % all.size(), of_rank.size());
    std::memcpy(&blocks[i], of_rank.data() + at, sizeof(BlockFigures));
  }
  return blocks;
}

}  // namespace trireme::train
