#include "trireme/plan/published_run.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "trireme/base/error.h"
#include "trireme/plan/fold.h"

namespace trireme::plan {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

/// What makes a row unusable; caught where the row is read.
struct Unusable {
  std::string reason;
};

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

bool contains(const std::string& text, std::string_view what) {
  return text.find(what) != std::string::npos;
}

class Row {
 public:
  explicit Row(const CsvRow& cells) : cells_(cells) {}

  /// Without spaces around it.
  std::string text(const std::string& column) const {
    const auto found = cells_.find(column);
    if (found == cells_.end()) return "";
    const std::string& cell = found->second;
    const size_t first = cell.find_first_not_of(" \t");
    if (first == std::string::npos) return "";
    return cell.substr(first, cell.find_last_not_of(" \t") - first + 1);
  }

  std::optional<double> number(const std::string& column) const {
    const std::string cell = text(column);
    constexpr std::array<std::string_view, 7> kBlank = {"",    "-",    "n/a", "na",
                                                        "nan", "none", "null"};
    if (std::ranges::find(kBlank, lower(cell)) != kBlank.end()) return std::nullopt;
    double value = 0.0;
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (error != std::errc() || end != cell.data() + cell.size() || !std::isfinite(value))
      throw Unusable{fmt::format("{} = \"{}\" is not a number", column, cell)};
    return value;
  }

  /// A whole number between `least` and a bound that no run reaches: products of sizes stay far from overflowing.
  std::optional<int64_t> count(const std::string& column, int64_t least = 1) const {
    const std::optional<double> value = number(column);
    if (!value) return std::nullopt;
    static const std::map<std::string, double> bounds = {
        {"layers", 512},    {"hidden", 1 << 17},     {"ffn", 1 << 18},        {"moe_ffn", 1 << 18},
        {"vocab", 1 << 22}, {"heads", 1 << 12},      {"kv_heads", 1 << 12},   {"head_dim", 1 << 12},
        {"experts", 4096},  {"topk", 1024},          {"shared_ffn", 1 << 18}, {"seq", 1 << 22},
        {"mbs", 1 << 12},   {"num_devices", 1 << 20}};
    const auto bound = bounds.find(column);
    const double most = bound == bounds.end() ? 1e8 : bound->second;
    if (*value != std::floor(*value) || *value < static_cast<double>(least) || *value > most)
      throw Unusable{fmt::format("{} = {} is not a whole number between {} and {}", column,
                                 text(column), least, most)};
    return static_cast<int64_t>(*value);
  }

  int64_t needed(const std::string& column) const {
    const std::optional<int64_t> value = count(column);
    if (!value) throw Unusable{column + " is blank"};
    return *value;
  }

 private:
  const CsvRow& cells_;
};

bool has_plain_mlp(const std::string& model) {
  constexpr std::array<std::string_view, 8> kPlain = {"gpt",      "mpt",    "bloom",     "opt-",
                                                      "nemotron", "falcon", "starcoder", "pythia"};
  return std::ranges::any_of(kPlain,
                             [&](std::string_view name) { return contains(model, name); }) &&
         !contains(model, "gpt-oss") && !contains(model, "gpt_oss");
}

// "mla(q1536,kv512,rope64)": the number after a word.
int64_t number_after(const std::string& text, std::string_view word, int64_t fallback) {
  const size_t at = text.find(word);
  if (at == std::string::npos) return fallback;
  int64_t value = 0;
  const char* const begin = text.data() + at + word.size();
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  return error == std::errc() && value >= 0 && value < 1000000 ? value : fallback;
}

int64_t padded_vocabulary(const Row& row, int64_t tp) {
  constexpr int64_t kUnstated = 50257;  // GPT-2's
  const int64_t vocab = row.count("vocab").value_or(kUnstated);
  const int64_t unit = 128 * tp;
  return (vocab + unit - 1) / unit * unit;
}

void make_mlps_plain(model::ModelSpec& spec) {
  for (model::LayerSpec& layer : spec.layers) layer.mlp.kind = model::MlpKind::kPlain;
  std::erase_if(spec.parameters, [](const model::ParameterSpec& parameter) {
    return parameter.role == model::Role::kGate;
  });
}

// The family that covers most layouts of experts always has a shared one.
void drop_shared_experts(model::ModelSpec& spec) {
  for (model::LayerSpec& layer : spec.layers) {
    if (layer.moe) layer.moe->shared_hidden = 0;
  }
  std::erase_if(spec.parameters, [](const model::ParameterSpec& parameter) {
    return parameter.name.find("shared_expert") != std::string::npos;
  });
}

model::ModelSpec read_model(const Row& row, int64_t tp, bool tied) {
  const int64_t layers = row.needed("layers");
  const int64_t hidden = row.needed("hidden");
  const std::string name = lower(row.text("model"));
  const std::string attention = lower(row.text("attn_type"));
  int64_t heads = row.count("heads").value_or(0);
  if (heads == 0) {
    const int64_t size = row.count("head_dim").value_or(128);
    heads = std::max<int64_t>(1, hidden / size);
  }
  const int64_t kv_heads = row.count("kv_heads").value_or(heads);
  const int64_t head_dim = row.count("head_dim").value_or(std::max<int64_t>(1, hidden / heads));
  const int64_t experts = row.count("experts", 0).value_or(0);
  const int64_t ffn = row.count("ffn").value_or(experts > 1 ? hidden : 4 * hidden);
  const int64_t seq = row.needed("seq");
  Json config = {{"hidden_size", hidden},          {"num_hidden_layers", layers},
                 {"num_attention_heads", heads},   {"num_key_value_heads", kv_heads},
                 {"intermediate_size", ffn},       {"vocab_size", padded_vocabulary(row, tp)},
                 {"max_position_embeddings", seq}, {"tie_word_embeddings", tied}};
  const bool latent = contains(attention, "mla");
  if (experts > 1) {
    const int64_t width = row.count("moe_ffn").value_or(ffn);
    const int64_t shared = row.count("shared_ffn", 0).value_or(0);
    config["n_routed_experts"] = experts;
    config["num_experts_per_tok"] = row.needed("topk");
    config["moe_intermediate_size"] = width;
    config["n_shared_experts"] = std::max<int64_t>(1, (shared + width - 1) / width);
    config["first_k_dense_replace"] = row.count("dense_layers", 0).value_or(0);
    config["n_group"] = 1;
    config["topk_group"] = 1;
    config["num_nextn_predict_layers"] = 0;
    config["model_type"] = latent ? "deepseek_v3" : "glm4_moe";
    if (latent) {
      config["num_key_value_heads"] = heads;
      const int64_t query_rank = number_after(attention, "(q", 1536);
      config["q_lora_rank"] = query_rank > 0 ? Json(query_rank) : Json();
      config["kv_lora_rank"] = number_after(attention, "kv", 512);
      config["qk_rope_head_dim"] = number_after(attention, "rope", 64);
      config["qk_nope_head_dim"] = head_dim;
      config["v_head_dim"] = head_dim;
    } else {
      config["head_dim"] = head_dim;
      config["partial_rotary_factor"] = 1.0;
    }
    model::ModelSpec spec = model::spec_from_config(config.dump(), "row");
    if (shared == 0) drop_shared_experts(spec);
    return spec;
  }
  config["model_type"] = "llama";
  config["head_dim"] = head_dim;
  model::ModelSpec spec = model::spec_from_config(config.dump(), "row");
  if (has_plain_mlp(name)) make_mlps_plain(spec);
  return spec;
}

void read_schedule(const Row& row, Parallel& parallel) {
  const std::string schedule = lower(row.text("pp_schedule"));
  const int64_t chunks = row.count("vp", 0).value_or(1);
  if (parallel.pp == 1) return;
  if (contains(schedule, "zbv") || contains(schedule, "v-zb") || contains(schedule, "zb-v")) {
    parallel.schedule = ScheduleKind::kZeroBubbleV;
    parallel.chunks = 2;
  } else if (contains(schedule, "zb") || contains(schedule, "zero-bubble")) {
    parallel.schedule = ScheduleKind::kZeroBubbleH1;
  } else if (contains(schedule, "dualpipe")) {
    parallel.schedule = ScheduleKind::kDualPipeV;
    parallel.chunks = 2;
  } else if (contains(schedule, "gpipe") || contains(schedule, "afab")) {
    parallel.schedule = ScheduleKind::kGPipe;
  } else if (chunks > 1) {
    parallel.schedule = ScheduleKind::kInterleaved;
    parallel.chunks = chunks;
  }
}

Parallel read_parallel(const Row& row, bool has_experts) {
  Parallel parallel;
  const int64_t devices = row.needed("num_devices");
  parallel.tp = row.count("tp").value_or(1);
  parallel.pp = row.count("pp").value_or(1);
  parallel.cp = row.count("cp").value_or(1);
  const int64_t others = parallel.tp * parallel.pp * parallel.cp;
  if (devices % others != 0)
    throw Unusable{fmt::format("tp x pp x cp = {} does not divide {} devices", others, devices)};
  parallel.dp = devices / others;
  const int64_t stated = row.count("dp").value_or(parallel.dp);
  // Some tables count context parallel ranks as data parallel ones.
  if (stated != parallel.dp && stated != parallel.dp * parallel.cp)
    throw Unusable{
        fmt::format("dp = {} on {} devices with tp x pp x cp = {}", stated, devices, others)};
  parallel.zero = std::min<int64_t>(row.count("zero_stage", 0).value_or(0), 3);
  int64_t shard = 0;
  // Also "-1" and words: all of them.
  const std::string stated_shard = row.text("fsdp_shard");
  std::from_chars(stated_shard.data(), stated_shard.data() + stated_shard.size(), shard);
  if (shard > 0 && shard < parallel.dp && parallel.dp % shard == 0 && parallel.zero > 0)
    parallel.shard = shard;
  if (has_experts) {
    parallel.ep = row.count("ep").value_or(1);
    const int64_t stage = parallel.dp * parallel.cp * parallel.tp;
    // Megatron-Core's default: experts are cut as the rest is.
    parallel.etp =
        row.count("etp").value_or(stage % (parallel.tp * parallel.ep) == 0 ? parallel.tp : 1);
    if (stage % (parallel.ep * parallel.etp) != 0)
      throw Unusable{fmt::format("ep x etp = {} x {} does not divide the {} devices of a stage",
                                 parallel.ep, parallel.etp, stage)};
  }
  const std::string kind = lower(row.text("cp_type"));
  if (contains(kind, "a2a") || contains(kind, "ulysses")) parallel.cp_kind = ContextKind::kUlysses;
  if (contains(kind, "gather")) parallel.cp_kind = ContextKind::kGather;
  read_schedule(row, parallel);
  return parallel;
}

// Layers of every stage: equal, or one fewer at both ends where that comes out even, or the rest to the first ones.
std::vector<int64_t> stage_layers(int64_t layers, int64_t stages) {
  std::vector<int64_t> result(static_cast<size_t>(stages), layers / stages);
  if (layers % stages == 0) return result;
  if (stages > 2 && (layers + 2) % stages == 0) {
    std::ranges::fill(result, (layers + 2) / stages);
    --result.front();
    --result.back();
    return result;
  }
  for (int64_t s = 0; s < layers % stages; ++s) ++result[static_cast<size_t>(s)];
  return result;
}

// As nanotron cuts a model: a stage ends before the block that would take all so far past the stage's share of the parameters in
// products. The head counts too, so that the last stages have fewer layers.
std::vector<int64_t> layers_by_cost(const model::ModelSpec& spec, int64_t stages) {
  double layer = 0.0;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    const model::PartSpec& part = spec.parts[static_cast<size_t>(parameter.part)];
    if (part.layer == 0 && parameter.shape.size() > 1)
      layer += static_cast<double>(parameter.numel());
  }
  const double head = static_cast<double>(spec.vocab_size) * static_cast<double>(spec.hidden);
  const int64_t layers = spec.num_main_layers();
  const double share = (layer * static_cast<double>(layers) + head) / static_cast<double>(stages);
  std::vector<int64_t> result(static_cast<size_t>(stages), 0);
  for (int64_t i = 1; i <= layers; ++i) {
    const double stage = std::ceil(layer * static_cast<double>(i) / share - 1e-9) - 1.0;
    ++result[static_cast<size_t>(std::clamp(stage, 0.0, static_cast<double>(stages - 1)))];
  }
  // Only the head's stage of a program can do without a layer: another one takes it from a stage before.
  for (size_t stage = result.size() - 1; stage-- > 1;) {
    if (result[stage] > 0) continue;
    size_t from = stage;
    while (from > 0 && result[from] < 2) --from;
    --result[from];
    ++result[stage];
  }
  return result;
}

std::vector<Recompute> read_recompute(const Row& row, const PlannedRun& run) {
  const std::string text = lower(row.text("recompute"));
  std::vector<Recompute> result(run.spec.parts.size(), Recompute::kNone);
  if (text.empty() || text.starts_with("none")) return result;
  const bool some = contains(text, "layers=");
  const bool half =
      contains(text, "per-op") || contains(text, "every other") || contains(text, "ac");
  const bool full = text.starts_with("full");
  const int64_t first = some ? number_after(text, "layers=", 0) : 0;
  for (size_t part = 0; part < result.size(); ++part) {
    const model::PartSpec& of = run.spec.parts[part];
    if (of.layer < 0) continue;
    if (full) {
      if (!some || of.layer < first) result[part] = Recompute::kFull;
    } else if (half && contains(text, "selective") &&
               run.stack.attention != AttentionKernel::kUnfused) {
      // Which operations are kept depends on the framework: about as much work as every other layer.
      if (of.layer % 2 == 1 && !contains(text, "core")) result[part] = Recompute::kFull;
    } else if (of.kind == model::PartKind::kAttention &&
               run.stack.attention == AttentionKernel::kUnfused) {
      result[part] = Recompute::kSelective;
    }
  }
  return result;
}

void read_overlap(const Row& row, StackProfile& stack) {
  const std::string text = lower(row.text("overlap"));
  if (text.starts_with("none")) {
    stack.overlap_gradients = stack.overlap_parameters = stack.overlap_send = false;
    stack.tensor_exposed = 1.0;
  }
  if (contains(text, "overlap-grad-reduce")) stack.overlap_gradients = true;
  if (contains(text, "without explicit overlap-gr")) stack.overlap_gradients = false;
  if (contains(text, "overlap-param-gather")) stack.overlap_parameters = true;
  if (contains(text, "tp_overlap") || contains(text, "userbuffer")) stack.tensor_exposed = 0.3;
}

void read_measurement(const Row& row, const Strategy& strategy, PublishedRun& result) {
  const double sequences = static_cast<double>(strategy.sequences);
  const double tokens = sequences * static_cast<double>(strategy.seq_len);
  if (const auto step = row.number("iter_s"); step && *step > 0.0) {
    result.step_s = step;
  } else if (const auto rate = row.number("tokens_per_s_per_gpu"); rate && *rate > 0.0) {
    result.step_s = tokens / (*rate * static_cast<double>(strategy.parallel.world()));
  } else if (const auto samples = row.number("samples_per_s"); samples && *samples > 0.0) {
    result.step_s = sequences / *samples;
  }
  const std::string note = lower(row.text("mem_note"));
  result.out_of_memory = contains(note, "oom") || contains(note, "out of memory");
  const auto peak = row.number("peak_mem_gib");
  const bool not_a_peak = contains(note, "not a peak") || contains(note, "static");
  if (peak && *peak > 0.0 && !not_a_peak && !result.out_of_memory) result.peak_bytes = *peak * kGiB;
}

// nanotron's jobs measure their links first: "measured busbw GB/s AR=340.1 AG=167.3 RS=161.7 intraAR=425.9 ...". What that says
// about the software below it, in the words of stacks' patterns.
std::string probed_links(const std::string& text, int64_t devices, ClusterSpec& cluster) {
  const LinkProfile& network = cluster.network.link;
  const auto inside = static_cast<double>(number_after(text, " intraar=", 0)) * 1e9;
  if (inside > 0.0 && inside <= network.bytes_per_s) {
    cluster.node.accelerators = 1;
    return "(links: nodes over the network)";
  }
  constexpr double kBetter = 1.25;
  const auto usual = cluster.network.usual_gather.find(static_cast<int>(devices));
  // The better of two that cost the same: what disturbs a measurement makes it lower.
  const auto gather = 1e9 * static_cast<double>(std::max(number_after(text, " ag=", 0),
                                                         number_after(text, " rs=", 0)));
  if (usual != cluster.network.usual_gather.end() && gather > kBetter * usual->second)
    return "(links: better than usual)";
  return "";
}

std::string source_of(const std::string& row_id, const std::string& file) {
  const size_t dash = row_id.rfind('-');
  return dash == std::string::npos || dash == 0 ? file : row_id.substr(0, dash);
}

}  // namespace

bool has_run_schema(const std::vector<CsvRow>& rows) {
  if (rows.empty()) return false;
  for (const char* column : {"layers", "hidden", "num_devices"}) {
    if (!rows.front().contains(column)) return false;
  }
  return true;
}

std::optional<PublishedRun> read_published_run(const CsvRow& cells, const std::string& file,
                                               const ProfileLibrary& library,
                                               const std::string& without, Refusal& refusal) {
  const Row row(cells);
  PublishedRun result;
  result.row_id = row.text("row_id");
  result.source = source_of(result.row_id, file);
  refusal = {};
  const std::string quality = row.text("quality");
  if (quality != "A" && quality != "B") {
    refusal = {fmt::format("quality \"{}\"", quality), false};
    return std::nullopt;
  }
  try {
    const std::string task = lower(row.text("task"));
    if (contains(task, "layer") || contains(task, "inference"))
      throw Unusable{fmt::format("task \"{}\" is not a training step", task)};
    PlannedRun& run = result.run;
    Strategy& strategy = run.strategy;
    run.cluster = library.cluster(row.text("device"));
    const std::string extra = lower(row.text("other_config"));
    if (const auto node = row.count("gpus_per_node")) {
      if (*node <= 4096) run.cluster.node.accelerators = static_cast<int>(*node);
    }
    const std::string software = row.text("framework") + " " + row.text("other_config");
    run.stack = library.stack(software);
    // Notes and probes say at most which version of it that was.
    const StackProfile& version =
        library.stack(fmt::format("{} {} {}", software, row.text("notes"),
                                  probed_links(extra, row.needed("num_devices"), run.cluster)));
    if (version.version_of == run.stack.name) run.stack = version;
    const bool has_experts = row.count("experts", 0).value_or(0) > 1;
    strategy.parallel = read_parallel(row, has_experts);
    const bool tied = contains(extra, "tie=true") && strategy.parallel.pp == 1;
    run.spec = read_model(row, strategy.parallel.tp, tied);
    strategy.seq_len = row.needed("seq");
    strategy.micro = row.count("mbs").value_or(1);
    const int64_t data = strategy.parallel.dp;
    if (const auto batch = row.count("gbs")) {
      strategy.sequences = *batch;
    } else {
      strategy.sequences = row.needed("ga") * strategy.micro * data;
    }
    // Where micro-batches are ragged, the largest that divides.
    while (strategy.micro > 1 && strategy.sequences % (strategy.micro * data) != 0)
      --strategy.micro;
    constexpr int64_t kMostMicroBatches = 1 << 16;
    if (rank_micro_batches(strategy) > kMostMicroBatches)
      throw Unusable{fmt::format("{} micro-batches a step", rank_micro_batches(strategy))};
    const std::string precision = lower(row.text("precision"));
    run.sharding.fp8 = contains(precision, "fp8");
    strategy.precision = precision.starts_with("fp32") || precision.starts_with("tf32")
                             ? Precision::kFp32
                             : Precision::kBf16;
    const std::string sliced = row.text("sp");
    run.sharding.sequence_parallel = strategy.parallel.tp > 1 && sliced != "0";
    run.sharding.dropout = run.stack.attention == AttentionKernel::kUnfused;
    run.sharding.recompute_whole = true;
    strategy.recompute = read_recompute(row, run);
    if (strategy.parallel.pp > 1)
      strategy.stage_layers =
          run.stack.stages_by_cost && strategy.parallel.chunks == 1
              ? layers_by_cost(run.spec, strategy.parallel.pp)
              : stage_layers(run.spec.num_main_layers(), strategy.parallel.stages());
    read_overlap(row, run.stack);
    run.own_memory = false;
    use_profiles(library, without, run);
    read_measurement(row, strategy, result);
    if (!result.step_s && !result.out_of_memory && !result.peak_bytes)
      throw Unusable{"nothing was measured"};
  } catch (const Unusable& unusable) {
    refusal = {unusable.reason, true};
    return std::nullopt;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInternal) throw;
    refusal = {error.what(), true};
    return std::nullopt;
  }
  return result;
}

}  // namespace trireme::plan
