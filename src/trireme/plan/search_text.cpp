#include <cmath>
#include <map>

#include "trireme/plan/search_report.h"

namespace trireme::plan {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
constexpr size_t kMostReasons = 5;

OrderedJson shares_json(const std::vector<Share>& shares) {
  OrderedJson json = OrderedJson::object();
  for (const Share& one : shares) json[one.what] = one.share;
  return json;
}

OrderedJson priced_json(const SearchSpace& space, const Priced& priced) {
  OrderedJson json;
  json["strategy"] = candidate_json(space, priced.candidate);
  json["text"] = describe(space, priced.candidate);
  json["step_s"] = priced.step_s;
  json["peak_bytes"] = std::llround(priced.peak_bytes);
  return json;
}

OrderedJson full_json(const SearchSpace& space, const Priced& priced) {
  OrderedJson json = priced_json(space, priced);
  const Prediction& prediction = priced.prediction;
  json["interval_s"] = {prediction.low_s, prediction.high_s};
  json["tokens_per_s"] = prediction.tokens_per_s;
  json["bubble_share"] = prediction.bubble_share;
  json["exposed_comm_s"] = prediction.exposed_comm_s;
  json["model_flops_share"] =
      prediction.peak_flops > 0.0
          ? prediction.flops_model / prediction.step_s / prediction.peak_flops
          : 0.0;
  json["shares"] = shares_json(shares_of(prediction));
  json["bound_by"] = bound_of(prediction);
  json["waits_s"] = shares_json(waits_of(prediction));
  return json;
}

OrderedJson time_json(const TimeToTokens& time) {
  OrderedJson json;
  json["tokens"] = time.tokens;
  json["steps"] = std::llround(time.steps);
  json["days_without_failures"] = time.work_s / 86400.0;
  json["days"] = time.wall_s / 86400.0;
  json["goodput"] = time.goodput.share;
  json["hours_between_failures"] =
      time.goodput.failures_per_s > 0.0 ? 1.0 / time.goodput.failures_per_s / 3600.0 : 0.0;
  json["checkpoint_s"] = time.goodput.checkpoint_s;
  json["checkpoint_interval_s"] = time.goodput.interval_s;
  json["checkpoint_every_steps"] =
      time.work_s > 0.0 && time.goodput.interval_s > 0.0
          ? std::max<int64_t>(1, std::llround(time.goodput.interval_s * time.steps / time.work_s))
          : 0;
  json["accelerator_hours"] = time.accelerator_hours;
  if (time.cost > 0.0) json["cost"] = time.cost;
  return json;
}

std::vector<std::pair<std::string, int64_t>> most_frequent(
    const std::map<std::string, int64_t>& reasons) {
  std::vector<std::pair<std::string, int64_t>> all(reasons.begin(), reasons.end());
  std::ranges::stable_sort(all, [](const auto& a, const auto& b) { return a.second > b.second; });
  if (all.size() > kMostReasons) all.resize(kMostReasons);
  return all;
}

// As many digits as tell steps of any model apart.
std::string seconds_text(double seconds) {
  if (seconds >= 0.1) return fmt::format("{:.4f} s", seconds);
  return seconds >= 1e-4 ? fmt::format("{:.4f} ms", 1e3 * seconds)
                         : fmt::format("{:.4f} us", 1e6 * seconds);
}

std::string bytes_text(double bytes) {
  constexpr double kMiB = 1024.0 * 1024.0;
  return bytes >= 0.1 * kGiB ? fmt::format("{:.2f} GiB", bytes / kGiB)
                             : fmt::format("{:.2f} MiB", bytes / kMiB);
}

std::string line_of(const SearchSpace& space, const Priced& priced) {
  return fmt::format("{:>12} {:>11}  {}", seconds_text(priced.step_s),
                     bytes_text(priced.peak_bytes), describe(space, priced.candidate));
}

}  // namespace

std::string shortage(const SearchReport& report) {
  const SearchResult& result = report.result;
  if (!result.smallest) {
    if (result.counts.candidates == 0)
      return fmt::format("a layout: no sizes that are tried multiply to {} accelerators",
                         report.space.accelerators);
    return fmt::format("a layout that suits model and batch: {}",
                       most_frequent(result.counts.left_out.reasons).front().first);
  }
  const MemoryByKind* fullest = nullptr;
  for (const RankClass& one : result.smallest->prediction.classes) {
    if (fullest == nullptr || one.peak.total() > fullest->total()) fullest = &one.peak;
  }
  return fmt::format(
      "memory: the candidate that holds least needs {:.2f} GiB a rank, {:.2f} GiB more than the "
      "{:.2f} GiB that there are (weights {:.2f}, gradients {:.2f}, optimizer {:.2f}, activations "
      "{:.2f}, other {:.2f}): {}",
      result.smallest->peak_bytes / kGiB, (result.smallest->peak_bytes - result.limit_bytes) / kGiB,
      result.limit_bytes / kGiB, fullest->weights / kGiB, fullest->gradients / kGiB,
      fullest->optimizer / kGiB, fullest->activations / kGiB, fullest->context / kGiB,
      describe(report.space, result.smallest->candidate));
}

OrderedJson search_json(const SearchReport& report) {
  const SearchResult& result = report.result;
  const SearchCounts& counts = result.counts;
  OrderedJson json;
  json["candidates"] = counts.candidates;
  json["feasible"] = counts.feasible();
  json["best"] = OrderedJson::array();
  for (const Priced& one : result.best) json["best"].push_back(full_json(report.space, one));
  json["pareto"] = OrderedJson::array();
  for (const Priced& one : result.pareto) json["pareto"].push_back(priced_json(report.space, one));
  json["complete"] = result.complete;
  json["seconds"] = report.seconds;
  json["limit_bytes"] = std::llround(result.limit_bytes);
  OrderedJson& pruned = json["counts"];
  pruned["left_out"] = counts.left_out.count;
  pruned["by_memory_bound"] = counts.by_memory;
  pruned["by_work_bound"] = counts.by_busy;
  pruned["by_timeline_bound"] = counts.by_timeline;
  pruned["timelines"] = counts.timelines;
  pruned["priced"] = counts.priced;
  pruned["priced_and_too_large"] = counts.unfit;
  pruned["refused"] = counts.refused;
  json["left_out"] = OrderedJson::object();
  for (const auto& [reason, count] : most_frequent(counts.left_out.reasons))
    json["left_out"][reason] = count;
  if (result.best.empty()) {
    json["short"] = shortage(report);
    if (result.smallest) {
      json["smallest"] = priced_json(report.space, *result.smallest);
      json["short_bytes"] = std::llround(result.smallest->peak_bytes - result.limit_bytes);
    }
  }
  if (!report.around.empty()) {
    json["instead"] = OrderedJson::array();
    for (const Neighbour& one : report.around) {
      OrderedJson entry = {{"change", one.change},
                           {"step_s", one.priced.step_s},
                           {"peak_bytes", std::llround(one.priced.peak_bytes)},
                           {"fits", one.priced.peak_bytes <= result.limit_bytes}};
      json["instead"].push_back(std::move(entry));
    }
  }
  if (!report.help.empty()) {
    json["would_help"] = OrderedJson::array();
    for (const Help& one : report.help) {
      OrderedJson entry = {{"change", one.change}, {"fits", one.fits}};
      if (one.fits) {
        entry["step_s"] = one.step_s;
        entry["speedup"] = one.speedup;
        entry["strategy"] = one.strategy;
      }
      json["would_help"].push_back(std::move(entry));
    }
  }
  if (report.time) json["time"] = time_json(*report.time);
  if (report.trainable)
    json["trainable"] = full_json(report.trainable->space, report.trainable->best);
  return json;
}

std::string describe(const SearchReport& report) {
  const SearchResult& result = report.result;
  const SearchCounts& counts = result.counts;
  const PlannedRun& run = report.run;
  std::string text =
      fmt::format("{} on {} x {}, {} sequences of {} tokens a step\n", run.spec.architecture,
                  report.space.accelerators, run.cluster.device.name, run.strategy.sequences,
                  run.strategy.seq_len);
  text += fmt::format(
      "{} candidates in {:.1f} s: {} that model or batch do not allow; bounds left out {} by "
      "memory, "
      "{} by work, {} by the timeline; {} priced\n",
      counts.candidates, report.seconds, counts.left_out.count, counts.by_memory, counts.by_busy,
      counts.by_timeline, counts.priced);
  if (counts.refused > 0)
    text += fmt::format("{} could not be priced: {}\n", counts.refused, counts.refusal);
  if (!result.complete) text += "interrupted: what is below is not the best of all\n";
  if (result.best.empty()) {
    if (result.complete) text += fmt::format("nothing fits. Short is {}\n", shortage(report));
    for (const auto& [reason, count] : most_frequent(counts.left_out.reasons))
      text += fmt::format("  left out {:>8}: {}\n", count, reason);
    return text;
  }
  text += fmt::format("\nthe best ({} of a rank may be used)\n", bytes_text(result.limit_bytes));
  for (size_t i = 0; i < result.best.size(); ++i) {
    const Priced& one = result.best[i];
    text += fmt::format("{:>3} {}\n", i + 1, line_of(report.space, one));
    text += fmt::format("      bound by {};", bound_of(one.prediction));
    for (const Share& share : shares_of(one.prediction)) {
      if (share.share >= 0.005)
        text += fmt::format(" {} {:.0f} %", share.what, 100.0 * share.share);
    }
    text += "\n";
  }
  const Prediction& best = result.best.front().prediction;
  text += fmt::format("\n{:.0f} tokens/s of an accelerator", best.tokens_per_s);
  if (best.peak_flops > 0.0)
    text += fmt::format(", {:.1f} % of its peak",
                        100.0 * best.flops_model / best.step_s / best.peak_flops);
  text += fmt::format("; 90 % interval {} to {}\n", seconds_text(best.low_s),
                      seconds_text(best.high_s));
  const std::vector<Share> waits = waits_of(best);
  if (!waits.empty()) {
    text += "what the best one waits for\n";
    for (const Share& wait : waits) {
      if (wait.share < 0.0005 * best.step_s) continue;
      text += fmt::format("  {:<52}{:>12} {:>5.1f} %\n", wait.what, seconds_text(wait.share),
                          100.0 * wait.share / best.step_s);
    }
  }
  if (!report.around.empty()) {
    text += "the best one with one thing changed\n";
    for (const Neighbour& one : report.around) {
      text += fmt::format("  {:<32}{:>+8.1f} % time {:>11}", one.change,
                          100.0 * (one.priced.step_s / result.best.front().step_s - 1.0),
                          bytes_text(one.priced.peak_bytes));
      if (one.priced.peak_bytes > result.limit_bytes)
        text += fmt::format(": does not fit by {}",
                            bytes_text(one.priced.peak_bytes - result.limit_bytes));
      text += "\n";
    }
  }
  if (!result.pareto.empty()) {
    text += "time against memory\n";
    for (const Priced& one : result.pareto)
      text += fmt::format("  {}\n", line_of(report.space, one));
  }
  if (!report.help.empty()) {
    text += "what would help most (searched again)\n";
    for (const Help& one : report.help) {
      if (!one.fits) {
        text += fmt::format("  {:<30} nothing fits\n", one.change);
        continue;
      }
      text += fmt::format("  {:<30}{:>+8.1f} % tokens/s  {}\n", one.change,
                          100.0 * (one.speedup - 1.0), one.strategy);
    }
  }
  if (report.trainable)
    text +=
        fmt::format("the best that `trireme train` can run today\n  {:>10.4f} s {:>8.2f} GiB  {}\n",
                    report.trainable->best.step_s, report.trainable->best.peak_bytes / kGiB,
                    describe(report.trainable->space, report.trainable->best.candidate));
  if (report.time) {
    const TimeToTokens& time = *report.time;
    text += fmt::format(
        "{:.3g} tokens: {:.0f} steps, {:.1f} days of work, {:.1f} days with failures (goodput "
        "{:.1f} "
        "%)\n  a failure every {:.1f} hours; a checkpoint of {:.1f} s every {:.0f} s of work; "
        "{:.3g} "
        "accelerator-hours",
        time.tokens, time.steps, time.work_s / 86400.0, time.wall_s / 86400.0,
        100.0 * time.goodput.share,
        time.goodput.failures_per_s > 0.0 ? 1.0 / time.goodput.failures_per_s / 3600.0 : HUGE_VAL,
        time.goodput.checkpoint_s, time.goodput.interval_s, time.accelerator_hours);
    if (time.cost > 0.0) text += fmt::format(", cost {:.4g}", time.cost);
    text += "\n";
  }
  return text;
}

}  // namespace trireme::plan
