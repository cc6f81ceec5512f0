#include "trireme/model/family_moe.h"

#include <algorithm>

namespace trireme::model {

int64_t read_renamed(ConfigReader& config, const std::vector<std::string>& names,
                     int64_t default_value) {
  int64_t value = default_value;
  const std::string* found = nullptr;
  for (const std::string& name : names) {
    const int64_t given = config.not_negative(name, default_value);
    if (!config.has(name)) continue;
    if (found != nullptr && given != value) {
      config.fail(name, fmt::format("= {} is another name of \"{}\" = {}", given, *found, value),
                  "keep one of the two");
    }
    found = &name;
    value = given;
  }
  return value;
}

MoeSpec read_moe(ConfigReader& config, const MoeOptions& options, const ModelSpec& spec) {
  MoeSpec moe;
  moe.num_experts = read_renamed(config, options.num_experts, options.default_experts);
  if (moe.num_experts == 0 && !options.may_be_dense)
    config.fail(options.num_experts.front(), "is 0", "write how many experts a layer has");
  moe.top_k = options.default_top_k > 0
                  ? config.positive("num_experts_per_tok", options.default_top_k)
                  : config.positive("num_experts_per_tok");
  if (moe.top_k > moe.num_experts && moe.num_experts > 0) {
    config.fail("num_experts_per_tok",
                fmt::format("= {} chooses more than all {} experts", moe.top_k, moe.num_experts),
                "a token can use every expert once");
  }
  moe.expert = spec.layers.front().mlp;
  moe.expert.bias = false;
  moe.expert.hidden = options.default_hidden > 0
                          ? config.positive(options.hidden, options.default_hidden)
                          : config.positive(options.hidden);
  if (options.norm_key) moe.normalize = config.flag("norm_topk_prob", options.normalize);
  if (options.aux_loss >= 0.0) {
    moe.aux_loss = config.number("router_aux_loss_coef", options.aux_loss);
    moe.aux_in_loss = config.flag("output_router_logits", false);
  } else {
    config.ignore({"output_router_logits"});  // an output and no loss
  }
  return moe;
}

void read_groups(ConfigReader& config, int64_t num_groups, int64_t top_groups, MoeSpec& moe) {
  moe.num_groups = config.positive("n_group", num_groups);
  moe.top_groups = config.positive("topk_group", top_groups);
  if (moe.num_experts % moe.num_groups != 0) {
    config.fail("n_group",
                fmt::format("= {} does not divide {} experts", moe.num_groups, moe.num_experts),
                "groups are equally large");
  }
  const int64_t size = moe.num_experts / moe.num_groups;
  if (moe.top_groups > moe.num_groups || moe.top_k > moe.top_groups * size) {
    config.fail("topk_group",
                fmt::format("= {} of {} groups of {} experts leaves no {} experts to choose",
                            moe.top_groups, moe.num_groups, size, moe.top_k),
                "choose from more groups");
  }
}

void read_shared_experts(ConfigReader& config, int64_t default_count, MoeSpec& moe) {
  moe.shared_hidden = moe.expert.hidden * config.positive("n_shared_experts", default_count);
}

void place_experts_by_step(ConfigReader& config, const MoeSpec& moe, ModelSpec& spec) {
  const int64_t step = config.positive("decoder_sparse_step", 1);
  const std::vector<double> dense = config.numbers("mlp_only_layers");
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const bool listed = std::ranges::find(dense, static_cast<double>(i)) != dense.end();
    if (!listed && moe.num_experts > 0 && static_cast<int64_t>(i + 1) % step == 0)
      spec.layers[i].moe = moe;
  }
}

void place_experts_after(ConfigReader& config, int64_t default_first, const MoeSpec& moe,
                         ModelSpec& spec) {
  const int64_t first = config.not_negative("first_k_dense_replace", default_first);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    if (static_cast<int64_t>(i) >= first) spec.layers[i].moe = moe;
  }
}

void read_mtp_layers(ConfigReader& config, const MoeSpec& moe, ModelSpec& spec) {
  constexpr int64_t kMostMtpLayers = 16;
  const int64_t count = read_renamed(config, {"num_nextn_predict_layers", "num_mtp_layers"}, 0);
  if (count > kMostMtpLayers) {
    config.fail("num_nextn_predict_layers",
                fmt::format("is {}, more than {} layers", count, kMostMtpLayers),
                "published models have one");
  }
  spec.num_mtp_layers = static_cast<int>(count);
  LayerSpec layer = spec.layers.back();
  layer.moe = moe;
  for (int64_t i = 0; i < count; ++i) spec.layers.push_back(layer);
}

}  // namespace trireme::model
