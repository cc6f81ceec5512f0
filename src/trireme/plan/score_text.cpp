#include <cmath>

#include "trireme/plan/score.h"

namespace trireme::plan {

namespace {

Json known(double value) {
  return value < 0.0 ? Json() : Json(value);
}

OrderedJson source_json(const SourceScore& source) {
  OrderedJson json;
  json["source"] = source.source;
  json["rows"] = source.rows;
  json["refused"] = source.refused;
  json["time_mape"] = known(source.time_mape);
  json["time_worst"] = known(source.time_worst);
  json["time_bias"] = source.time_bias;
  json["time_mape_left_out"] = known(source.left_out_mape);
  json["mem_mape"] = known(source.mem_mape);
  json["oom_balanced_accuracy"] = known(source.oom_balanced_accuracy);
  json["interval_coverage"] = known(source.interval_coverage);
  json["constant_mape"] = known(source.constant_mape);
  json["rank_correlation"] = source.rank_correlation < -0.99 && source.regret < 0.0
                                 ? Json()
                                 : Json(source.rank_correlation);
  json["regret"] = known(source.regret);
  json["reasons"] = source.reasons;
  return json;
}

std::string percent(double value) {
  return value < 0.0 ? "-" : fmt::format("{:.1f}", 100.0 * value);
}

std::string line(const SourceScore& source) {
  return fmt::format("{:<16}{:>6}{:>8}{:>8}{:>8}{:>8}{:>9}{:>8}{:>8}{:>9}{:>10}{:>7}{:>8}\n",
                     source.source, source.rows, source.refused, percent(source.time_mape),
                     percent(source.time_worst), fmt::format("{:+.1f}", 100.0 * source.time_bias),
                     percent(source.left_out_mape), percent(source.mem_mape),
                     percent(source.oom_balanced_accuracy), percent(source.interval_coverage),
                     percent(source.constant_mape),
                     source.regret < 0.0 ? "-" : fmt::format("{:.2f}", source.rank_correlation),
                     percent(source.regret));
}

}  // namespace

OrderedJson score_json(const Score& score, bool with_rows) {
  OrderedJson json;
  json["sources"] = OrderedJson::array();
  for (const SourceScore& source : score.sources) json["sources"].push_back(source_json(source));
  json["overall"] = source_json(score.overall);
  json["left_out_files"] = score.left_out_files;
  if (!with_rows) return json;
  json["rows"] = OrderedJson::array();
  for (const ScoredRow& row : score.rows) {
    OrderedJson one;
    one["row_id"] = row.row_id;
    one["source"] = row.source;
    one["device"] = row.device;
    one["stack"] = row.stack;
    one["predicted_s"] = row.predicted_s;
    one["measured_s"] = row.measured_s > 0.0 ? Json(row.measured_s) : Json();
    one["low_s"] = row.low_s;
    one["high_s"] = row.high_s;
    one["left_out_s"] = row.left_out_s;
    one["constant_s"] = row.constant_s;
    one["predicted_bytes"] = std::llround(row.predicted_bytes);
    one["measured_bytes"] =
        row.measured_bytes > 0.0 ? Json(std::llround(row.measured_bytes)) : Json();
    one["fits"] = row.predicted_bytes <= row.usable_bytes;
    one["out_of_memory"] = row.out_of_memory;
    json["rows"].push_back(std::move(one));
  }
  return json;
}

std::string describe(const Score& score, bool with_rows) {
  std::string text =
      fmt::format("{:<16}{:>6}{:>8}{:>8}{:>8}{:>8}{:>9}{:>8}{:>8}{:>9}{:>10}{:>7}{:>8}\n", "source",
                  "rows", "refused", "time %", "worst", "bias", "left out", "mem %", "oom %",
                  "cover %", "constant", "rank", "regret");
  for (const SourceScore& source : score.sources) text += line(source);
  text += line(score.overall);
  text +=
      "\ntime: mean absolute error of the step; bias: median of predicted / measured - 1; left "
      "out: the\n"
      "error without what the source's own rows calibrate; constant: that of a constant rate of\n"
      "operations; rank and regret: within sweeps of five rows and more.\n";
  for (const SourceScore& source : score.sources) {
    for (const auto& [reason, count] : source.reasons)
      text += fmt::format("refused {} of {}: {}\n", count, source.source, reason);
  }
  for (const std::string& file : score.left_out_files)
    text += fmt::format("not read: {} has other columns\n", file);
  if (!with_rows) return text;
  text += "\nrow, predicted s, measured s, error %, predicted GiB, measured GiB\n";
  constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
  for (const ScoredRow& row : score.rows) {
    text +=
        fmt::format("{}, {:.4f}, {}, {}, {:.2f}, {}\n", row.row_id, row.predicted_s,
                    row.measured_s > 0.0 ? fmt::format("{:.4f}", row.measured_s) : "-",
                    row.measured_s > 0.0
                        ? fmt::format("{:+.1f}", 100.0 * (row.predicted_s / row.measured_s - 1.0))
                        : "-",
                    row.predicted_bytes / kGiB,
                    row.out_of_memory          ? "out of memory"
                    : row.measured_bytes > 0.0 ? fmt::format("{:.2f}", row.measured_bytes / kGiB)
                                               : "-");
  }
  return text;
}

}  // namespace trireme::plan
