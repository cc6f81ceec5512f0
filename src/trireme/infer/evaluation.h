// Losses of a model on ids, on data sets and on multiple-choice tasks.
//
// All of it blocks, and throws Error{kInterrupted} between two forward passes once interrupted() is set.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trireme/data/dataset.h"
#include "trireme/data/tokenizer.h"
#include "trireme/nn/model.h"

namespace trireme::infer {

/// Losses in nats over predicted tokens. `num_bytes` is 0 where the tokenizer is not known.
struct Evaluation {
  double loss_sum = 0.0;
  int64_t num_tokens = 0;
  int64_t num_bytes = 0;
  double loss() const;           ///< mean; NaN without tokens
  double perplexity() const;     ///< exp(loss)
  double bits_per_byte() const;  ///< loss_sum / ln 2 / num_bytes; NaN if unknown
};

/// Every sequence alone, from position 0: losses[i][t] is the loss of predicting ids[i][t + 1].
/// Error{kData} for an id outside the vocabulary or a sequence longer than the context (named by
/// its 1-based line).
std::vector<std::vector<float>> sequence_losses(nn::Model& model,
                                                const std::vector<std::vector<int32_t>>& sequences);

/// The windows of a data set in order, `rows` at a time; all, or the first `max_windows` if
/// positive. `progress` is called with windows done and in all.
Evaluation evaluate_dataset(nn::Model& model, const data::Dataset& dataset, int64_t rows,
                            int64_t max_windows = 0,
                            const std::function<void(int64_t, int64_t)>& progress = {});

/// Sequences from a file with one JSON array of ids a line; blank lines are left out. Error{kData}
/// naming the line.
std::vector<std::vector<int32_t>> parse_id_lines(std::string_view text, const std::string& origin);

/// One question: which of `choices` continues `context`?
struct TaskItem {
  std::string task;
  std::string context;
  std::vector<std::string> choices;
  int64_t answer = 0;
};

/// JSON lines with keys `task` (optional), `context`, `choices`, `answer` (index). Error{kData}
/// naming the line.
std::vector<TaskItem> parse_task_lines(std::string_view text, const std::string& origin);

/// Accuracy as lm-evaluation-harness defines it: `acc` by the choice's summed log-probability,
/// `acc_norm` by the same divided by the number of characters of the choice.
struct TaskResult {
  std::string name;
  double acc = 0.0;
  double acc_norm = 0.0;
  int64_t count = 0;
};
std::vector<TaskResult> evaluate_tasks(nn::Model& model, const data::Tokenizer& tokenizer,
                                       const std::vector<TaskItem>& items);

}  // namespace trireme::infer
