#include "trireme/infer/evaluation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/json.h"
#include "trireme/execute/executor.h"

namespace trireme::infer {

double Evaluation::loss() const {
  return num_tokens > 0 ? loss_sum / static_cast<double>(num_tokens)
                        : std::numeric_limits<double>::quiet_NaN();
}
double Evaluation::perplexity() const {
  return std::exp(loss());
}
double Evaluation::bits_per_byte() const {
  return num_bytes > 0 ? loss_sum / std::log(2.0) / static_cast<double>(num_bytes)
                       : std::numeric_limits<double>::quiet_NaN();
}

namespace {

void stop_if_interrupted() {
  if (interrupted()) throw Error(ErrorCode::kInterrupted, "interrupted while evaluating");
}

}  // namespace

std::vector<std::vector<float>> sequence_losses(
    nn::Model& model, const std::vector<std::vector<int32_t>>& sequences) {
  const model::ModelSpec& spec = model.spec();
  std::vector<std::vector<float>> losses;
  for (size_t line = 0; line < sequences.size(); ++line) {
    const std::vector<int32_t>& ids = sequences[line];
    for (const int32_t id : ids) {
      TRIREME_USER_CHECK(
          id >= 0 && id < spec.vocab_size, kData, "use the tokenizer that belongs to the model",
          "line {}: id {} is outside the vocabulary of {}", line + 1, id, spec.vocab_size);
    }
    if (ids.size() < 2) {
      losses.emplace_back();
      continue;
    }
    stop_if_interrupted();
    const size_t length = ids.size() - 1;
    TRIREME_USER_CHECK(static_cast<int64_t>(length) <= spec.max_positions, kData,
                       "cut the sequence", "line {}: {} ids, the model's context is {}", line + 1,
                       ids.size(), spec.max_positions);
    data::Batch batch;
    batch.rows = 1;
    batch.seq_len = static_cast<int64_t>(length);
    batch.tokens.assign(ids.begin(), ids.end() - 1);
    batch.targets.assign(ids.begin() + 1, ids.end());
    batch.positions.resize(length);
    for (size_t t = 0; t < length; ++t) batch.positions[t] = static_cast<int32_t>(t);
    batch.segments = {{0}};
    batch.num_targets = static_cast<int64_t>(length);
    losses.push_back(execute::evaluate(model, batch).token_losses);
    losses.back().resize(length);
  }
  return losses;
}

Evaluation evaluate_dataset(nn::Model& model, const data::Dataset& dataset, int64_t rows,
                            int64_t max_windows,
                            const std::function<void(int64_t, int64_t)>& progress) {
  TRIREME_USER_CHECK(dataset.max_id() < model.spec().vocab_size, kData,
                     "use the tokenizer that belongs to the model",
                     "the data has id {}, the model's vocabulary is {}", dataset.max_id(),
                     model.spec().vocab_size);
  const int64_t windows =
      max_windows > 0 ? std::min(max_windows, dataset.num_windows()) : dataset.num_windows();
  Evaluation total;
  for (int64_t first = 0; first < windows; first += rows) {
    stop_if_interrupted();
    const data::Batch batch = dataset.windows(first, std::min(rows, windows - first));
    const execute::EvaluationResult result = execute::evaluate(model, batch);
    total.loss_sum += result.loss_sum;
    total.num_tokens += result.num_targets;
    total.num_bytes += result.num_bytes;
    if (progress) progress(std::min(first + rows, windows), windows);
  }
  return total;
}

namespace {

/// Calls `body(line number from 1, line)` for every line that is not blank.
template <typename Body>
void for_each_line(std::string_view text, Body body) {
  int64_t number = 0;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    ++number;
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) body(number, line);
  }
}

}  // namespace

std::vector<std::vector<int32_t>> parse_id_lines(std::string_view text, const std::string& origin) {
  std::vector<std::vector<int32_t>> sequences;
  for_each_line(text, [&](int64_t number, std::string_view line) {
    const std::string where = fmt::format("{}:{}", origin, number);
    const Json json = parse_json(line, where);
    TRIREME_USER_CHECK(json.is_array(), kData, "write one array such as [1, 15, 7] a line",
                       "{}: not a JSON array", where);
    std::vector<int32_t>& ids = sequences.emplace_back();
    for (const Json& id : json) {
      TRIREME_USER_CHECK(id.is_number_integer() && id.get<int64_t>() >= 0 &&
                             id.get<int64_t>() <= std::numeric_limits<int32_t>::max(),
                         kData, "token ids are integers from 0 on", "{}: {} is not a token id",
                         where, id.dump());
      ids.push_back(id.get<int32_t>());
    }
  });
  TRIREME_USER_CHECK(!sequences.empty(), kData, "write one JSON array of ids a line",
                     "{} has no sequences", origin);
  return sequences;
}

std::vector<TaskItem> parse_task_lines(std::string_view text, const std::string& origin) {
  std::vector<TaskItem> items;
  for_each_line(text, [&](int64_t number, std::string_view line) {
    const std::string where = fmt::format("{}:{}", origin, number);
    const Json json = parse_json(line, where);
    const char* shape =
        "write {\"task\": name, \"context\": text, \"choices\": [texts], \"answer\": index}";
    TRIREME_USER_CHECK(json.is_object(), kData, shape, "{}: not a JSON object", where);
    for (const char* key : {"context", "choices", "answer"}) {
      TRIREME_USER_CHECK(json.contains(key), kData, shape, "{}: key \"{}\" is missing", where, key);
    }
    TaskItem item;
    TRIREME_USER_CHECK(json["context"].is_string(), kData, shape, "{}: \"context\" is not text",
                       where);
    item.context = json["context"].get<std::string>();
    TRIREME_USER_CHECK(json["choices"].is_array() && !json["choices"].empty(), kData, shape,
                       "{}: \"choices\" is not a list of texts", where);
    for (const Json& choice : json["choices"]) {
      TRIREME_USER_CHECK(choice.is_string() && !choice.get<std::string>().empty(), kData, shape,
                         "{}: a choice is not text", where);
      item.choices.push_back(choice.get<std::string>());
    }
    TRIREME_USER_CHECK(json["answer"].is_number_integer(), kData, shape,
                       "{}: \"answer\" is not an index", where);
    item.answer = json["answer"].get<int64_t>();
    TRIREME_USER_CHECK(item.answer >= 0 && item.answer < static_cast<int64_t>(item.choices.size()),
                       kData, shape, "{}: answer {} of {} choices (indices start at 0)", where,
                       item.answer, item.choices.size());
    item.task = json.value("task", std::string("task"));
    items.push_back(std::move(item));
  });
  TRIREME_USER_CHECK(!items.empty(), kData, "write one JSON object a line", "{} has no questions",
                     origin);
  return items;
}

std::vector<TaskResult> evaluate_tasks(nn::Model& model, const data::Tokenizer& tokenizer,
                                       const std::vector<TaskItem>& items) {
  std::map<std::string, TaskResult> results;
  for (const TaskItem& item : items) {
    const std::vector<int32_t> context = tokenizer.encode(item.context);
    size_t best = 0, best_norm = 0;
    double best_score = -std::numeric_limits<double>::infinity(), best_norm_score = best_score;
    for (size_t c = 0; c < item.choices.size(); ++c) {
      // The choice's tokens are those of the whole text after the context's, so that merges across
      // the seam count.
      std::vector<int32_t> whole = tokenizer.encode(item.context + item.choices[c]);
      size_t shared = std::min(context.size(), whole.size() - (whole.empty() ? 0 : 1));
      if (shared == 0 && model.spec().bos_token_id >= 0) {
        whole.insert(whole.begin(), model.spec().bos_token_id);
        shared = 1;
      }
      const int64_t excess = static_cast<int64_t>(whole.size()) - 1 - model.spec().max_positions;
      if (excess > 0) {
        whole.erase(whole.begin(), whole.begin() + excess);
        shared = shared > static_cast<size_t>(excess) ? shared - static_cast<size_t>(excess) : 1;
      }
      const std::vector<float> losses = sequence_losses(model, {whole})[0];
      double score = 0.0;
      for (size_t t = shared > 0 ? shared - 1 : 0; t < losses.size(); ++t) score -= losses[t];
      // Characters, as lm-evaluation-harness counts them: bytes that begin one.
      const auto characters = std::count_if(item.choices[c].begin(), item.choices[c].end(),
                                            [](char byte) { return (byte & 0xC0) != 0x80; });
      const double norm_score = score / static_cast<double>(characters);
      if (score > best_score) best = c, best_score = score;
      if (norm_score > best_norm_score) best_norm = c, best_norm_score = norm_score;
    }
    TaskResult& result = results[item.task];
    result.name = item.task;
    result.count += 1;
    result.acc += best == static_cast<size_t>(item.answer);
    result.acc_norm += best_norm == static_cast<size_t>(item.answer);
  }
  std::vector<TaskResult> list;
  for (auto& [name, result] : results) {
    result.acc /= static_cast<double>(result.count);
    result.acc_norm /= static_cast<double>(result.count);
    list.push_back(result);
  }
  return list;
}

}  // namespace trireme::infer
