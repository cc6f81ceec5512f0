// What the families with mixtures of experts share: reading their keys and placing experts among the layers.
#pragma once

#include <string>
#include <vector>

#include "trireme/model/family.h"

namespace trireme::model {

/// A family's names and defaults of the keys that all of them have.
struct MoeOptions {
  /// Names of the number of experts; transformers writes one and reads all of them.
  std::vector<std::string> num_experts = {"num_experts", "num_local_experts"};
  int64_t default_experts = 8;
  bool may_be_dense = false;                     ///< no experts at all means dense layers
  const char* hidden = "moe_intermediate_size";  ///< key of an expert's width
  int64_t default_hidden = 0;                    ///< 0: the key must be written
  int64_t default_top_k = 0;                     ///< of num_experts_per_tok; 0: must be written
  bool norm_key = true;                          ///< norm_topk_prob is a key of this family
  bool normalize = false;                        ///< where it is not written
  /// router_aux_loss_coef where it is not written; below zero: transformers knows no such loss for this family.
  double aux_loss = -1.0;
};

/// The experts of every layer that has some, with a gated MLP of the dense layers' activation each.
MoeSpec read_moe(ConfigReader& config, const MoeOptions& options, const ModelSpec& spec);

/// A key that goes by several names; Error{kConfig} if two of them disagree. 0 is allowed.
int64_t read_renamed(ConfigReader& config, const std::vector<std::string>& names,
                     int64_t default_value);

/// n_group and topk_group: experts in groups, of which only the best are chosen from.
void read_groups(ConfigReader& config, int64_t num_groups, int64_t top_groups, MoeSpec& moe);

/// DeepSeek's shared experts: one MLP as wide as n_shared_experts routed ones.
void read_shared_experts(ConfigReader& config, int64_t default_count, MoeSpec& moe);

/// Qwen's rule: every decoder_sparse_step-th layer but those of mlp_only_layers.
void place_experts_by_step(ConfigReader& config, const MoeSpec& moe, ModelSpec& spec);

/// DeepSeek's rule: all layers but the first first_k_dense_replace.
void place_experts_after(ConfigReader& config, int64_t default_first, const MoeSpec& moe,
                         ModelSpec& spec);

/// num_nextn_predict_layers: appends as many layers for multi-token prediction (DeepSeek-V3, arXiv 2412.19437), built as
/// the last one and with experts. An absent key means none.
void read_mtp_layers(ConfigReader& config, const MoeSpec& moe, ModelSpec& spec);

}  // namespace trireme::model
