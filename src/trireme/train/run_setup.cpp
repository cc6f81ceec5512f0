#include "trireme/train/run_setup.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/json.h"
#include "trireme/base/log.h"
#include "trireme/execute/kernel_workspace.h"
#include "trireme/execute/product_rate.h"
#include "trireme/kernels/library.h"
#include "trireme/model/mtp.h"
#include "trireme/optim/muon.h"

namespace trireme::train {

namespace {

constexpr int64_t kVocabularyMultiple = 64;  // fast products, whole cache lines

/// The preset with the run's vocabulary and its tokenizer's special tokens.
model::ModelSpec preset_spec(const RunConfig& run, const data::Tokenizer& tokenizer) {
  int64_t vocab_size = run.model.vocab_size;
  if (vocab_size == 0) {
    vocab_size = (tokenizer.vocab_size() + kVocabularyMultiple - 1) / kVocabularyMultiple *
                 kVocabularyMultiple;
  }
  const model::ModelSpec preset = model::spec_from_preset(run.model.preset, vocab_size);
  const std::string origin = "preset " + run.model.preset;
  OrderedJson config = parse_ordered_json(preset.config_json, origin, ErrorCode::kInternal);
  config["bos_token_id"] =
      tokenizer.bos_id() ? OrderedJson(*tokenizer.bos_id()) : OrderedJson(nullptr);
  config["eos_token_id"] =
      tokenizer.eos_id() ? OrderedJson(*tokenizer.eos_id()) : OrderedJson(nullptr);
  return model::spec_from_config(config.dump(), origin);
}

/// What loss.mtp_weight says. Modules that model.init does not store are trained only where the user wrote the key:
/// most who train a model on that lost its modules on the way would not have ones that know nothing exported with it.
void apply_mtp_weight(const RunFile& run, RunModel& model) {
  const double weight = run.config.loss.mtp_weight;
  const int modules = model.spec.num_mtp_layers;
  const bool stored = !model.initial || model.initial->form.mtp;
  model.spec.mtp_loss_weight = weight;
  if (modules > 0 && weight == 0.0) {
    log::warning_once("mtp",
                      "loss.mtp_weight = 0: the model's multi-token-prediction layers are left "
                      "out of the run and of its checkpoints");
  } else if (modules > 0 && !stored) {
    const std::string path = model.initial->path.string();
    model.mtp_left_out = !is_written(run, "loss.mtp_weight");
    log::warning_once(
        "mtp " + path,
        fmt::format("{} has no tensors of its {} multi-token-prediction layers: {}", path, modules,
                    model.mtp_left_out ? "they are left out of the run and of what it exports; "
                                         "write loss.mtp_weight = 0.3 to train new ones"
                                       : "they begin from random weights, and the run exports them "
                                         "with the model"));
  }
  if (weight == 0.0 || model.mtp_left_out) model.spec = model::without_mtp(model.spec);
  // A config without such layers takes a model that has them for what is left.
  if (!model.initial || model.spec.num_mtp_layers > 0) return;
  model.initial->spec = model::without_mtp(model.initial->spec);
  model.initial->parameters.resize(model.initial->spec.parameters.size());
}

const model::MoeSpec* first_experts(const model::ModelSpec& spec) {
  const auto layer =
      std::ranges::find_if(spec.layers, [](const auto& l) { return l.moe.has_value(); });
  return layer == spec.layers.end() ? nullptr : &*layer->moe;
}

/// A balancing loss that nobody wrote, in the training of a model that has been trained. transformers adds one only where the config says
/// output_router_logits, which published models do not.
void warn_of_balance(const RunFile& run, const RunModel& model) {
  const model::MoeSpec* experts = first_experts(model.spec);
  if (experts == nullptr || !model.initial || experts->aux_in_loss || experts->aux_loss <= 0.0)
    return;
  if (is_written(run, "moe.balance") || is_written(run, "moe.aux_loss")) return;
  const BalanceChoice balance = *balance_of(run.config, model.spec);
  log::warning_once(
      "balance " + model.initial->path.string(),
      fmt::format("a balancing loss of the experts is added to the loss, with the coefficient {} "
                  "from {}; transformers would add none to this model, as its config does not say "
                  "output_router_logits = true. moe.balance = \"none\" leaves it out; "
                  "moe.aux_loss = {} keeps it without this warning",
                  balance.aux_loss, balance.from, balance.aux_loss));
}

/// What [moe] says, in every layer with experts.
void apply_moe_options(const RunConfig& run, model::ModelSpec& spec) {
  const RunConfig::Moe& options = run.moe;
  for (model::LayerSpec& layer : spec.layers) {
    if (!layer.moe) continue;
    model::MoeSpec& moe = *layer.moe;
    if (options.aux_loss >= 0.0) moe.aux_loss = options.aux_loss;
    if (options.balance == "none") moe.aux_loss = 0.0;
    if (options.balance != "config") {
      moe.sequence_aux = options.balance == "sequence";
      moe.global_aux = options.balance == "global";
    }
    moe.z_loss = options.z_loss;
    moe.bias_update_rate = options.bias_update_rate;
    moe.capacity_factor = options.capacity_factor;
    moe.pad_to_capacity = options.pad;
  }
}

}  // namespace

RunModel open_run_model(const RunFile& file) {
  const RunConfig& run = file.config;
  RunModel result;
  result.tokenizer = data::load_tokenizer(run.tokenizer.path);
  if (run.data.loss_mask == "answers")
    result.chat = data::load_chat_template(run.tokenizer.path, run.data.chat_template);
  if (run.model.init != "random") result.initial = checkpoint::open_model(run.model.init);
  if (!run.model.config.empty()) {
    TRIREME_USER_CHECK(std::filesystem::exists(run.model.config), kConfig,
                       "paths are relative to the working directory",
                       "model.config = \"{}\": there is no such file", run.model.config);
    result.spec = model::spec_from_config(read_file(run.model.config), run.model.config);
  } else if (!run.model.preset.empty()) {
    result.spec = preset_spec(run, *result.tokenizer);
  } else {
    result.spec = result.initial->spec;
  }
  apply_mtp_weight(file, result);
  apply_moe_options(run, result.spec);
  warn_of_balance(file, result);
  if (result.initial) {
    // The same tensors, whatever the config says beside them.
    const auto& theirs = result.initial->spec.parameters;
    const auto& ours = result.spec.parameters;
    for (size_t i = 0; i < std::max(ours.size(), theirs.size()); ++i) {
      const bool same = i < ours.size() && i < theirs.size() && ours[i].name == theirs[i].name &&
                        ours[i].shape == theirs[i].shape;
      TRIREME_USER_CHECK(same, kConfig,
                         "leave model.config and model.preset out to take the model as it is there",
                         "model.init = \"{}\" holds another model: tensor {} differs",
                         run.model.init, i < ours.size() ? ours[i].name : theirs[i].name);
    }
  }
  return result;
}

model::ModelSpec spec_of(const RunFile& run) {
  return open_run_model(run).spec;
}

std::optional<BalanceChoice> balance_of(const RunConfig& run, const model::ModelSpec& model) {
  const model::MoeSpec* experts = first_experts(model);
  if (experts == nullptr) return std::nullopt;
  BalanceChoice choice;
  choice.aux_loss = experts->aux_loss;
  choice.over = experts->global_aux     ? "the global batch"
                : experts->sequence_aux ? "each sequence"
                                        : "each micro-batch";
  if (run.moe.balance == "none") {
    choice.from = "moe.balance";
  } else if (run.moe.aux_loss >= 0.0) {
    choice.from = "moe.aux_loss";
  } else {
    choice.from = "the default of " + model.family;
    const Json config = parse_json(model.config_json, "config.json", ErrorCode::kConfig);
    for (const char* key : {"router_aux_loss_coef", "aux_loss_alpha"}) {
      if (config.contains(key)) choice.from = fmt::format("config.json ({})", key);
    }
  }
  return choice;
}

void choose_kernels(const RunConfig& run) {
  try {
    kernels::load_and_choose(run.kernels.load, run.kernels.use);
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("[kernels] {}", error.what()), error.hint());
  }
}

plan::Parallel parallel_of(const RunConfig& run) {
  plan::Parallel parallel;
  parallel.dp = run.parallel.dp;
  parallel.zero = run.parallel.zero;
  parallel.shard = run.parallel.shard;
  parallel.tp = run.parallel.tp;
  parallel.pp = run.parallel.pp;
  if (plan::names_schedule_file(run.parallel.schedule)) {
    parallel.schedule = plan::ScheduleKind::kText;
    parallel.schedule_file = run.parallel.schedule;
    TRIREME_USER_CHECK(std::filesystem::is_regular_file(parallel.schedule_file), kConfig,
                       "name a file that is there, or one of the schedules that have a name",
                       "parallel.schedule = \"{}\" is not a file", parallel.schedule_file);
    parallel.schedule_text = read_file(parallel.schedule_file);
  } else {
    parallel.schedule = plan::schedule_from_name(run.parallel.schedule);
  }
  parallel.chunks = run.parallel.chunks;
  parallel.cp = run.parallel.cp;
  parallel.cp_kind = plan::context_kind_from_name(run.parallel.cp_kind);
  parallel.ep = run.parallel.ep;
  parallel.etp = run.parallel.etp;
  parallel.reduction = plan::reduction_from_name(run.parallel.reduction);
  return parallel;
}

plan::Strategy strategy_of(const RunConfig& run, const model::ModelSpec& spec) {
  return strategy_of(
      run, spec, run.precision.recipe == "bf16" ? plan::Precision::kBf16 : plan::Precision::kFp32);
}

plan::Strategy strategy_of(const RunConfig& run, const model::ModelSpec& spec,
                           plan::Precision precision) {
  plan::Strategy strategy;
  strategy.sequences = run.batch.sequences;
  strategy.micro = run.batch.micro;
  strategy.lanes = run.batch.lanes;
  strategy.seq_len = run.data.seq_len;
  strategy.precision = precision;
  if (run.precision.gradient_sums == "bf16") strategy.gradient_sums = plan::Precision::kBf16;
  strategy.recompute = plan::recompute_from_names(spec, run.memory.recompute);
  strategy.in_turn = run.parallel.in_turn;
  strategy.delay_weight_gradients = run.memory.delay_weight_gradients;
  strategy.loss_chunk_rows = run.memory.loss_chunk_rows;
  strategy.offload_activations = plan::offload_from_names(spec, run.memory.offload_activations);
  strategy.offload_optimizer = run.memory.offload_optimizer;
  strategy.record = run.device.graphs;
  strategy.kernels = execute::kernel_workspace_of(run.device.name, precision, strategy.record);
  const at::Device device = run.device.name == "cpu" ? at::kCPU : at::kPrivateUse1;
  const optim::OptimizerConfig optimizer = optimizer_of(run);
  strategy.optimizer_state_bytes.assign(spec.parts.size(), 0);
  strategy.optimizer_workspace_bytes.assign(spec.parts.size(), 0);
  strategy.parallel = parallel_of(run);
  strategy.whole_matrices = optimizer.kind == optim::OptimizerKind::kMuon;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    strategy.state_floats.push_back(optim::state_floats(optimizer, parameter));
    strategy.optimizer_state_bytes[static_cast<size_t>(parameter.part)] +=
        4 * optim::state_floats(optimizer, parameter) * parameter.numel();
    if (optimizer.kind == optim::OptimizerKind::kMuon && optim::uses_muon(parameter)) {
      int64_t& workspace = strategy.optimizer_workspace_bytes[static_cast<size_t>(parameter.part)];
      workspace = std::max(workspace, optim::muon_workspace_bytes(parameter, device));
    }
  }
  return strategy;
}

optim::OptimizerConfig optimizer_of(const RunConfig& run) {
  optim::OptimizerConfig config;
  config.kind = optim::optimizer_from_name(run.optim.name);
  config.weight_decay = run.optim.weight_decay;
  config.beta1 = run.optim.betas.at(0);
  config.beta2 = run.optim.betas.at(1);
  config.eps = run.optim.eps;
  config.momentum = run.optim.momentum;
  config.nesterov = run.optim.nesterov;
  config.ns_steps = static_cast<int>(run.optim.ns_steps);
  config.adjust = run.optim.adjust == "original" ? optim::MuonLrAdjust::kOriginal
                                                 : optim::MuonLrAdjust::kMatchRmsAdamW;
  return config;
}

optim::ScheduleSpec schedule_of(const RunConfig& run) {
  optim::ScheduleSpec schedule;
  schedule.kind = optim::schedule_from_name(run.schedule.name);
  schedule.peak = run.optim.lr;
  schedule.min_ratio = run.schedule.min_lr_ratio;
  schedule.steps = run.schedule.steps;
  schedule.warmup = run.schedule.warmup;
  schedule.decay_steps = run.schedule.decay;
  schedule.decay_shape = optim::decay_shape_from_name(run.schedule.decay_shape);
  return schedule;
}

optim::BatchRampSpec ramp_of(const RunConfig& run) {
  optim::BatchRampSpec ramp;
  ramp.start = run.batch.ramp_steps == 0 ? run.batch.sequences : run.batch.ramp_start;
  ramp.full = run.batch.sequences;
  ramp.increment = run.batch.micro * run.batch.lanes;
  ramp.steps = run.batch.ramp_steps;
  return ramp;
}

data::DataOptions data_options_of(const RunConfig& run, const RunModel& model) {
  data::DataOptions options;
  for (const DataSource& source : run.data.train)
    options.train.push_back({source.path, source.weight});
  for (const DataSource& source : run.data.valid)
    options.valid.push_back({source.path, source.weight});
  options.valid_fraction = run.data.valid_fraction;
  options.seq_len = run.data.seq_len;
  options.packing = data::parse_packing(run.data.packing);
  options.jsonl_field = run.data.jsonl_field;
  options.separator = run.data.separator;
  options.mask_answers = run.data.loss_mask == "answers";
  options.chat = model.chat;
  options.seed = static_cast<uint64_t>(run.seed);
  options.cache = run.data.cache.empty() ? std::filesystem::path(run.out) / "cache"
                                         : std::filesystem::path(run.data.cache);
  options.num_threads = static_cast<int>(run.threads);
  return options;
}

PrecisionChoice choose_precision(const std::string& recipe) {
  PrecisionChoice choice;
  if (recipe != "auto") {
    choice.precision = recipe == "bf16" ? plan::Precision::kBf16 : plan::Precision::kFp32;
    choice.gemm_tflops = execute::product_tflops(recipe == "bf16" ? at::kBFloat16 : at::kFloat);
    choice.reason =
        fmt::format("{} as asked for ({:.3g} TFLOP/s in products)", recipe, choice.gemm_tflops);
    return choice;
  }
  const double fp32 = execute::product_tflops(at::kFloat);
  const double bf16 = execute::product_tflops(at::kBFloat16);
  constexpr double kClearlyFaster = 1.3;
  choice.precision = bf16 > kClearlyFaster * fp32 ? plan::Precision::kBf16 : plan::Precision::kFp32;
  choice.gemm_tflops = choice.precision == plan::Precision::kBf16 ? bf16 : fp32;
  choice.reason = fmt::format("auto took {}: products reach {:.3g} TFLOP/s in fp32, {:.3g} in bf16",
                              plan::to_string(choice.precision), fp32, bf16);
  return choice;
}

std::vector<Baseline> read_baselines(const RunConfig& run) {
  std::vector<Baseline> result;
  if (run.data.baselines.empty()) return result;
  const std::string& path = run.data.baselines;
  const OrderedJson json = parse_ordered_json(read_file(path), path);
  TRIREME_USER_CHECK(
      json.is_object() && json.contains("bits_per_byte") && json.at("bits_per_byte").is_object(),
      kData,
      "name the corpus.json that `trireme data corpus` wrote, or a file like "
      "{\"bits_per_byte\": {\"gzip -9\": 2.01}}",
      "data.baselines = \"{}\" holds no table \"bits_per_byte\"", path);
  const OrderedJson& figures = json.at("bits_per_byte");
  for (const auto& [name, value] : figures.items()) {
    if (value.is_number()) result.push_back({name, value.get<double>()});
  }
  return result;
}

}  // namespace trireme::train
