#include "trireme/infer/evaluation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/json.h"
#include "trireme/base/suggest.h"
#include "trireme/data/jinja/builtins.h"
#include "trireme/data/tokenizer_unicode.h"
#include "trireme/execute/evaluation.h"

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

namespace {

const std::vector<std::string> kTaskKeys = {"task", "context", "choices", "answer", "delimiter"};

}  // namespace

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
    for (const auto& [key, value] : json.items()) {
      TRIREME_USER_CHECK(std::ranges::find(kTaskKeys, key) != kTaskKeys.end(), kData,
                         suggestion(key, kTaskKeys), "{}: there is no key \"{}\"", where, key);
    }
    TaskItem item;
    item.task = "task";
    item.line = number;
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
    for (const auto& [key, text] :
         {std::pair{"task", &item.task}, {"delimiter", &item.delimiter}}) {
      if (!json.contains(key)) continue;
      TRIREME_USER_CHECK(json[key].is_string(), kData, shape, "{}: \"{}\" is not text", where, key);
      *text = json[key].get<std::string>();
    }
    items.push_back(std::move(item));
  });
  TRIREME_USER_CHECK(!items.empty(), kData, "write one JSON object a line", "{} has no questions",
                     origin);
  return items;
}

ContinuationIds encode_continuation(const data::Tokenizer& tokenizer, const std::string& context,
                                    const std::string& continuation) {
  const size_t cut = data::jinja::strip(data::jinja::Text(context), {}, false, true).size();
  const std::string text = context.substr(0, cut);
  const std::string rest = context.substr(cut) + continuation;
  const std::optional<int32_t> prefix =
      tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
  ContinuationIds result;
  if (text.empty()) {
    result.ids = tokenizer.encode(rest, {.add_special_tokens = false});
    if (prefix && (result.ids.empty() || result.ids.front() != *prefix))
      result.ids.insert(result.ids.begin(), *prefix);
    result.first = 1;
    return result;
  }
  data::EncodeOptions options;
  // A text that spells its first token out gets no second one.
  options.add_special_tokens = !prefix || !text.starts_with(tokenizer.id_to_token(*prefix));
  result.ids = tokenizer.encode(text, options);
  result.first = result.ids.size();
  const std::vector<int32_t> whole = tokenizer.encode(text + rest, options);
  if (whole.size() > result.first) {
    result.ids.insert(result.ids.end(), whole.begin() + static_cast<ptrdiff_t>(result.first),
                      whole.end());
  }
  return result;
}

namespace {

/// Where the largest value is; the first of equals.
size_t best_of(const std::vector<double>& scores) {
  return static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

}  // namespace

std::vector<TaskResult> evaluate_tasks(nn::Model& model, const data::Tokenizer& tokenizer,
                                       const std::vector<TaskItem>& items) {
  const auto limit = static_cast<size_t>(model.spec().max_positions) + 1;
  std::map<std::string, TaskResult> results;
  for (const TaskItem& item : items) {
    std::vector<double> scores, by_character, by_byte;
    bool is_cut = false;
    for (const std::string& choice : item.choices) {
      ContinuationIds text = encode_continuation(tokenizer, item.context, item.delimiter + choice);
      TRIREME_USER_CHECK(text.ids.size() > text.first, kData,
                         "end the context before a space, and begin the choice with it",
                         "line {}, task \"{}\": the choice \"{}\" adds no token to its context",
                         item.line, item.task, choice);
      const size_t length = text.ids.size() - text.first;
      TRIREME_USER_CHECK(length < limit, kData, "shorten it, or leave the question out",
                         "line {}, task \"{}\": the choice \"{}\" has {} tokens, the model's "
                         "context is {}",
                         item.line, item.task, choice, length, limit - 1);
      const size_t excess = text.ids.size() - std::min(text.ids.size(), limit);
      is_cut = is_cut || excess > 0;
      text.ids.erase(text.ids.begin(), text.ids.begin() + static_cast<ptrdiff_t>(excess));
      text.first -= std::min(text.first, excess);
      const std::vector<float> losses = sequence_losses(model, {text.ids})[0];
      double score = 0.0;
      for (size_t t = std::max<size_t>(text.first, 1) - 1; t < losses.size(); ++t)
        score -= losses[t];
      scores.push_back(score);
      by_character.push_back(score / static_cast<double>(data::count_characters(choice)));
      by_byte.push_back(score / static_cast<double>(choice.size()));
    }
    TaskResult& result = results[item.task];
    const auto answer = static_cast<size_t>(item.answer);
    result.name = item.task;
    result.count += 1;
    result.contexts_cut += is_cut ? 1 : 0;
    result.acc += best_of(scores) == answer;
    result.acc_norm += best_of(by_character) == answer;
    result.acc_bytes += best_of(by_byte) == answer;
  }
  std::vector<TaskResult> list;
  for (auto& [name, result] : results) {
    for (double* share : {&result.acc, &result.acc_norm, &result.acc_bytes})
      *share /= static_cast<double>(result.count);
    list.push_back(result);
  }
  return list;
}

}  // namespace trireme::infer
