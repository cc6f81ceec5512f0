#include "trireme/calibrate/calibration.h"

#include <fmt/format.h>

namespace trireme::calibrate {

namespace {

using plan::Recompute;

struct Size {
  int64_t hidden;
  int64_t heads;
  int64_t feed_forward;
  int64_t vocab;
  int64_t seq_len;
  int64_t micro;
};

std::string dense_config(const Size& size) {
  return fmt::format(
      R"({{"model_type":"llama","vocab_size":{},"hidden_size":{},"intermediate_size":{},
          "num_hidden_layers":2,"num_attention_heads":{},"num_key_value_heads":{},
          "max_position_embeddings":4096,"tie_word_embeddings":false}})",
      size.vocab, size.hidden, size.feed_forward, size.heads, size.heads / 2);
}

std::string experts_config(const Size& size, int64_t experts, int64_t top_k) {
  return fmt::format(
      R"({{"model_type":"mixtral","vocab_size":{},"hidden_size":{},"intermediate_size":{},
          "num_hidden_layers":2,"num_attention_heads":{},"num_key_value_heads":{},
          "num_local_experts":{},"num_experts_per_tok":{},
          "max_position_embeddings":4096,"tie_word_embeddings":false}})",
      size.vocab, size.hidden, size.feed_forward, size.heads, size.heads / 2, experts, top_k);
}

StepCase case_of(const std::string& name, const std::string& config, const Size& size,
                 plan::Precision precision, Recompute recompute) {
  StepCase one;
  one.spec = model::spec_from_config(config, name);
  plan::Strategy& strategy = one.strategy;
  strategy.micro = size.micro;
  // The second one's gradients are added to the first one's.
  strategy.sequences = 2 * size.micro;
  strategy.seq_len = size.seq_len;
  strategy.precision = precision;
  strategy.recompute.assign(one.spec.parts.size(), Recompute::kNone);
  for (size_t part = 0; part < one.spec.parts.size(); ++part) {
    if (one.spec.parts[part].layer >= 0) strategy.recompute[part] = recompute;
  }
  one.name =
      fmt::format("{}, {} wide, {} x {} tokens, {}, recompute {}", name, size.hidden, size.micro,
                  size.seq_len, plan::to_string(precision), plan::to_string(recompute));
  return one;
}

}  // namespace

std::vector<StepCase> calibration_cases(plan::Precision precision, int64_t scale) {
  const auto scaled = [&](Size size) {
    size.hidden *= scale;
    size.heads *= scale;
    size.feed_forward *= scale;
    size.seq_len *= scale;
    return size;
  };
  std::vector<StepCase> cases;
  const auto dense = [&](const Size& size, Recompute recompute) -> StepCase& {
    const Size at = scaled(size);
    cases.push_back(case_of("dense", dense_config(at), at, precision, recompute));
    return cases.back();
  };
  const auto experts = [&](const Size& size, int64_t count, int64_t top_k, Recompute recompute) {
    const Size at = scaled(size);
    cases.push_back(case_of("experts", experts_config(at, count, top_k), at, precision, recompute));
  };
  // Sizes about a factor of two apart in width and in tokens; the first are those that slowdown() runs on several ranks.
  const Size a{256, 4, 704, 1024, 128, 2};
  const Size b{128, 4, 352, 1024, 128, 4};
  const Size c{384, 6, 1024, 2048, 128, 1};
  const Size d{192, 4, 512, 1024, 64, 4};
  const Size e{256, 4, 704, 2048, 256, 4};
  const Size f{512, 8, 1408, 2048, 128, 2};
  const Size g{128, 4, 352, 512, 512, 2};
  const Size h{256, 8, 1024, 4096, 512, 1};
  const Size i{96, 4, 256, 512, 64, 2};
  for (const Size& size : {a, b, c, d, e, f, g, h, i}) dense(size, Recompute::kNone);
  for (const Size& size : {a, b, e, g, c}) dense(size, Recompute::kFull);
  for (const Size& size : {a, b, e, g, c}) dense(size, Recompute::kSelective);
  for (const Size& size : {a, b, e}) {
    StepCase& one = dense(size, Recompute::kNone);
    one.name += ", offload";
    one.strategy.offload_optimizer = true;
    one.strategy.offload_activations.assign(one.spec.parts.size(), 0);
    for (size_t part = 0; part < one.spec.parts.size(); ++part)
      one.strategy.offload_activations[part] = one.spec.parts[part].layer >= 0;
  }
  const Size m{128, 4, 128, 1024, 128, 2};
  const Size n{256, 4, 256, 1024, 128, 4};
  const Size o{192, 4, 384, 512, 256, 1};
  const Size p{192, 4, 256, 1024, 128, 2};
  const Size q{128, 4, 256, 1024, 64, 2};
  experts(m, 8, 2, Recompute::kNone);
  experts(n, 4, 2, Recompute::kNone);
  experts(o, 8, 1, Recompute::kNone);
  experts(o, 4, 2, Recompute::kNone);
  experts(p, 6, 2, Recompute::kNone);
  experts(q, 4, 2, Recompute::kNone);
  experts(p, 6, 2, Recompute::kFull);
  experts(m, 8, 2, Recompute::kFull);
  experts(n, 4, 2, Recompute::kSelective);
  // Sums of lanes.
  for (const Size& size : {d, a, i}) {
    StepCase& one = dense(size, Recompute::kNone);
    one.name += ", 2 lanes";
    one.strategy.lanes = 2;
  }
  return cases;
}

}  // namespace trireme::calibrate
