#include "trireme/train/validation.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
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

/// Who evaluates: shares of blocks in turn, each one's figures on one rank of the world.
struct Evaluators {
  std::vector<int> ranks;
  int mine = 0;  ///< the share that this rank works on
};

Evaluators evaluators_of(const comm::World& world, const execute::StageEvaluation* stages) {
  if (stages != nullptr) return {stages->last_ranks(), stages->pipeline()};
  Evaluators all{std::vector<int>(static_cast<size_t>(world.size())), world.rank()};
  std::iota(all.ranks.begin(), all.ranks.end(), 0);
  return all;
}

/// All `count` blocks in order, of which share s has those with number s, s + shares ...
std::vector<BlockFigures> in_turns(const std::vector<BlockFigures>& mine, int64_t count,
                                   const Evaluators& evaluators, comm::World& world) {
  std::string bytes(mine.size() * sizeof(BlockFigures), '\0');
  std::memcpy(bytes.data(), mine.data(), bytes.size());
  const std::vector<std::string> all = world.exchange(bytes);
  const size_t shares = evaluators.ranks.size();
  std::vector<BlockFigures> blocks(static_cast<size_t>(count));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int rank = evaluators.ranks[i % shares];
    const std::string& of_rank = all[static_cast<size_t>(rank)];
    const size_t at = i / shares * sizeof(BlockFigures);
    TRIREME_CHECK(at + sizeof(BlockFigures) <= of_rank.size(), "rank {} evaluated {} bytes", rank,
                  of_rank.size());
    std::memcpy(&blocks[i], of_rank.data() + at, sizeof(BlockFigures));
  }
  return blocks;
}

/// Figures of some batches; of a pipeline's, zeros where the head is not here.
std::vector<BlockFigures> evaluate_blocks(nn::Model& model, const std::vector<data::Batch>& batches,
                                          int64_t loss_chunk_rows,
                                          execute::StageEvaluation* stages) {
  std::vector<execute::EvaluationResult> results;
  if (stages != nullptr) {
    results = stages->evaluate(batches, loss_chunk_rows);
  } else {
    for (const data::Batch& batch : batches)
      results.push_back(execute::evaluate(model, batch, loss_chunk_rows));
  }
  std::vector<BlockFigures> figures;
  for (const execute::EvaluationResult& result : results)
    figures.push_back({result.loss_sum, result.num_targets, result.num_bytes});
  return figures;
}

}  // namespace

std::optional<Validation> evaluate_dataset(nn::Model& model, const data::Dataset& dataset,
                                           const ValidationOptions& options, comm::World& world,
                                           execute::StageEvaluation* stages) {
  const int64_t rows = options.rows;
  const int64_t blocks = (dataset.num_windows() + rows - 1) / rows;
  const int64_t wanted =
      options.sequences == 0
          ? blocks
          : std::clamp<int64_t>((options.sequences + rows - 1) / rows, 1, blocks);
  const Evaluators evaluators = evaluators_of(world, stages);
  const auto shares = static_cast<int64_t>(evaluators.ranks.size());
  const int64_t at_once = stages == nullptr ? 1 : stages->batches_at_once();
  std::vector<BlockFigures> mine;
  // As many rounds for all: whoever has no block left still gives others its share of the weights (ZeRO 3).
  const int64_t rounds = ((wanted + shares - 1) / shares + at_once - 1) / at_once;
  int64_t i = evaluators.mine;
  for (int64_t round = 0; round < rounds; ++round) {
    world.check();
    std::vector<data::Batch> batches;
    std::vector<size_t> places;
    for (int64_t n = 0; n < at_once && i < wanted; ++n, i += shares) {
      data::Batch batch = dataset.windows(blocks * i / wanted * rows, rows);
      mine.emplace_back();
      if (batch.num_targets == 0) continue;
      places.push_back(mine.size() - 1);
      batches.push_back(std::move(batch));
    }
    const std::vector<BlockFigures> figures =
        evaluate_blocks(model, batches, options.loss_chunk_rows, stages);
    for (size_t n = 0; n < figures.size(); ++n) mine[places[n]] = figures[n];
  }
  BlockFigures sum;
  for (const BlockFigures& block : in_turns(mine, wanted, evaluators, world)) {
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
