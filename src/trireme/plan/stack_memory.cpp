// What software like Megatron-LM, FSDP and nanotron holds. Counts follow Korthikanti et al. (arXiv 2205.05198), with attention that
// keeps no scores (FlashAttention, 2205.14135), and the tensors that Transformer Engine's layers save.
#include <algorithm>
#include <cmath>

#include "trireme/plan/memory.h"
#include "trireme/plan/stack_memory.h"

namespace trireme::plan {

namespace {

class StackMemory {
 public:
  explicit StackMemory(const PlannedRun& run)
      : run_(run),
        parallel_(run.strategy.parallel),
        element_(run.strategy.precision == Precision::kFp32 ? 4.0 : 2.0),
        h_(static_cast<double>(run.spec.hidden)),
        tp_(static_cast<double>(run.strategy.parallel.tp)),
        tokens_(rank_tokens(run.strategy)),
        sliced_(run.sharding.sequence_parallel ? tokens_ / tp_ : tokens_) {}

  KeptBytes of(int index) const {
    const model::PartSpec& part = run_.spec.parts[static_cast<size_t>(index)];
    KeptBytes kept;
    kept.output = sliced_ * h_ * element_;
    kept.gradient = kept.output;
    switch (part.kind) {
      case model::PartKind::kEmbedding:
        break;
      case model::PartKind::kAttention:
        attention(index, kept);
        break;
      case model::PartKind::kMlp:
        mlp(static_cast<double>(layer(part.layer).mlp.hidden) / tp_, tokens_, gated(part.layer),
            kept);
        kept.saved += sliced_ * h_ * element_;  // the norm's output
        if (run_.sharding.dropout) kept.saved += sliced_ * h_;
        break;
      case model::PartKind::kRouter:
        kept.saved = sliced_ * h_ * element_ +
                     sliced_ * 4.0 * 3.0 * static_cast<double>(layer(part.layer).moe->num_experts);
        break;
      case model::PartKind::kDispatch:
        kept.output = routed(part.layer) * h_ * element_;
        kept.gradient = kept.output;
        kept.working = kept.output;
        break;
      case model::PartKind::kExperts: {
        const model::MoeSpec& moe = *layer(part.layer).moe;
        const double etp = static_cast<double>(parallel_.etp);
        const double rows = routed(part.layer) * etp;
        mlp(static_cast<double>(moe.expert.hidden) / etp, rows,
            moe.expert.kind == model::MlpKind::kGated, kept);
        // The way back to the tokens needs no result of the experts in its backward: weights of the choice are applied inside.
        kept.output = 0.0;
        kept.gradient = routed(part.layer) * h_ * element_;
        break;
      }
      case model::PartKind::kCombine: {
        const model::MoeSpec& moe = *layer(part.layer).moe;
        if (moe.shared_hidden > 0) {
          mlp(static_cast<double>(moe.shared_hidden) / tp_, tokens_, true, kept);
          kept.saved += sliced_ * h_ * element_;
        }
        break;
      }
      case model::PartKind::kMtpInput:
        kept.saved = 2.0 * tokens_ * h_ * element_;
        break;
      case model::PartKind::kHead:
      case model::PartKind::kMtpHead: {
        const double logits = tokens_ * static_cast<double>(run_.spec.vocab_size) / tp_;
        kept.saved = 2.0 * sliced_ * h_ * element_;
        kept.working = logits * run_.stack.loss_bytes;
        break;
      }
    }
    kept.saved *= run_.stack.activation_factor;
    return kept;
  }

 private:
  const model::LayerSpec& layer(int index) const {
    return run_.spec.layers[static_cast<size_t>(index)];
  }
  bool gated(int index) const { return layer(index).mlp.kind == model::MlpKind::kGated; }
  double routed(int index) const {
    const auto experts = static_cast<double>(layer(index).moe->num_experts);
    return experts * std::ceil(tokens_ / tp_ * static_cast<double>(layer(index).moe->top_k) /
                               experts * std::max(run_.sharding.capacity_factor, 1.0));
  }

  // Attention's core runs again in the backward: its scores are not kept.
  bool selective(int part) const {
    const auto& recompute = run_.strategy.recompute;
    return !recompute.empty() && recompute[static_cast<size_t>(part)] == Recompute::kSelective;
  }

  void attention(int part, KeptBytes& kept) const {
    const model::AttentionSpec& a =
        layer(run_.spec.parts[static_cast<size_t>(part)].layer).attention;
    const double heads = static_cast<double>(a.num_heads) / tp_;
    const double kv_heads = std::max(static_cast<double>(a.num_kv_heads) / tp_, 1.0);
    const double q = heads * static_cast<double>(a.head_dim);
    const double k = kv_heads * static_cast<double>(a.head_dim);
    const double v = kv_heads * static_cast<double>(a.value_dim);
    const double out = heads * static_cast<double>(a.value_dim);
    kept.saved = sliced_ * h_ * element_;            // the norm's output
    kept.saved += tokens_ * (q + k + v) * element_;  // what attention reads
    kept.saved += tokens_ * out * element_;          // its result, which the output's product reads
    if (run_.stack.keeps_projections && !a.latent) kept.saved += tokens_ * (q + k) * element_;
    if (a.latent) {
      const double rank = static_cast<double>(a.latent->kv_rank + a.latent->rope_dim);
      const double query = static_cast<double>(a.latent->query_rank);
      kept.saved += tokens_ * 2.0 * (rank + query) * element_;
      // Keys as they come out of their product, before they get the rotated half: values are read from there.
      kept.saved += tokens_ * heads * static_cast<double>(a.latent->nope_dim) * element_;
    }
    kept.working = tokens_ * (q + k + v + out) * element_;
    if (run_.stack.attention == AttentionKernel::kUnfused) {
      const double s = static_cast<double>(run_.strategy.seq_len);
      (selective(part) ? kept.working : kept.saved) +=
          tokens_ * s * heads * (run_.sharding.dropout ? 5.0 : 2.0);
    } else {
      kept.saved += tokens_ * heads * 4.0;  // sums of exponentials
    }
    if (run_.sharding.dropout) kept.saved += sliced_ * h_;
  }

  void mlp(double width, double rows, bool gated, KeptBytes& kept) const {
    const double up = gated ? 2.0 * width : width;
    kept.saved += rows * (up + width) * element_;
    kept.working += rows * (up + width) * element_;
  }

  const PlannedRun& run_;
  const Parallel& parallel_;
  const double element_;
  const double h_;
  const double tp_;
  const double tokens_;
  const double sliced_;
};

int64_t bytes(double value) {
  return static_cast<int64_t>(std::llround(value));
}

}  // namespace

std::vector<KeptBytes> stack_kept_bytes(const PlannedRun& run) {
  const StackMemory memory(run);
  std::vector<KeptBytes> kept;
  kept.reserve(run.spec.parts.size());
  for (int part = 0; part < static_cast<int>(run.spec.parts.size()); ++part)
    kept.push_back(memory.of(part));
  return kept;
}

double stack_hidden_bytes(const PlannedRun& run, const std::vector<KeptBytes>& kept, int part) {
  const auto at = static_cast<size_t>(part);
  const auto& recompute = run.strategy.recompute;
  const auto& parts = run.spec.parts;
  // Whole layers are recomputed from their input: what lies between their parts is not kept.
  const bool full = !recompute.empty() && recompute[at] == Recompute::kFull;
  const bool inside = full && at + 1 < parts.size() && parts[at].layer >= 0 &&
                      parts[at].layer == parts[at + 1].layer;
  return inside ? 0.0 : kept[at].output;
}

MemoryByKind stack_held_bytes(const PlannedRun& run, const RankParameters& own, double largest) {
  const Parallel& parallel = run.strategy.parallel;
  MemoryByKind held;
  const double data = static_cast<double>(parallel.dp * parallel.cp);
  const double owners = parallel.shard > 0 ? static_cast<double>(parallel.shard) : data;
  const double expert_owners = std::max(1.0, data * static_cast<double>(parallel.tp) /
                                                 static_cast<double>(parallel.ep * parallel.etp));
  const auto share = [&](int stage) {
    return parallel.zero >= stage ? own.shared / owners + own.expert / expert_owners
                                  : own.shared + own.expert;
  };
  held.weights = share(3) * run.stack.weight_bytes;
  held.gradients = share(3) * run.stack.main_gradient_bytes;
  held.optimizer = share(1) * run.stack.optimizer_bytes;
  // Under ZeRO 3 two parts are whole at a time, and a part's gradients.
  if (parallel.zero >= 3)
    held.weights += largest * (2.0 * run.stack.gathered_bytes + run.stack.gradient_bytes);
  held.context = run.stack.context_bytes;
  return held;
}

MemoryByKind use_stack_memory(const PlannedRun& run, Program& program) {
  const std::vector<KeptBytes> kept = stack_kept_bytes(run);
  const std::vector<PartElements> elements = part_elements(run.spec);
  RankParameters parameters;
  double largest = 0.0;
  for (int part = 0; part < static_cast<int>(elements.size()); ++part) {
    if (!program.has(part)) continue;
    const RankParameters own =
        rank_parameters(elements[static_cast<size_t>(part)], run.strategy.parallel);
    parameters.shared += own.shared;
    parameters.expert += own.expert;
    largest = std::max(largest, own.shared + own.expert);
  }
  const MemoryByKind held = stack_held_bytes(run, parameters, largest);

  // What a stage begins with stands for its output too, which comes and goes with it (sooner, where it is received ahead).
  const auto num_parts = static_cast<int>(run.spec.parts.size());
  const auto is_input = [&](int part) {
    return !run.spec.is_head(part) && part + 1 < num_parts && program.has(part + 1) &&
           (part == 0 || !program.has(part));
  };
  const double sent =
      run.stack.keeps_stage_outputs && !program.has(num_parts - 1) ? kept.front().output : 0.0;

  program.resident_bytes = 0;
  program.host_resident_bytes = 0;
  std::vector<char> seen_saved(program.instructions.size(), 0);
  for (Buffer& buffer : program.buffers) {
    const auto part = static_cast<size_t>(std::max(buffer.part, 0));
    switch (buffer.kind) {
      case BufferKind::kHidden:
        buffer.bytes = bytes(stack_hidden_bytes(run, kept, static_cast<int>(part)));
        if (is_input(static_cast<int>(part))) {
          const bool masked = part == 0 && run.sharding.dropout;
          buffer.bytes += bytes(sent * (masked ? 1.5 : 1.0));
        }
        break;
      case BufferKind::kHiddenGradient:
        buffer.bytes = bytes(kept[part].gradient);
        break;
      case BufferKind::kSaved: {
        // A part has up to two of them, made by one instruction: the first has everything.
        const auto maker = static_cast<size_t>(std::max(buffer.made_by, 0));
        buffer.bytes = seen_saved[maker] != 0 ? 0 : bytes(kept[part].saved);
        seen_saved[maker] = 1;
        break;
      }
      case BufferKind::kBatch:
        buffer.bytes = bytes(3.0 * 8.0 * rank_tokens(run.strategy));
        break;
      default:
        buffer.bytes = 0;  // gradients and states are held all the time, and counted above
    }
  }
  for (Instruction& instruction : program.instructions) {
    instruction.workspace_bytes = 0;
    if (instruction.part < 0) continue;
    const auto part = static_cast<size_t>(instruction.part);
    if (instruction.kind == OpKind::kBackwardInput || instruction.kind == OpKind::kLoss ||
        instruction.kind == OpKind::kBackwardWeight)
      instruction.workspace_bytes = bytes(kept[part].working);
  }
  return held;
}

}  // namespace trireme::plan
