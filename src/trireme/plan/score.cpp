#include "trireme/plan/score.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

constexpr size_t kLeastSweep = 5;

double median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::ranges::sort(values);
  return values[values.size() / 2];
}

double error_of(double predicted, double measured) {
  return std::abs(predicted / measured - 1.0);
}

// Places of values in order; equal ones share theirs.
std::vector<double> ranks_of(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t i = 0; i < order.size();) {
    size_t end = i;
    while (end < order.size() && values[order[end]] == values[order[i]]) ++end;
    for (size_t j = i; j < end; ++j) ranks[order[j]] = static_cast<double>(i + end - 1) / 2.0;
    i = end;
  }
  return ranks;
}

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const double count = static_cast<double>(a.size());
  const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / count;
  const double mean_b = std::accumulate(b.begin(), b.end(), 0.0) / count;
  double ab = 0.0;
  double aa = 0.0;
  double bb = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return aa > 0.0 && bb > 0.0 ? ab / std::sqrt(aa * bb) : 1.0;
}

void score_sweeps(const std::vector<const ScoredRow*>& rows, SourceScore& result) {
  std::map<std::string, std::vector<const ScoredRow*>> sweeps;
  for (const ScoredRow* row : rows) {
    if (row->measured_s > 0.0) sweeps[row->sweep].push_back(row);
  }
  double correlations = 0.0;
  double regrets = 0.0;
  int count = 0;
  for (const auto& [name, sweep] : sweeps) {
    if (sweep.size() < kLeastSweep) continue;
    std::vector<double> predicted;
    std::vector<double> measured;
    for (const ScoredRow* row : sweep) {
      predicted.push_back(row->predicted_s / row->tokens);
      measured.push_back(row->measured_s / row->tokens);
    }
    const auto chosen =
        static_cast<size_t>(std::ranges::min_element(predicted) - predicted.begin());
    correlations += correlation(ranks_of(predicted), ranks_of(measured));
    regrets += measured[chosen] / *std::ranges::min_element(measured) - 1.0;
    ++count;
  }
  if (count == 0) return;
  result.rank_correlation = correlations / count;
  result.regret = regrets / count;
}

void summarise(const std::vector<const ScoredRow*>& rows, SourceScore& result) {
  std::vector<double> ratios;
  double errors = 0.0;
  double left_out = 0.0;
  double constant = 0.0;
  double memory = 0.0;
  int timed = 0;
  int inside = 0;
  int weighed = 0;
  int fitted[2][2] = {};  ///< by whether it ran out, and whether that was predicted
  for (const ScoredRow* row : rows) {
    ++result.rows;
    if (row->measured_s > 0.0) {
      ++timed;
      const double error = error_of(row->predicted_s, row->measured_s);
      errors += error;
      ratios.push_back(row->predicted_s / row->measured_s - 1.0);
      result.time_worst = std::max(result.time_worst, error);
      left_out += error_of(row->left_out_s, row->measured_s);
      constant += error_of(row->constant_s, row->measured_s);
      if (row->low_s <= row->measured_s && row->measured_s <= row->high_s) ++inside;
    }
    if (row->measured_bytes > 0.0) {
      ++weighed;
      memory += error_of(row->predicted_bytes, row->measured_bytes);
    }
    ++fitted[row->out_of_memory ? 1 : 0][row->predicted_bytes > row->usable_bytes ? 1 : 0];
  }
  if (timed > 0) {
    result.time_mape = errors / timed;
    result.left_out_mape = left_out / timed;
    result.constant_mape = constant / timed;
    result.time_bias = median(ratios);
    result.interval_coverage = static_cast<double>(inside) / timed;
  }
  if (weighed > 0) result.mem_mape = memory / weighed;
  const int ran = fitted[0][0] + fitted[0][1];
  const int ran_out = fitted[1][0] + fitted[1][1];
  if (ran > 0 && ran_out > 0)
    result.oom_balanced_accuracy =
        (static_cast<double>(fitted[0][0]) / ran + static_cast<double>(fitted[1][1]) / ran_out) /
        2.0;
  score_sweeps(rows, result);
}

// The rate that fits a source's rows best, by its median.
void predict_constant(std::vector<ScoredRow>& rows) {
  std::map<std::string, std::vector<double>> rates;
  for (const ScoredRow& row : rows) {
    if (row.measured_s > 0.0) rates[row.source].push_back(row.flops / row.measured_s);
  }
  for (ScoredRow& row : rows) {
    const auto found = rates.find(row.source);
    if (found != rates.end()) row.constant_s = row.flops / median(found->second);
  }
}

}  // namespace

Score score(const std::vector<TruthFile>& files, const ProfileLibrary& library) {
  Score result;
  std::map<std::string, SourceScore> sources;
  bool any = false;
  for (const TruthFile& file : files) {
    const std::vector<CsvRow> rows = parse_csv(file.text, file.name);
    if (!has_run_schema(rows)) {
      result.left_out_files.push_back(file.name);
      continue;
    }
    any = true;
    for (const CsvRow& cells : rows) {
      Refusal refusal;
      const std::optional<PublishedRun> read =
          read_published_run(cells, file.name, library, "", refusal);
      const auto refuse = [&](const std::string& source, const std::string& reason) {
        ++sources[source].refused;
        ++sources[source].reasons[reason];
      };
      if (!read) {
        const auto id = cells.find("row_id");
        const std::string row_id = id == cells.end() ? "" : id->second;
        const size_t dash = row_id.rfind('-');
        const std::string source =
            dash == std::string::npos || dash == 0 ? file.name : row_id.substr(0, dash);
        if (refusal.counts) refuse(source, refusal.reason);
        continue;
      }
      ScoredRow row;
      row.row_id = read->row_id;
      row.source = read->source;
      sources.try_emplace(row.source);
      try {
        const Prediction prediction = predict(read->run);
        row.predicted_s = prediction.step_s;
        row.low_s = prediction.low_s;
        row.high_s = prediction.high_s;
        row.flops = prediction.flops_model;
        row.predicted_bytes = prediction.peak_bytes();
        row.usable_bytes = prediction.usable_bytes;
        row.left_out_s = row.predicted_s;
        const std::optional<PublishedRun> without =
            read_published_run(cells, file.name, library, row.source, refusal);
        const CostFactors& a = read->run.factors;
        const CostFactors& b = without->run.factors;
        if (a.sustained != b.sustained || a.memory != b.memory || a.host != b.host ||
            a.network != b.network)
          row.left_out_s = predict(without->run).step_s;
      } catch (const Error& error) {
        if (error.code() == ErrorCode::kInternal) throw;
        refuse(row.source, error.what());
        continue;
      }
      row.measured_s = read->step_s.value_or(0.0);
      row.measured_bytes = read->peak_bytes.value_or(0.0);
      row.out_of_memory = read->out_of_memory;
      row.device = read->run.cluster.device.name;
      row.stack = read->run.stack.name;
      const Strategy& strategy = read->run.strategy;
      row.tokens = static_cast<double>(strategy.sequences * strategy.seq_len);
      const auto model = cells.find("model");
      row.sweep =
          fmt::format("{} {} {} {} {}", row.source, model == cells.end() ? "" : model->second,
                      strategy.parallel.world(), strategy.seq_len, strategy.sequences);
      result.rows.push_back(std::move(row));
    }
  }
  TRIREME_USER_CHECK(any, kData, "rows need at least the columns layers, hidden and num_devices",
                     "no file has rows of published runs");
  predict_constant(result.rows);
  std::vector<const ScoredRow*> all;
  for (auto& [name, source] : sources) {
    source.source = name;
    std::vector<const ScoredRow*> own;
    for (const ScoredRow& row : result.rows) {
      if (row.source == name) own.push_back(&row);
    }
    summarise(own, source);
    all.insert(all.end(), own.begin(), own.end());
    result.overall.refused += source.refused;
    for (const auto& [reason, count] : source.reasons) result.overall.reasons[reason] += count;
    result.sources.push_back(source);
  }
  result.overall.source = "overall";
  summarise(all, result.overall);
  return result;
}

}  // namespace trireme::plan
