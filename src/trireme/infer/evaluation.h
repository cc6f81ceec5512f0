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
  std::string delimiter;  ///< between context and choice; does not count as the choice's
  int64_t answer = 0;
  int64_t line = 0;  ///< of the file, from 1
};

/// JSON lines with keys `task` (optional), `context`, `choices`, `answer` (index), `delimiter`
/// (optional): docs/formats/tasks.md. Error{kData} naming the line; of a key that is none of these, also the key that is nearest.
std::vector<TaskItem> parse_task_lines(std::string_view text, const std::string& origin);

/// Ids of a context and what continues it: ids[first .. ] are the continuation.
struct ContinuationIds {
  std::vector<int32_t> ids;
  size_t first = 0;
};
/// As lm-evaluation-harness 0.4 splits them: white space at the end of the context belongs to the
/// continuation, whose ids are those of the whole text behind as many as the context alone has. An
/// empty context is the beginning-of-text token, else the end-of-text token.
ContinuationIds encode_continuation(const data::Tokenizer& tokenizer, const std::string& context,
                                    const std::string& continuation);

/// Accuracy as lm-evaluation-harness 0.4 defines it: `acc` by the choice's summed log-probability,
/// `acc_norm` by the same divided by the choice's length in characters, `acc_bytes` in bytes. The
/// first of equals wins.
struct TaskResult {
  std::string name;
  double acc = 0.0;
  double acc_norm = 0.0;
  double acc_bytes = 0.0;
  int64_t count = 0;
  int64_t contexts_cut = 0;  ///< questions whose context lost its beginning for at least one choice
};
/// A context that with its choice is longer than the model's loses its beginning. Error{kData} naming the line and the choice that adds no
/// token, or by itself is longer.
std::vector<TaskResult> evaluate_tasks(nn::Model& model, const data::Tokenizer& tokenizer,
                                       const std::vector<TaskItem>& items);

}  // namespace trireme::infer
