#include "trireme/train/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/train/progress.h"

namespace trireme::train {

std::string html_escape(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

namespace {

constexpr size_t kMaxPoints = 3000;  // of a curve; a screen has no more columns

/// Six digits are more than a curve shows, and a third of the bytes.
OrderedJson rounded(double x) {
  if (!std::isfinite(x)) return nullptr;
  if (x == 0) return 0;
  const double scale = std::pow(10.0, 5 - std::floor(std::log10(std::abs(x))));
  return std::round(x * scale) / scale;
}

template <typename Get>
OrderedJson column(const std::vector<const StepMetrics*>& rows, Get get) {
  OrderedJson values = OrderedJson::array();
  for (const StepMetrics* row : rows) values.push_back(rounded(get(*row)));
  return values;
}

OrderedJson metrics_json(const std::vector<StepMetrics>& metrics) {
  const size_t stride = metrics.size() / kMaxPoints + 1;
  std::vector<const StepMetrics*> rows;
  for (size_t i = 0; i < metrics.size(); ++i) {
    if (i % stride == 0 || metrics[i].valid_loss || i + 1 == metrics.size())
      rows.push_back(&metrics[i]);
  }
  const double none = std::nan("");
  OrderedJson json;
  OrderedJson steps = OrderedJson::array();
  OrderedJson tokens = OrderedJson::array();
  for (const StepMetrics* row : rows) {
    steps.push_back(row->step);
    tokens.push_back(row->tokens);
  }
  json["step"] = steps;
  json["tokens"] = tokens;
  json["loss"] = column(rows, [](const StepMetrics& m) { return m.loss; });
  if (!metrics.empty() && metrics.back().mtp_loss)
    json["mtp_loss"] =
        column(rows, [&](const StepMetrics& m) { return m.mtp_loss.value_or(none); });
  json["grad_norm"] = column(rows, [](const StepMetrics& m) { return m.grad_norm; });
  json["lr"] = column(rows, [](const StepMetrics& m) { return m.lr; });
  json["tokens_per_s"] = column(rows, [](const StepMetrics& m) { return m.tokens_per_s; });
  json["model_tflops"] = column(rows, [](const StepMetrics& m) { return m.model_tflops; });
  json["peak_bytes"] =
      column(rows, [](const StepMetrics& m) { return static_cast<double>(m.peak_bytes); });
  const bool experts = !metrics.empty() && !metrics.back().load.empty();
  if (experts) {
    json["balance_loss"] = column(rows, [](const StepMetrics& m) { return m.balance_loss; });
    json["router_entropy"] = column(rows, [](const StepMetrics& m) { return m.router_entropy; });
    json["dropped"] = column(rows, [](const StepMetrics& m) {
      int64_t choices = 0;
      for (const auto& load : m.load) choices = std::accumulate(load.begin(), load.end(), choices);
      return choices == 0 ? 0.0
                          : 100.0 * static_cast<double>(m.dropped) / static_cast<double>(choices);
    });
    OrderedJson layers = OrderedJson::array();
    for (size_t i = 0; i < metrics.back().load.size(); ++i) {
      layers.push_back(column(rows, [&](const StepMetrics& m) {
        return i < m.load.size() ? largest_load(m.load[i]) : none;
      }));
    }
    json["largest_load"] = layers;
  }
  json["valid_loss"] =
      column(rows, [&](const StepMetrics& m) { return m.valid_loss.value_or(none); });
  json["valid_bits_per_byte"] =
      column(rows, [&](const StepMetrics& m) { return m.valid_bits_per_byte.value_or(none); });
  return json;
}

OrderedJson timeline_json(const Report& report) {
  std::map<std::string, int> kinds;
  OrderedJson kind_names = OrderedJson::array();
  OrderedJson lanes = OrderedJson::array();
  for (const ReportLane& lane : report.lanes) {
    OrderedJson events = OrderedJson::array();
    for (const ReportEvent& event : lane.events) {
      const auto [kind, is_new] = kinds.emplace(event.kind, static_cast<int>(kinds.size()));
      if (is_new) kind_names.push_back(event.kind);
      // Microseconds, to a tenth.
      events.push_back({std::round(event.start_s * 1e7) / 10,
                        std::round(event.duration_s * 1e7) / 10, kind->second, event.name});
    }
    lanes.push_back({{"name", lane.name}, {"events", events}});
  }
  OrderedJson memory = OrderedJson::array();
  for (const ReportMemoryPoint& point : report.memory) {
    memory.push_back(
        {std::round(point.time_s * 1e7) / 10, point.measured_bytes, point.predicted_bytes});
  }
  return {{"kinds", kind_names}, {"lanes", lanes}, {"memory", memory}};
}

std::string tile(const std::string& value, const std::string& label, const std::string& note,
                 bool strong = false) {
  return fmt::format(
      "<div class=\"tile{}\"><div class=\"value\">{}</div><div class=\"label\">{}</div>{}</div>\n",
      strong ? " strong" : "", value, html_escape(label),
      note.empty() ? "" : "<div class=\"note\">" + html_escape(note) + "</div>");
}

std::string with_unit(const std::string& value, const std::string& unit) {
  return html_escape(value) + "<span class=\"unit\">" + html_escape(unit) + "</span>";
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string tiles(const Report& report) {
  if (report.metrics.empty()) return "";
  std::string result = "<section class=\"tiles\" aria-label=\"Key figures\">\n";
  const StepMetrics& last = report.metrics.back();
  const StepMetrics* evaluated = nullptr;
  double seconds = 0;
  std::vector<double> rates, tflops;
  int64_t peak = 0;
  for (const StepMetrics& m : report.metrics) {
    if (m.valid_loss) evaluated = &m;
    seconds += m.step_s;
    rates.push_back(m.tokens_per_s);
    tflops.push_back(m.model_tflops);
    peak = std::max(peak, m.peak_bytes);
  }
  if (evaluated != nullptr && evaluated->valid_bits_per_byte) {
    std::string note;
    for (const ReportBaseline& baseline : report.baselines) {
      note += fmt::format("{}{} {:.3f}", note.empty() ? "" : ", ", baseline.name,
                          baseline.bits_per_byte);
    }
    result += tile(fmt::format("{:.3f}", *evaluated->valid_bits_per_byte),
                   "bits per byte, validation", note, true);
  }
  if (evaluated != nullptr) {
    result += tile(fmt::format("{:.3f}", *evaluated->valid_loss), "validation loss",
                   fmt::format("perplexity {:.4g}", std::exp(*evaluated->valid_loss)));
  }
  result +=
      tile(fmt::format("{:.3f}", last.loss), "training loss", fmt::format("step {}", last.step));
  result += tile(count_text(median(rates)), "tokens a second", "median of the steps");
  if (report.gemm_tflops > 0) {
    result += tile(with_unit(fmt::format("{:.0f}", 100 * median(tflops) / report.gemm_tflops), "%"),
                   "of the GEMM rate",
                   fmt::format("{:.3g} of {:.3g} TFLOP/s", median(tflops), report.gemm_tflops));
  }
  result +=
      tile(html_escape(bytes_text(static_cast<double>(peak))), "peak memory", "held by tensors");
  result += tile(html_escape(duration_text(seconds)), "in steps",
                 fmt::format("{} tokens", count_text(static_cast<double>(last.tokens))));
  return result + "</section>\n";
}

std::string chart(const std::string& id, const std::string& title, const std::string& note,
                  const std::string& cls) {
  return fmt::format(
      "<figure class=\"card {}\"><figcaption><h3>{}</h3><p class=\"caption\">{}</p></figcaption>"
      "<div class=\"chart\" id=\"{}\"></div></figure>\n",
      cls, title, note, id);
}

/// A row a layer and a cell an expert: the darker, the more of the step's tokens chose it.
std::string expert_map(const StepMetrics& last) {
  std::string result = fmt::format(
      "<figure class=\"card wide\"><figcaption><h3>Load of every expert</h3><p class=\"caption\">"
      "Step {}: tokens over the layer's mean; rows are layers, cells experts.</p></figcaption>"
      "<div class=\"experts\" role=\"img\" aria-label=\"Load of every expert by layer\">\n",
      last.step);
  for (size_t layer = 0; layer < last.load.size(); ++layer) {
    const auto& load = last.load[layer];
    const int64_t all = std::accumulate(load.begin(), load.end(), int64_t{0});
    const double mean = std::max(1.0, static_cast<double>(all) / static_cast<double>(load.size()));
    result += "<div class=\"experts-row\">";
    for (size_t e = 0; e < load.size(); ++e) {
      const double share = static_cast<double>(load[e]) / mean;
      result += fmt::format(
          "<i style=\"--share:{:.2f}\" title=\"layer {} expert {}: {} tokens, {:.2f} of the "
          "mean\"></i>",
          std::min(share / 3.0, 1.0), layer, e, load[e], share);
    }
    result += "</div>\n";
  }
  return result + "</div></figure>\n";
}

std::string curves(const Report& report) {
  if (report.metrics.empty()) return "";
  bool evaluated = false;
  for (const StepMetrics& m : report.metrics)
    evaluated = evaluated || m.valid_bits_per_byte.has_value();
  std::string result = "<section><h2>Learning</h2><div class=\"grid\">\n";
  result += chart("chart-loss", "Loss",
                  "Nats per predicted token. Faint: every step; strong: smoothed.", "wide");
  if (evaluated) {
    result += chart("chart-bits", "Bits per byte",
                    "Validation text, beside what compressors need for the same files.", "");
  }
  if (!report.compared.empty())
    result += chart("chart-compare", "Beside other runs",
                    "Loss over seconds of training; lines: training, smoothed; dots: validation.",
                    "wide");
  if (report.metrics.back().mtp_loss) {
    result += chart("chart-mtp", "Loss of multi-token prediction",
                    "Nats per token predicted further ahead than the next, without its weight; "
                    "mean over modules.",
                    "");
  }
  result += chart("chart-lr", "Learning rate", "", "");
  result += chart("chart-norm", "Gradient norm", "Before clipping.", "");
  if (!report.metrics.back().load.empty()) {
    result += "</div></section>\n<section><h2>Experts</h2><div class=\"grid\">\n";
    result += chart("chart-load", "Fullest expert",
                    "Its tokens over the mean, layer by layer; 1 is an even load.", "");
    result += chart("chart-balance", "Balancing loss",
                    "Without its coefficient, mean over layers; 1 is even.", "");
    result += chart("chart-entropy", "Router entropy",
                    "Nats of a token's shares of all experts, mean over layers.", "");
    if (std::ranges::any_of(report.metrics, [](const StepMetrics& m) { return m.dropped > 0; }))
      result += chart("chart-dropped", "Dropped choices",
                      "Percent of a step's choices beyond the capacity of their expert.", "");
    result += expert_map(report.metrics.back());
  }
  result += "</div></section>\n<section><h2>Speed and memory</h2><div class=\"grid\">\n";
  result += chart("chart-rate", "Throughput", "Tokens a second.", "");
  result += chart(
      "chart-share", report.gemm_tflops > 0 ? "Share of the GEMM rate" : "Model TFLOP/s",
      report.gemm_tflops > 0 ? "Model FLOP/s against this machine's matrix products." : "", "");
  result += chart("chart-memory", "Peak memory", "Largest of each step.", "");
  return result + "</div></section>\n";
}

std::string timeline(const Report& report) {
  if (report.lanes.empty()) return "";
  return fmt::format(
      "<section><h2>One step</h2><figure class=\"card\"><figcaption><h3>Timeline of step {}</h3>"
      "<p class=\"caption\">Every instruction of the step's program, measured and simulated, over "
      "what memory held. "
      "Scroll to zoom, drag to move, double-click for all.</p></figcaption>"
      "<div id=\"legend\" class=\"legend\"></div>"
      "<canvas id=\"timeline\" role=\"img\" aria-label=\"Timeline of one training "
      "step\"></canvas></figure></section>\n",
      report.traced_step);
}

std::string samples(const Report& report) {
  if (report.samples.empty()) return "";
  std::string result = "<section><h2>Samples</h2><div class=\"samples\">\n";
  for (const ReportSample& sample : report.samples) {
    result += fmt::format("<pre class=\"card sample\"><span class=\"prompt\">{}</span>{}</pre>\n",
                          html_escape(sample.prompt), html_escape(sample.text));
  }
  return result + "</div></section>\n";
}

std::string environment(const Report& report) {
  std::string result;
  if (!report.environment.empty()) {
    result += "<section><h2>Environment</h2><div class=\"card\"><dl>\n";
    for (const auto& [name, value] : report.environment) {
      result +=
          fmt::format("<div><dt>{}</dt><dd>{}</dd></div>\n", html_escape(name), html_escape(value));
    }
    result += "</dl></div></section>\n";
  }
  if (!report.run_toml.empty()) {
    result +=
        "<section><h2>Run file</h2><details class=\"card\"><summary>Every key of the run, and "
        "where its value comes "
        "from</summary><pre class=\"toml\">";
    size_t begin = 0;
    while (begin < report.run_toml.size()) {
      const size_t end = std::min(report.run_toml.find('\n', begin), report.run_toml.size());
      const std::string line = report.run_toml.substr(begin, end - begin);
      const size_t comment = line.rfind(" # ");
      if (!line.empty() && line[0] == '#') {
        result += "<i>" + html_escape(line) + "</i>\n";
      } else if (!line.empty() && line[0] == '[') {
        result += "<b>" + html_escape(line) + "</b>\n";
      } else if (comment != std::string::npos) {
        const bool is_default = line.compare(comment, std::string::npos, " # default") == 0;
        result += (is_default ? "" : "<em>") + html_escape(line.substr(0, comment)) +
                  (is_default ? "" : "</em>") + "<i>" + html_escape(line.substr(comment)) +
                  "</i>\n";
      } else {
        result += html_escape(line) + "\n";
      }
      begin = end + 1;
    }
    result += "</pre></details></section>\n";
  }
  return result;
}

}  // namespace

std::string report_html(const Report& report) {
  OrderedJson data;
  data["steps"] = report.steps;
  data["gemm_tflops"] = rounded(report.gemm_tflops);
  data["metrics"] = metrics_json(report.metrics);
  data["baselines"] = OrderedJson::array();
  for (const ReportBaseline& baseline : report.baselines) {
    data["baselines"].push_back(
        {{"name", baseline.name}, {"bits_per_byte", rounded(baseline.bits_per_byte)}});
  }
  data["comparison"] = comparison_json(report);
  data["timeline"] = timeline_json(report);
  std::string text = data.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  // Nothing in the data may close the script element.
  for (size_t at = text.find('<'); at != std::string::npos; at = text.find('<', at))
    text.replace(at, 1, "\\u003c");

  const int64_t done = report.metrics.empty() ? 0 : report.metrics.back().step;
  const std::string state =
      done >= report.steps
          ? "<span class=\"badge done\">done</span>"
          : fmt::format("<span class=\"badge\">step {} of {}</span>", done, report.steps);
  std::string html =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n";
  html += "<title>" + html_escape(report.title) + " · Trireme</title>\n<style>\n" + kReportStyle +
          "</style>\n</head>\n<body>\n<main>\n";
  html += fmt::format(
      "<header><div class=\"mark\" aria-hidden=\"true\"><i></i><i></i><i></i></div><div><h1>{} "
      "{}</h1><p class=\"subtitle\">{}</p></div>"
      "</header>\n",
      html_escape(report.title), state, html_escape(report.subtitle));
  html += tiles(report) + curves(report) + timeline(report) + samples(report) + environment(report);
  html +=
      "<footer>Written by Trireme. The figures are in <code>metrics.jsonl</code>, the timeline in "
      "<code>trace.json</code>.</footer>\n";
  html +=
      "</main>\n<div id=\"tip\" role=\"status\"></div>\n<noscript><p class=\"noscript\">The curves "
      "of this page are drawn by its own "
      "script.</p></noscript>\n";
  html += "<script type=\"application/json\" id=\"data\">" + text + "</script>\n<script>\n" +
          kReportChartScript + kReportTimelineScript + "</script>\n</body>\n</html>\n";
  return html;
}

}  // namespace trireme::train
