#include "trireme/train/plan_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "trireme/plan/world_trace.h"
#include "trireme/train/progress.h"
#include "trireme/train/report.h"

namespace trireme::train {

namespace {

constexpr size_t kMostLanes = 24;      ///< of the timeline: more are not told apart
constexpr size_t kMostEvents = 60000;  ///< of the timeline, all lanes together

std::string tile(const std::string& value, const std::string& unit, const std::string& label,
                 const std::string& note, bool strong = false) {
  return fmt::format(
      "<div class=\"tile{}\"><div class=\"value\">{}{}</div><div "
      "class=\"label\">{}</div>{}</div>\n",
      strong ? " strong" : "", html_escape(value),
      unit.empty() ? "" : "<span class=\"unit\">" + html_escape(unit) + "</span>",
      html_escape(label),
      note.empty() ? "" : "<div class=\"note\">" + html_escape(note) + "</div>");
}

std::string seconds_text(double seconds) {
  if (seconds >= 1.0) return fmt::format("{:.4g} s", seconds);
  if (seconds >= 1e-3) return fmt::format("{:.4g} ms", seconds * 1e3);
  return fmt::format("{:.3g} us", seconds * 1e6);
}

std::string tiles(const plan::PlannedRun& run, const plan::Prediction& p) {
  std::string html = "<section class=\"tiles\" aria-label=\"Key figures\">\n";
  html += tile(seconds_text(p.step_s), "", "a step",
               fmt::format("90 %: {} to {}", seconds_text(p.low_s), seconds_text(p.high_s)), true);
  html += tile(count_text(p.tokens_per_s), "", "tokens a second", "of an accelerator");
  if (p.peak_flops > 0.0) {
    html += tile(fmt::format("{:.1f}", 100.0 * p.flops_model / p.step_s / p.peak_flops), "%",
                 "of the peak",
                 fmt::format("{:.3g} TFLOP/s of the model", p.flops_model / p.step_s / 1e12));
  }
  html += tile(bytes_text(p.peak_bytes()), "", p.fits() ? "peak memory" : "peak memory: too much",
               fmt::format("of {} usable", bytes_text(p.usable_bytes)));
  html += tile(fmt::format("{:.1f}", 100.0 * p.bubble_share), "%", "bubble",
               "mean over the ranks, without computation");
  html += tile(fmt::format("{:.0f}", 100.0 * p.hidden_comm_share), "%", "communication hidden",
               seconds_text(p.exposed_comm_s) + " exposed");
  html += tile(std::to_string(run.strategy.parallel.world()), "", "accelerators",
               run.cluster.device.name);
  return html + "</section>\n";
}

/// One row of a waterfall: a bar that begins where the one before it ended.
struct Bar {
  std::string name;
  double value = 0.0;
  std::string text;
  const char* colour = "--k-other";
};

/// Rows of bars that add up to `whole`; `limit`: a line across, 0: none.
std::string waterfall(const std::vector<Bar>& bars, double whole, double limit,
                      const std::string& total) {
  const double width = std::max({whole, limit, 1e-300}) * 1.02;
  std::string html = "<div class=\"waterfall\">\n";
  double from = 0.0;
  const auto row = [&](const std::string& name, double begin, double value, const char* colour,
                       const std::string& text) {
    html += fmt::format(
        "<div><span>{}</span><span class=\"track\"><i style=\"left:{:.3f}%;width:{:.3f}%;"
        "background:var({})\"></i>{}</span><span>{}</span></div>\n",
        html_escape(name), 100.0 * begin / width, 100.0 * value / width, colour,
        limit > 0.0 ? fmt::format("<b style=\"left:{:.3f}%\"></b>", 100.0 * limit / width) : "",
        html_escape(text));
  };
  for (const Bar& bar : bars) {
    if (bar.value <= 0.0) continue;
    row(bar.name, from, bar.value, bar.colour, bar.text);
    from += bar.value;
  }
  row("together", 0.0, from, "--accent", total);
  return html + "</div>\n";
}

std::string figure(const std::string& title, const std::string& caption, const std::string& body) {
  return fmt::format(
      "<figure class=\"card wide\"><figcaption><h3>{}</h3><p class=\"caption\">{}</p></figcaption>"
      "{}</figure>\n",
      html_escape(title), html_escape(caption), body);
}

std::string time_waterfall(const plan::Prediction& p) {
  const std::vector<std::pair<const char*, const char*>> kinds = {
      {"products", "--k-forward"}, {"attention", "--k-recompute"}, {"memory", "--k-weight"},
      {"host", "--k-combine"},     {"transfers", "--k-transfer"},  {"copies", "--k-optimizer"},
      {"idle", "--k-other"}};
  std::vector<Bar> bars;
  for (const auto& [kind, colour] : kinds) {
    const auto found = p.time_by_kind_s.find(kind);
    if (found == p.time_by_kind_s.end()) continue;
    bars.push_back(
        {kind, found->second,
         fmt::format("{}, {:.1f} %", seconds_text(found->second), 100.0 * found->second / p.step_s),
         colour});
  }
  return figure(
      "Where the time goes",
      "A step of the rank that computes longest. Transfers and copies: what no computation "
      "covers.",
      waterfall(bars, p.step_s, 0.0, seconds_text(p.step_s)));
}

std::string memory_waterfalls(const plan::Prediction& p) {
  std::string html;
  for (const plan::RankClass& one : p.classes) {
    const auto bar = [](const char* name, double bytes, const char* colour) {
      return Bar{name, bytes, bytes_text(bytes), colour};
    };
    const std::vector<Bar> bars = {bar("weights", one.peak.weights, "--k-forward"),
                                   bar("gradients", one.peak.gradients, "--k-input"),
                                   bar("optimizer", one.peak.optimizer, "--k-optimizer"),
                                   bar("activations", one.peak.activations, "--k-loss"),
                                   bar("context", one.peak.context, "--k-other")};
    html +=
        figure(p.classes.size() == 1 ? "Where the memory goes"
                                     : fmt::format("Where the memory goes: stage {}", one.stage),
               fmt::format("The peak of {} alike. The line is what an accelerator has for it: {}.",
                           one.ranks == 1 ? "one rank" : fmt::format("{} ranks", one.ranks),
                           bytes_text(p.usable_bytes)),
               waterfall(bars, one.peak.total(), p.usable_bytes, bytes_text(one.peak.total())));
  }
  return html;
}

std::string list(const std::string& title, const std::string& caption,
                 const std::vector<std::pair<std::string, std::string>>& rows) {
  if (rows.empty()) return "";
  std::string body = "<dl>\n";
  for (const auto& [name, value] : rows)
    body +=
        fmt::format("<div><dt>{}</dt><dd>{}</dd></div>\n", html_escape(name), html_escape(value));
  return figure(title, caption, body + "</dl>");
}

std::string waits(const plan::Prediction& p, const plan::PredictedWorld& world) {
  std::vector<std::pair<std::string, double>> path;
  for (const auto& [kind, seconds] : plan::critical_seconds(world))
    path.emplace_back(kind, seconds);
  std::ranges::sort(path, std::ranges::greater(), [](const auto& entry) { return entry.second; });
  std::vector<std::pair<std::string, std::string>> rows;
  for (const auto& [kind, seconds] : path) {
    if (seconds <= 0.0) continue;
    rows.emplace_back(kind, fmt::format("{}, {:.1f} %", seconds_text(seconds),
                                        100.0 * seconds / world.simulation.step_s));
  }
  std::string html = list("Critical path",
                          "The chain without a gap that ends last, by kind of instruction.", rows);
  rows.clear();
  for (const auto& [kind, seconds] : p.exposed_by_kind_s) {
    const auto sent = p.sent_bytes.find(kind);
    std::string text = seconds_text(seconds) + " exposed";
    if (sent != p.sent_bytes.end()) text += ", " + bytes_text(sent->second) + " sent";
    rows.emplace_back(kind, text);
  }
  for (const auto& [kind, bytes] : p.sent_bytes) {
    if (!p.exposed_by_kind_s.contains(kind)) rows.emplace_back(kind, bytes_text(bytes) + " sent");
  }
  return html + list("Communication", "Of one rank in a step.", rows);
}

/// Lanes of the timeline by simulated rank, and memory of the first one's.
OrderedJson timeline_json(const plan::PlannedRun& run, const plan::PredictedWorld& world) {
  const std::vector<plan::Trace> traces = plan::world_traces(run, world);
  const std::vector<std::string> names = plan::rank_names(run, world);
  std::map<std::string, int> kinds;
  OrderedJson kind_names = OrderedJson::array();
  OrderedJson lanes = OrderedJson::array();
  size_t events_left = kMostEvents;
  for (size_t rank = 0; rank < traces.size() && lanes.size() < kMostLanes; ++rank) {
    for (const char* resource : {"compute", "communication", "copy-out", "copy-in"}) {
      OrderedJson events = OrderedJson::array();
      for (const plan::TraceEvent& event : traces[rank].events) {
        if (event.resource != resource || event.duration_us <= 0.0 || events_left == 0) continue;
        const auto [kind, is_new] = kinds.emplace(event.kind, static_cast<int>(kinds.size()));
        if (is_new) kind_names.push_back(event.kind);
        events.push_back({std::round(event.start_us * 10.0) / 10.0,
                          std::round(event.duration_us * 10.0) / 10.0, kind->second, event.name});
        --events_left;
      }
      if (events.empty()) continue;
      const std::string name = names[rank].substr(0, names[rank].find(','));
      lanes.push_back({{"name", name + " · " + resource}, {"events", events}});
    }
  }
  OrderedJson memory = OrderedJson::array();
  for (const plan::MemoryPoint& point : world.simulation.ranks.front().simulation.memory)
    memory.push_back({std::round(point.time_s * 1e7) / 10.0, point.bytes, point.bytes});
  return {{"kinds", kind_names},
          {"lanes", lanes},
          {"memory", memory},
          {"memory_names", {names.front().substr(0, names.front().find(','))}}};
}

std::string environment(const plan::PlannedRun& run, const plan::Prediction& p) {
  std::vector<std::pair<std::string, std::string>> rows = {
      {"model", fmt::format("{}, {} parameters", run.spec.architecture,
                            count_text(static_cast<double>(run.spec.num_parameters())))},
      {"layout", plan::describe(run.strategy.parallel)},
      {"batch", fmt::format("{} sequences of {} tokens, {} at once", run.strategy.sequences,
                            run.strategy.seq_len, run.strategy.micro)},
      {"precision", plan::to_string(run.strategy.precision)},
      {"cluster", run.cluster.name},
      {"device", run.cluster.device.name},
      {"node", run.cluster.node.name},
      {"network", run.cluster.network.name},
      {"software", run.stack.name},
      {"operations of a step", fmt::format("{:.4g} of the model, {:.4g} with recomputation, of one "
                                           "accelerator",
                                           p.flops_model, p.flops_hardware)}};
  if (p.measured_share)
    rows.emplace_back("priced by measured instructions",
                      fmt::format("{:.1f} % of what is computed", 100.0 * *p.measured_share));
  return list("What was predicted", "", rows);
}

constexpr const char* kWaterfallStyle = R"css(
.waterfall { display: grid; gap: 6px; margin-top: 8px; font-size: 13px; }
.waterfall div { display: grid; grid-template-columns: 96px minmax(0, 1fr) 150px; gap: 12px; align-items: center; }
.waterfall div:last-child { border-top: 1px solid var(--line); padding-top: 6px; font-weight: 600; }
.waterfall .track { position: relative; height: 20px; background: var(--grid); border-radius: 3px; }
.waterfall .track i { position: absolute; top: 0; bottom: 0; min-width: 1px; border-radius: 3px; }
.waterfall .track b { position: absolute; top: -3px; bottom: -3px; border-left: 2px dashed var(--second); }
@media (max-width: 620px) { .waterfall div { grid-template-columns: 76px minmax(0, 1fr) 96px; gap: 8px; } }
)css";

}  // namespace

std::string plan_report_html(const std::string& title, const plan::PlannedRun& run,
                             const plan::Prediction& prediction,
                             const plan::PredictedWorld& world) {
  // The curves' script finds nothing to draw.
  OrderedJson data;
  data["metrics"] = OrderedJson::object();
  data["baselines"] = OrderedJson::array();
  data["comparison"] = nullptr;
  data["prediction"] = plan::prediction_json(run, prediction);
  data["timeline"] = timeline_json(run, world);
  std::string text = data.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  // Nothing in the data may close the script element.
  for (size_t at = text.find('<'); at != std::string::npos; at = text.find('<', at))
    text.replace(at, 1, "\\u003c");
  std::string html =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n";
  html += "<title>" + html_escape(title) + " · Trireme</title>\n<style>\n" + kReportStyle +
          kWaterfallStyle + "</style>\n</head>\n<body>\n<main>\n";
  html += fmt::format(
      "<header><div class=\"mark\" aria-hidden=\"true\"><i></i><i></i><i></i></div><div><h1>{} "
      "<span class=\"badge\">predicted</span></h1><p class=\"subtitle\">{} on {}: {}</p></div>"
      "</header>\n",
      html_escape(title), html_escape(run.spec.architecture), html_escape(run.cluster.name),
      html_escape(plan::describe(run.strategy.parallel)));
  html += tiles(run, prediction);
  html += "<section><h2>Time</h2><div class=\"grid\">\n" + time_waterfall(prediction) +
          waits(prediction, world) + "</div></section>\n";
  html += "<section><h2>Memory</h2><div class=\"grid\">\n" + memory_waterfalls(prediction) +
          "</div></section>\n";
  const bool part = prediction.step_s > 1.001 * world.simulation.step_s &&
                    world.micro_batches < run.strategy.micro_batches() / run.strategy.parallel.dp;
  html += fmt::format(
      "<section><h2>One step</h2><figure class=\"card\"><figcaption><h3>Timeline</h3>"
      "<p class=\"caption\">Instructions of {}{}, over what the first of them holds. Scroll to "
      "zoom, drag to move, double-click for all.</p></figcaption>"
      "<div id=\"legend\" class=\"legend\"></div>"
      "<canvas id=\"timeline\" role=\"img\" aria-label=\"Timeline of one predicted "
      "step\"></canvas></figure></section>\n",
      world.whole ? "every rank" : "a rank of every pipeline stage",
      part ? fmt::format(", with {} micro-batches, after which the schedule repeats itself",
                         world.micro_batches)
           : "");
  html += "<section><h2>Run</h2><div class=\"grid\">\n" + environment(run, prediction) +
          "</div></section>\n";
  html +=
      "<footer>Written by Trireme, before the run. The same figures: <code>trireme plan simulate "
      "--json</code>.</footer>\n</main>\n<div id=\"tip\" role=\"status\"></div>\n"
      "<noscript><p class=\"noscript\">The timeline of this page is drawn by its own "
      "script.</p></noscript>\n";
  html += "<script type=\"application/json\" id=\"data\">" + text + "</script>\n<script>\n" +
          kReportChartScript + kReportTimelineScript + "</script>\n</body>\n</html>\n";
  return html;
}

}  // namespace trireme::train
