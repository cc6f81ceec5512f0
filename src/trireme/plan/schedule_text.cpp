#include "trireme/plan/schedule_text.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

// Beyond these a text asks for memory and not for a schedule.
constexpr int kMostStages = 4096;
constexpr int64_t kMostMicroBatches = 1 << 20;

struct Line {
  int number = 0;
  std::vector<Action> actions;
};

[[noreturn]] void refuse(const std::string& origin, int line, const std::string& reason) {
  const std::string where = line > 0 ? fmt::format("{}:{}", origin, line) : origin;
  throw Error(
      ErrorCode::kConfig, fmt::format("{}: {}", where, reason),
      "write one line a rank, of actions as 0F3: stage, then F forward, I backward-input, W "
      "backward-weight or B both, then micro-batch");
}

std::optional<Work> work_of(char letter) {
  switch (letter) {
    case 'F':
      return Work::kForward;
    case 'I':
      return Work::kBackwardInput;
    case 'W':
      return Work::kBackwardWeight;
    case 'B':
      return Work::kBackward;
    default:
      return std::nullopt;
  }
}

template <class Number>
bool read_number(const char*& at, const char* end, Number& value) {
  const auto [next, error] = std::from_chars(at, end, value);
  if (error != std::errc() || value < 0) return false;
  at = next;
  return true;
}

bool read_action(const char*& at, const char* end, Action& action) {
  if (!read_number(at, end, action.stage) || at == end) return false;
  const std::optional<Work> work = work_of(*at++);
  if (!work) return false;
  action.work = *work;
  return read_number(at, end, action.micro_batch);
}

std::vector<Action> read_line(std::string_view text, const std::string& origin, int number) {
  std::vector<Action> actions;
  const auto add = [&](const Action& action) {
    if (action.stage >= kMostStages || action.micro_batch >= kMostMicroBatches)
      refuse(origin, number,
             fmt::format("{}: at most {} stages and {} micro-batches", describe(action),
                         kMostStages, kMostMicroBatches));
    actions.push_back(action);
  };
  const auto blank = [](char letter) {
    return letter == ' ' || letter == '\t' || letter == ',' || letter == '\r';
  };
  size_t begin = 0;
  while (begin < text.size()) {
    if (blank(text[begin])) {
      ++begin;
      continue;
    }
    size_t end = begin;
    while (end < text.size() && !blank(text[end])) ++end;
    const std::string_view word = text.substr(begin, end - begin);
    const char* at = word.data();
    const char* const last = at + word.size();
    Action action;
    bool good = read_action(at, last, action);
    if (good && at != last && *at == '+') {
      ++at;
      action.with_next = true;
      add(action);
      action = {};
      good = read_action(at, last, action);
    }
    if (!good || at != last)
      refuse(origin, number, fmt::format("\"{}\" is not an action", word.substr(0, 40)));
    add(action);
    begin = end;
  }
  return actions;
}

std::vector<Line> read_lines(std::string_view text, const std::string& origin) {
  std::vector<Line> lines;
  int number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    line = line.substr(0, line.find('#'));
    if (line.find_first_not_of(" \t,\r") == std::string_view::npos) continue;
    lines.push_back({number, read_line(line, origin, number)});
  }
  return lines;
}

}  // namespace

PipelineSchedule parse_schedule(std::string_view text, const std::string& origin) {
  const std::vector<Line> lines = read_lines(text, origin);
  if (lines.empty()) refuse(origin, 0, "has no actions");
  PipelineSchedule schedule;
  for (size_t rank = 0; rank < lines.size(); ++rank) {
    for (const Action& action : lines[rank].actions) {
      const auto stage = static_cast<size_t>(action.stage);
      if (stage >= schedule.rank_of_stage.size()) schedule.rank_of_stage.resize(stage + 1, -1);
      int& owner = schedule.rank_of_stage[stage];
      if (owner >= 0 && owner != static_cast<int>(rank))
        refuse(origin, lines[rank].number,
               fmt::format("{}: stage {} is on the rank of line {}", describe(action), stage,
                           lines[static_cast<size_t>(owner)].number));
      owner = static_cast<int>(rank);
      schedule.micro_batches = std::max(schedule.micro_batches, action.micro_batch + 1);
    }
    schedule.ranks.push_back(lines[rank].actions);
  }
  const auto missing = std::ranges::find(schedule.rank_of_stage, -1);
  if (missing != schedule.rank_of_stage.end())
    refuse(origin, 0,
           fmt::format("stage {} of {} is on no rank", missing - schedule.rank_of_stage.begin(),
                       schedule.num_stages()));
  for (size_t rank = 0; rank < lines.size(); ++rank) {
    const auto stages = std::ranges::count(schedule.rank_of_stage, static_cast<int>(rank));
    const auto of_first = std::ranges::count(schedule.rank_of_stage, 0);
    if (stages != of_first)
      refuse(origin, lines[rank].number,
             fmt::format("{} stages, the first rank has {}: every rank has as many", stages,
                         of_first));
  }
  const std::vector<ScheduleProblem> problems = schedule_problems(schedule);
  if (!problems.empty()) {
    const ScheduleProblem& problem = problems.front();
    refuse(origin, problem.rank < 0 ? 0 : lines[static_cast<size_t>(problem.rank)].number,
           problem.text);
  }
  return schedule;
}

std::string schedule_text(const PipelineSchedule& schedule) {
  std::string text;
  for (const std::vector<Action>& order : schedule.ranks) {
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0) text += order[i - 1].with_next ? '+' : ' ';
      text += describe(order[i]);
    }
    text += '\n';
  }
  return text;
}

}  // namespace trireme::plan
