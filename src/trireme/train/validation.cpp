#include "trireme/train/validation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/execute/evaluation.h"

namespace trireme::train {

namespace {

struct BlockFigures {
  double loss_sum = 0.0;  ///< nats
  int64_t targets = 0;
  int64_t bytes = 0;
};

/// All `count` blocks in order, of which this rank gives those with number rank, rank + size ...
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

}  // namespace

std::optional<Validation> evaluate_dataset(nn::Model& model, const data::Dataset& dataset,
                                           const ValidationOptions& options, comm::World& world) {
  const int64_t rows = options.rows;
  const int64_t blocks = (dataset.num_windows() + rows - 1) / rows;
  const int64_t wanted =
      options.sequences == 0
          ? blocks
          : std::clamp<int64_t>((options.sequences + rows - 1) / rows, 1, blocks);
  std::vector<BlockFigures> mine;
  for (int64_t i = world.rank(); i < wanted; i += world.size()) {
    world.check();
    const data::Batch batch = dataset.windows(blocks * i / wanted * rows, rows);
    BlockFigures& figures = mine.emplace_back();
    if (batch.num_targets == 0) continue;
    const execute::EvaluationResult result =
        execute::evaluate(model, batch, options.loss_chunk_rows);
    figures = {result.loss_sum, result.num_targets, result.num_bytes};
  }
  BlockFigures sum;
  for (const BlockFigures& block : in_turns(mine, wanted, world)) {
    sum.loss_sum += block.loss_sum;
    sum.targets += block.targets;
    sum.bytes += block.bytes;
  }
  if (sum.targets == 0) return std::nullopt;
  Validation validation;
  validation.loss = sum.loss_sum / static_cast<double>(sum.targets);
  if (sum.bytes > 0)
    validation.bits_per_byte = sum.loss_sum / std::log(2.0) / static_cast<double>(sum.bytes);
  return validation;
}

}  // namespace trireme::train
