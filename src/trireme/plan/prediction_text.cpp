#include <cmath>

#include "trireme/plan/prediction.h"

namespace trireme::plan {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

OrderedJson memory_json(const MemoryByKind& memory) {
  OrderedJson json;
  json["weights"] = std::llround(memory.weights);
  json["gradients"] = std::llround(memory.gradients);
  json["optimizer"] = std::llround(memory.optimizer);
  json["activations"] = std::llround(memory.activations);
  json["context"] = std::llround(memory.context);
  return json;
}

}  // namespace

OrderedJson prediction_json(const PlannedRun& run, const Prediction& prediction) {
  OrderedJson json;
  json["step_s"] = prediction.step_s;
  json["interval_s"] = {prediction.low_s, prediction.high_s};
  json["tokens_per_s"] = prediction.tokens_per_s;
  json["peak_bytes"] = OrderedJson::array();
  json["classes"] = OrderedJson::array();
  for (const RankClass& one : prediction.classes) {
    json["peak_bytes"].push_back(std::llround(one.peak.total()));
    OrderedJson entry;
    entry["stage"] = one.stage;
    entry["ranks"] = one.ranks;
    entry["peak_bytes"] = std::llround(one.peak.total());
    entry["peak_by_kind"] = memory_json(one.peak);
    entry["busy_s"] = one.busy_s;
    entry["bubble_share"] = one.bubble_share;
    json["classes"].push_back(std::move(entry));
  }
  json["exposed_comm_s"] = prediction.exposed_comm_s;
  json["hidden_comm_share"] = prediction.hidden_comm_share;
  json["bubble_share"] = prediction.bubble_share;
  json["flops_model"] = prediction.flops_model;
  json["flops_hardware"] = prediction.flops_hardware;
  json["exposed_by_kind_s"] = prediction.exposed_by_kind_s;
  json["sent_bytes"] = prediction.sent_bytes;
  json["time_by_kind_s"] = prediction.time_by_kind_s;
  if (prediction.measured_share) json["measured_share"] = *prediction.measured_share;
  json["fits"] = prediction.fits();
  json["usable_bytes"] = std::llround(prediction.usable_bytes);
  json["cluster"] = run.cluster.name;
  json["device"] = run.cluster.device.name;
  json["world"] = run.strategy.parallel.world();
  return json;
}

std::string describe(const PlannedRun& run, const Prediction& prediction) {
  std::string text =
      fmt::format("{} on {} x {}: {}\n", run.spec.architecture, run.strategy.parallel.world(),
                  run.cluster.device.name, describe(run.strategy.parallel));
  text += fmt::format("step            {:.4f} s  (90 % interval {:.4f} to {:.4f})\n",
                      prediction.step_s, prediction.low_s, prediction.high_s);
  text += fmt::format("tokens/s        {:.0f} of an accelerator\n", prediction.tokens_per_s);
  const double model = prediction.flops_model / prediction.step_s;
  const double hardware = prediction.flops_hardware / prediction.step_s;
  text += fmt::format("operations      {:.1f} TFLOP/s of the model, {:.1f} with recomputation",
                      model / 1e12, hardware / 1e12);
  if (prediction.peak_flops > 0.0)
    text +=
        fmt::format(" ({:.1f} % and {:.1f} % of the peak)", 100.0 * model / prediction.peak_flops,
                    100.0 * hardware / prediction.peak_flops);
  text +=
      fmt::format("\ncommunication   {:.4f} s exposed, {:.0f} % hidden\nbubble          {:.1f} %\n",
                  prediction.exposed_comm_s, 100.0 * prediction.hidden_comm_share,
                  100.0 * prediction.bubble_share);
  text += "where the time goes\n";
  for (const auto& [kind, seconds] : prediction.time_by_kind_s) {
    if (seconds > 0.0)
      text += fmt::format("  {:<14}{:>10.4f} s {:>6.1f} %\n", kind, seconds,
                          100.0 * seconds / prediction.step_s);
  }
  if (prediction.measured_share)
    text += fmt::format("priced by measured instructions: {:.1f} % of what is computed\n",
                        100.0 * *prediction.measured_share);
  text += fmt::format("memory of a rank, GiB ({:.1f} usable)\n", prediction.usable_bytes / kGiB);
  for (const RankClass& one : prediction.classes) {
    text += fmt::format(
        "  stage {:<3} {:>6} ranks {:>8.2f}: weights {:.2f}, gradients {:.2f}, optimizer {:.2f}, "
        "activations {:.2f}\n",
        one.stage, one.ranks, one.peak.total() / kGiB, one.peak.weights / kGiB,
        one.peak.gradients / kGiB, one.peak.optimizer / kGiB, one.peak.activations / kGiB);
  }
  if (!prediction.fits())
    text += fmt::format("does not fit: {:.2f} GiB too much\n",
                        (prediction.peak_bytes() - prediction.usable_bytes) / kGiB);
  text += "sent by a rank in a step, GB\n";
  for (const auto& [kind, bytes] : prediction.sent_bytes) {
    if (bytes > 0.0) text += fmt::format("  {:<18}{:>12.3f}\n", kind, bytes / 1e9);
  }
  return text;
}

}  // namespace trireme::plan
