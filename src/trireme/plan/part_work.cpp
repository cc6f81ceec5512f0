#include "trireme/plan/part_work.h"

#include <algorithm>
#include <cmath>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

constexpr double kElement = 2.0;  ///< bytes of an activation's element in half precision

/// Collects the operations of one instruction.
class PartWork {
 public:
  PartWork(const model::ModelSpec& spec, const Strategy& strategy, const ShardingOptions& sharding,
           const StackProfile& stack, int part)
      : spec_(spec),
        strategy_(strategy),
        parallel_(strategy.parallel),
        sharding_(sharding),
        stack_(stack),
        part_(spec.parts[static_cast<size_t>(part)]),
        index_(part),
        element_(strategy.precision == Precision::kFp32 ? 4.0 : kElement),
        h_(static_cast<double>(spec.hidden)),
        tp_(static_cast<double>(strategy.parallel.tp)),
        tokens_(rank_tokens(strategy)),
        sliced_(sharding.sequence_parallel ? tokens_ / tp_ : tokens_) {}

  std::vector<Operation> of(OpKind kind) {
    kind_ = kind;
    if (kind == OpKind::kOptimizerStep) {
      optimizer();
      return std::move(operations_);
    }
    switch (part_.kind) {
      case model::PartKind::kEmbedding:
        embedding();
        break;
      case model::PartKind::kAttention:
        attention();
        break;
      case model::PartKind::kMlp:
        mlp();
        break;
      case model::PartKind::kRouter:
        router();
        break;
      case model::PartKind::kDispatch:
        move_tokens(true);
        break;
      case model::PartKind::kExperts:
        experts();
        break;
      case model::PartKind::kCombine:
        combine();
        break;
      case model::PartKind::kMtpInput:
        product(tokens_, 2.0 * h_, h_, true);
        pointwise(6.0 * h_ * tokens_, 3.0);
        break;
      case model::PartKind::kHead:
      case model::PartKind::kMtpHead:
        head();
        break;
    }
    return std::move(operations_);
  }

 private:
  bool forward() const { return kind_ == OpKind::kForward || kind_ == OpKind::kRecompute; }
  bool backward() const { return kind_ == OpKind::kBackwardInput; }
  /// A forward whose result is needed, not only what it keeps.
  bool forward_to_end() const {
    return kind_ == OpKind::kForward || (kind_ == OpKind::kRecompute && sharding_.recompute_whole);
  }
  bool whole() const { return kind_ != OpKind::kRecompute || sharding_.recompute_whole; }
  /// A backward that runs attention's core again first (Korthikanti et al.): fused attention does so in its own kernel.
  bool repeats_core() const {
    return backward() && stack_.attention == AttentionKernel::kUnfused &&
           !strategy_.recompute.empty() &&
           strategy_.recompute[static_cast<size_t>(index_)] == Recompute::kSelective;
  }
  bool weights() const { return kind_ == OpKind::kBackwardWeight; }

  const model::LayerSpec& layer() const { return spec_.layers[static_cast<size_t>(part_.layer)]; }

  /// A linear layer of [rows, in] x [in, out] in the current direction.
  void product(double rows, double in, double out, bool low_precision = true, double groups = 1.0) {
    Operation operation;
    operation.kind = WorkKind::kProduct;
    operation.low_precision = low_precision && sharding_.fp8;
    if (forward() || kind_ == OpKind::kLoss) {
      operation.product = {ProductUse::kForward, groups, rows, out, in};
      operations_.push_back(operation);
    }
    if (backward() || kind_ == OpKind::kLoss) {
      operation.product = {ProductUse::kBackwardInput, groups, rows, in, out};
      operations_.push_back(operation);
    }
    if (weights() || kind_ == OpKind::kLoss) {
      operation.product = {ProductUse::kBackwardWeight, groups, out, in, rows};
      operations_.push_back(operation);
    }
  }

  void memory(double elements, double kernels, double element_bytes) {
    Operation operation;
    operation.bytes = elements * element_bytes;
    operation.kernels = kernels;
    operations_.push_back(operation);
  }

  /// Element-wise work over so many elements read or written; unfused software makes more passes.
  void pointwise(double elements, double kernels) {
    if (weights()) return;
    memory(elements * stack_.pointwise_passes, kernels * stack_.pointwise_kernels, element_);
  }

  void communicate(Collective collective, cluster::Dimension along, double bytes, bool hidden) {
    if (bytes <= 0.0) return;
    Operation operation;
    operation.kind = WorkKind::kCollective;
    operation.collective = collective;
    operation.along = along;
    operation.bytes = bytes;
    operation.hidden = hidden;
    operations_.push_back(operation);
  }

  /// What tensor parallel ranks exchange around a column-parallel and a row-parallel layer with `width` features between blocks.
  void tensor_begin() {
    if (parallel_.tp == 1) return;
    const double bytes = tokens_ * h_ * element_;
    if (sharding_.sequence_parallel) {
      if (!weights())
        communicate(Collective::kAllGather, cluster::Dimension::kTensor, bytes, false);
      // The input, for the weights' gradients: beside the products of backward-input.
      if (backward()) communicate(Collective::kAllGather, cluster::Dimension::kTensor, bytes, true);
    }
  }
  void tensor_end() {
    if (parallel_.tp == 1 || weights()) return;
    const double bytes = tokens_ * h_ * element_;
    communicate(sharding_.sequence_parallel ? Collective::kReduceScatter : Collective::kAllReduce,
                cluster::Dimension::kTensor, bytes, backward());
  }

  void norm() { pointwise((forward() ? 2.0 : 4.0) * h_ * sliced_, 1.0); }
  void residual() {
    if (forward()) {
      pointwise((sharding_.dropout ? 3.5 : 3.0) * h_ * sliced_, 1.0);
    } else if (sharding_.dropout) {
      pointwise(2.5 * h_ * sliced_, 1.0);
    }
  }

  void embedding() {
    if (forward()) memory(2.0 * h_ * sliced_, 2.0, element_);
    if (forward() && parallel_.tp > 1)
      communicate(sharding_.sequence_parallel ? Collective::kReduceScatter : Collective::kAllReduce,
                  cluster::Dimension::kTensor, tokens_ * h_ * element_, false);
    if (weights()) {
      // Rows of the gradient are gathered and added to where the tokens' rows are.
      if (parallel_.tp > 1 && sharding_.sequence_parallel)
        communicate(Collective::kAllGather, cluster::Dimension::kTensor, tokens_ * h_ * element_,
                    false);
      memory(3.0 * h_ * tokens_, 2.0, element_);
    }
  }

  void attention() {
    const model::AttentionSpec& a = layer().attention;
    const double heads = static_cast<double>(a.num_heads) / tp_;
    const double kv_heads = std::max(static_cast<double>(a.num_kv_heads) / tp_, 1.0);
    const double q = heads * static_cast<double>(a.head_dim);
    const double k = kv_heads * static_cast<double>(a.head_dim);
    const double v = kv_heads * static_cast<double>(a.value_dim);
    const double out = heads * static_cast<double>(a.value_dim);
    if (forward()) norm();
    if (backward()) residual();
    tensor_begin();
    const auto project = [&] {
      if (!a.latent) {
        product(tokens_, h_, q + k + v);
        if (a.rotary) pointwise(2.0 * (q + k) * tokens_, 2.0);
        if (a.qk_norm != model::QkNorm::kNone) pointwise(2.0 * (q + k) * tokens_, 2.0);
        return;
      }
      const model::LatentSpec& latent = *a.latent;
      const double rank = static_cast<double>(latent.kv_rank);
      const double rope = static_cast<double>(latent.rope_dim);
      const double nope = static_cast<double>(latent.nope_dim);
      if (latent.query_rank > 0) {
        const double query = static_cast<double>(latent.query_rank);
        product(tokens_, h_, query);
        pointwise(2.0 * query * tokens_, 1.0);
        product(tokens_, query, q);
      } else {
        product(tokens_, h_, q);
      }
      product(tokens_, h_, rank + rope);
      pointwise(2.0 * rank * tokens_, 1.0);
      product(tokens_, rank, heads * (nope + static_cast<double>(a.value_dim)));
      // Rotation, and keys put together of their two halves.
      pointwise(2.0 * (q + k) * tokens_ + 2.0 * (k + v) * tokens_, 4.0);
    };
    const auto core = [&] {
      if (weights()) return;
      context_exchange(q, k, v, out, true);
      if (repeats_core()) core_attention(a, heads, kv_heads, false);
      core_attention(a, heads, kv_heads, backward());
      context_exchange(q, k, v, out, false);
    };
    if (forward()) {
      project();
      core();
      if (forward_to_end()) product(tokens_, out, h_);
    } else {
      product(tokens_, out, h_);
      core();
      project();
    }
    if (whole()) tensor_end();
    if (forward_to_end()) residual();
    if (backward()) norm();
  }

  void core_attention(const model::AttentionSpec& a, double heads, double kv_heads,
                      bool backwards) {
    const double cp = static_cast<double>(parallel_.cp);
    AttentionShape shape;
    shape.backward = backwards;
    shape.batch = static_cast<double>(strategy_.micro);
    shape.seq_len = static_cast<double>(strategy_.seq_len);
    // Ranks of a ring or a gather have all heads for a share of the rows; those of an all-to-all the other way round. Work is the same.
    shape.heads = heads / cp;
    shape.kv_heads = std::max(kv_heads / cp, 1.0);
    shape.head_dim = static_cast<double>(a.head_dim);
    shape.value_dim = static_cast<double>(a.value_dim);
    if (stack_.attention != AttentionKernel::kUnfused) {
      Operation operation;
      operation.kind = WorkKind::kAttention;
      operation.attention = shape;
      operation.causal = stack_.attention == AttentionKernel::kFlash;
      operations_.push_back(operation);
      return;
    }
    // Two batched products of every head and a softmax over all scores, with a mask and a dropout of them (Megatron-LM, 2021).
    const double batch_heads = shape.batch * shape.heads;
    Operation scores;
    scores.kind = WorkKind::kProduct;
    const double s = shape.seq_len;
    const int times = backwards ? 2 : 1;
    for (int i = 0; i < times; ++i) {
      scores.product = {ProductUse::kForward, batch_heads, s, s, shape.head_dim};
      operations_.push_back(scores);
      scores.product = {ProductUse::kForward, batch_heads, s, shape.value_dim, s};
      operations_.push_back(scores);
    }
    const double passes = sharding_.dropout ? 5.5 : 3.0;
    memory(passes * batch_heads * s * s * (stack_.pointwise_passes + 1.0) / 2.0,
           sharding_.dropout ? 3.0 : 2.0, element_);
  }

  void context_exchange(double q, double k, double v, double out, bool before) {
    if (parallel_.cp == 1) return;
    const double cp = static_cast<double>(parallel_.cp);
    const bool first = before != backward();  // queries, keys, values; else the result
    switch (parallel_.cp_kind) {
      case ContextKind::kUlysses:
        communicate(Collective::kAllToAll, cluster::Dimension::kContext,
                    tokens_ * (first ? q + k + v : out) * element_, false);
        break;
      case ContextKind::kGather:
        if (before || backward())
          communicate(before ? Collective::kAllGather : Collective::kReduceScatter,
                      cluster::Dimension::kContext, cp * tokens_ * (k + v) * element_, false);
        break;
      case ContextKind::kRing:
        // Blocks go round while the one before is worked on.
        if (before)
          communicate(Collective::kAllGather, cluster::Dimension::kContext,
                      cp * tokens_ * (k + v) * element_ * (backward() ? 2.0 : 1.0), true);
        break;
    }
  }

  /// The products of an MLP for `rows` rows each of `groups` experts, `width` features on this rank.
  void mlp_products(double rows, double width, bool gated, double groups) {
    const double up = gated ? 2.0 * width : width;
    if (forward()) {
      product(rows, h_, up, true, groups);
      pointwise((gated ? 3.0 : 2.0) * width * rows * groups, 1.0);
      if (forward_to_end()) product(rows, width, h_, true, groups);
    } else {
      product(rows, width, h_, true, groups);
      pointwise((gated ? 5.0 : 3.0) * width * rows * groups, 1.0);
      product(rows, h_, up, true, groups);
    }
  }

  void mlp() {
    const model::MlpSpec& m = layer().mlp;
    if (forward()) norm();
    if (backward()) residual();
    tensor_begin();
    mlp_products(tokens_, static_cast<double>(m.hidden) / tp_, m.kind == model::MlpKind::kGated,
                 1.0);
    if (whole()) tensor_end();
    if (forward_to_end()) residual();
    if (backward()) norm();
  }

  void router() {
    const model::MoeSpec& moe = *layer().moe;
    const double experts = static_cast<double>(moe.num_experts);
    if (forward()) norm();
    product(sliced_, h_, experts, false);
    // Scores in float32: softmax, choice, counts.
    if (!weights()) memory(10.0 * experts * sliced_, 8.0 * stack_.pointwise_kernels, 4.0);
    if (backward()) norm();
  }

  /// Rows that a rank sends: of the tokens that are its own after sequence parallelism, to every expert whole rows.
  double routed_rows() const {
    const auto top_k = static_cast<double>(layer().moe->top_k);
    const auto experts = static_cast<double>(layer().moe->num_experts);
    return experts *
           std::ceil(tokens_ / tp_ * top_k / experts * std::max(sharding_.capacity_factor, 1.0));
  }

  void move_tokens(bool out) {
    if (weights()) return;
    const double etp = static_cast<double>(parallel_.etp);
    const double rows = routed_rows();
    const bool with_gradient = backward();
    // Sorted by expert, and by source at the other end.
    pointwise(3.0 * h_ * rows, 2.0);
    if (parallel_.ep > 1) {
      communicate(Collective::kAllToAll, cluster::Dimension::kExpert, rows * h_ * element_, false);
      pointwise(2.0 * h_ * rows, 2.0);
    }
    if (parallel_.etp > 1) {
      const bool gathers = out != with_gradient;
      communicate(gathers ? Collective::kAllGather : Collective::kReduceScatter,
                  cluster::Dimension::kExpertTensor, etp * rows * h_ * element_, false);
    }
  }

  void experts() {
    const model::MoeSpec& moe = *layer().moe;
    const double etp = static_cast<double>(parallel_.etp);
    const double local = static_cast<double>(moe.num_experts) / static_cast<double>(parallel_.ep);
    const double rows = routed_rows() * etp / local;
    mlp_products(std::max(rows, 1.0), static_cast<double>(moe.expert.hidden) / etp,
                 moe.expert.kind == model::MlpKind::kGated, local);
  }

  void combine() {
    const model::MoeSpec& moe = *layer().moe;
    move_tokens(false);
    if (moe.shared_hidden > 0) {
      tensor_begin();
      mlp_products(tokens_, static_cast<double>(moe.shared_hidden) / tp_, true, 1.0);
      tensor_end();
    }
    if (!weights()) residual();
  }

  void head() {
    const double vocab = static_cast<double>(spec_.vocab_size) / tp_;
    if (kind_ == OpKind::kForward) {
      norm();
      return;
    }
    pointwise(6.0 * h_ * sliced_, 2.0);
    if (parallel_.tp > 1) {
      const double bytes = tokens_ * h_ * element_;
      if (sharding_.sequence_parallel) {
        communicate(Collective::kAllGather, cluster::Dimension::kTensor, 2.0 * bytes, false);
        communicate(Collective::kReduceScatter, cluster::Dimension::kTensor, bytes, false);
      } else {
        communicate(Collective::kAllReduce, cluster::Dimension::kTensor, bytes, false);
      }
      communicate(Collective::kAllReduce, cluster::Dimension::kTensor, 12.0 * tokens_, false);
    }
    product(tokens_, h_, vocab, false);
    // Fused: logits read twice, their gradient written. Unfused: float32 copies, maxima, exponentials, sums, the gradient.
    memory(tokens_ * vocab, stack_.fused_loss ? 3.0 : 10.0, stack_.fused_loss ? 8.0 : 30.0);
  }

  void optimizer() {
    const RankParameters own = rank_parameters(spec_, parallel_, index_);
    const double stage = static_cast<double>(parallel_.dp * parallel_.cp);
    const bool shares = parallel_.zero > 0;
    const double expert_data = stage * tp_ / static_cast<double>(parallel_.ep * parallel_.etp);
    const double shared = shares ? own.shared / stage : own.shared;
    const double expert = shares ? own.expert / std::max(expert_data, 1.0) : own.expert;
    // Gradient read twice (norm, update); moments and masters read and written; the copy in low precision written. Zeroing the
    // whole gradient.
    memory((shared + expert) * stack_.optimizer_passes, 2.0, 34.0);
    memory(own.shared + own.expert, 1.0, stack_.main_gradient_bytes);
  }

  const model::ModelSpec& spec_;
  const Strategy& strategy_;
  const Parallel& parallel_;
  const ShardingOptions& sharding_;
  const StackProfile& stack_;
  const model::PartSpec& part_;
  const int index_;
  const double element_;
  const double h_;
  const double tp_;
  const double tokens_;
  const double sliced_;  ///< tokens of norms and residuals
  OpKind kind_ = OpKind::kForward;
  std::vector<Operation> operations_;
};

}  // namespace

const char* to_string(Collective collective) {
  switch (collective) {
    case Collective::kAllReduce:
      return "all-reduce";
    case Collective::kAllGather:
      return "all-gather";
    case Collective::kReduceScatter:
      return "reduce-scatter";
    case Collective::kAllToAll:
      return "all-to-all";
    case Collective::kSendReceive:
      return "send-receive";
  }
  return "?";
}

double rank_tokens(const Strategy& strategy) {
  return static_cast<double>(strategy.micro) * static_cast<double>(strategy.seq_len) /
         static_cast<double>(strategy.parallel.cp);
}

namespace {

void add_elements(const model::ParameterSpec& parameter, PartElements& elements) {
  if (!parameter.trainable) return;
  const auto numel = static_cast<double>(parameter.numel());
  if (parameter.is_expert()) {
    elements.expert += numel;
    return;
  }
  const bool whole =
      parameter.role == model::Role::kNormWeight || parameter.role == model::Role::kNormBias ||
      parameter.role == model::Role::kRouter || parameter.role == model::Role::kLatentNorm ||
      parameter.role == model::Role::kQueryDown || parameter.role == model::Role::kKeyValueDown ||
      parameter.role == model::Role::kPositionEmbedding;
  (whole ? elements.whole : elements.cut) += numel;
}

}  // namespace

RankParameters rank_parameters(const model::ModelSpec& spec, const Parallel& parallel, int part) {
  PartElements elements;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    if (parameter.part == part) add_elements(parameter, elements);
  }
  return rank_parameters(elements, parallel);
}

std::vector<PartElements> part_elements(const model::ModelSpec& spec) {
  std::vector<PartElements> elements(spec.parts.size());
  for (const model::ParameterSpec& parameter : spec.parameters)
    add_elements(parameter, elements[static_cast<size_t>(parameter.part)]);
  return elements;
}

RankParameters rank_parameters(const PartElements& elements, const Parallel& parallel) {
  return {elements.whole + elements.cut / static_cast<double>(parallel.tp),
          elements.expert / static_cast<double>(parallel.ep * parallel.etp)};
}

std::vector<Operation> part_operations(const model::ModelSpec& spec, const Strategy& strategy,
                                       const ShardingOptions& sharding, const StackProfile& stack,
                                       int part, OpKind kind) {
  TRIREME_CHECK(part >= 0, "{} without a part", to_string(kind));
  return PartWork(spec, strategy, sharding, stack, part).of(kind);
}

}  // namespace trireme::plan
