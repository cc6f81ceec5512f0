#include "trireme/infer/generator.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>

#include "trireme/base/error.h"
#include "trireme/infer/key_value_cache.h"

namespace trireme::infer {

const char* to_string(Finish finish) {
  switch (finish) {
    case Finish::kLength:
      return "length";
    case Finish::kStop:
      return "stop";
    case Finish::kEndOfText:
      return "eos";
    case Finish::kContext:
      return "context";
  }
  return "?";
}

std::string StopMatcher::feed(const std::string& piece) {
  if (matched_) return "";
  held_ += piece;
  size_t found = std::string::npos;
  for (const std::string& stop : stop_) {
    if (!stop.empty()) found = std::min(found, held_.find(stop));
  }
  if (found != std::string::npos) {
    matched_ = true;
    std::string shown = held_.substr(0, found);
    held_.clear();
    return shown;
  }
  // Hold back the longest tail that could be the beginning of a stop string.
  size_t hold = 0;
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - (stop.empty() ? 0 : 1), held_.size()); n > hold; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) {
        hold = n;
        break;
      }
    }
  }
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, held_.size() - hold);
  return shown;
}

std::string StopMatcher::finish() {
  return matched_ ? "" : std::exchange(held_, {});
}

namespace {

nn::BatchTensors tokens_at(const std::vector<int32_t>& ids, const std::vector<int32_t>& positions,
                           int64_t rows, int64_t length, at::Device device) {
  nn::BatchTensors batch;
  batch.rows = rows;
  batch.seq_len = length;
  const auto options = at::TensorOptions().dtype(at::kLong);
  batch.tokens = at::empty({rows, length}, options);
  batch.positions = at::empty({rows, length}, options);
  std::copy(ids.begin(), ids.end(), batch.tokens.data_ptr<int64_t>());
  std::copy(positions.begin(), positions.end(), batch.positions.data_ptr<int64_t>());
  batch.tokens = batch.tokens.to(device);
  batch.positions = batch.positions.to(device);
  batch.segments.assign(static_cast<size_t>(rows), {0});
  return batch;
}

/// Advances the model by [rows, length] tokens: row r is `sequences[r]`. Returns the last
/// position's hidden states, [rows, hidden].
at::Tensor advance(nn::Model& model, KeyValueCache& cache, const std::vector<int64_t>& sequences,
                   const nn::BatchTensors& batch) {
  at::Tensor hidden = model.embedding().forward({}, batch, false, nn::SaveMode::kAll).output;
  for (int layer = 0; layer < model.num_layers(); ++layer) {
    nn::AttentionPart& attention = model.attention(layer);
    const auto projected = attention.project(hidden, batch.positions);
    std::vector<at::Tensor> attended;
    for (size_t r = 0; r < sequences.size(); ++r) {
      const int64_t row = static_cast<int64_t>(r), sequence = sequences[r];
      cache.write(layer, sequence, projected.k.narrow(0, row, 1), projected.v.narrow(0, row, 1));
      attended.push_back(attention.attend(projected.q.narrow(0, row, 1),
                                          cache.keys(layer, sequence, batch.seq_len),
                                          cache.values(layer, sequence, batch.seq_len)));
    }
    hidden = attention.finish(hidden, attended.size() == 1 ? attended[0] : at::cat(attended, 0));
    hidden = model.feed_forward(layer, hidden, batch);
  }
  for (const int64_t sequence : sequences) cache.advance(sequence, batch.seq_len);
  return hidden.select(1, batch.seq_len - 1).contiguous();
}

/// The length past which LongRoPE turns every position of a sequence otherwise, so that its keys must be computed again;
/// 0 where there is none.
int64_t length_of_new_keys(const model::ModelSpec& spec) {
  for (const model::LayerSpec& layer : spec.layers) {
    const auto& rotary = layer.attention.rotary;
    if (rotary && rotary->scaling == model::RotaryScaling::kLongRope)
      return rotary->original_max_positions;
  }
  return 0;
}

/// One prompt on its way.
struct Sequence {
  Sequence(std::vector<int32_t> prompt, std::vector<std::string> stop)
      : all(std::move(prompt)), matcher(std::move(stop)) {}
  std::vector<int32_t> all;  ///< prompt and generated
  Completion completion;
  std::optional<data::StreamDecoder> decoder;
  StopMatcher matcher;
  bool done = false;
};

void check_prompts(const model::ModelSpec& spec, const std::vector<std::vector<int32_t>>& prompts) {
  for (size_t p = 0; p < prompts.size(); ++p) {
    TRIREME_USER_CHECK(!prompts[p].empty(), kData, "give at least one token", "prompt {} is empty",
                       p + 1);
    TRIREME_USER_CHECK(static_cast<int64_t>(prompts[p].size()) < spec.max_positions, kData,
                       "shorten the prompt", "prompt {} has {} tokens; the model's context is {}",
                       p + 1, prompts[p].size(), spec.max_positions);
    for (const int32_t id : prompts[p]) {
      TRIREME_USER_CHECK(
          id >= 0 && id < spec.vocab_size, kData, "use the tokenizer that belongs to the model",
          "prompt {} has id {}, the model knows 0 to {}", p + 1, id, spec.vocab_size - 1);
    }
  }
}

}  // namespace

std::vector<Completion> generate(nn::Model& model, const data::Tokenizer* tokenizer,
                                 const std::vector<std::vector<int32_t>>& prompts,
                                 const GenerationOptions& options, const StreamCallback& stream) {
  const model::ModelSpec& spec = model.spec();
  check_sampling_options(options.sampling);
  TRIREME_USER_CHECK(options.max_new_tokens >= 0, kConfig, "give 0 or more",
                     "max-new-tokens = {} is negative", options.max_new_tokens);
  TRIREME_USER_CHECK(options.stop.empty() || tokenizer != nullptr, kConfig,
                     "leave --stop out, or give a tokenizer", "stop strings need a tokenizer");
  check_prompts(spec, prompts);

  int64_t longest = 0;
  for (const auto& prompt : prompts)
    longest = std::max<int64_t>(longest, static_cast<int64_t>(prompt.size()));
  const int64_t capacity = longest + std::min(options.max_new_tokens, spec.max_positions - longest);
  KeyValueCache cache(spec, static_cast<int64_t>(prompts.size()), capacity,
                      model.store().compute_dtype(), model.store().device());

  std::vector<Sequence> sequences;
  sequences.reserve(prompts.size());
  for (const auto& prompt : prompts) {
    Sequence& sequence = sequences.emplace_back(prompt, options.stop);
    if (tokenizer != nullptr) sequence.decoder.emplace(*tokenizer);
  }

  const auto show = [&](size_t index, const std::string& piece) {
    if (piece.empty()) return;
    sequences[index].completion.text += piece;
    if (stream) stream(static_cast<int64_t>(index), piece);
  };
  const auto end = [&](size_t index, Finish finish) {
    Sequence& sequence = sequences[index];
    if (sequence.decoder && finish != Finish::kStop) {
      show(index, sequence.matcher.feed(sequence.decoder->finish()));
      if (!sequence.matcher.matched()) show(index, sequence.matcher.finish());
    }
    sequence.completion.finish = sequence.matcher.matched() ? Finish::kStop : finish;
    sequence.done = true;
  };
  // Chooses the next token of a sequence from its row of logits.
  const auto take = [&](size_t index, std::span<const float> logits) {
    Sequence& sequence = sequences[index];
    const int32_t id = sample(logits, sequence.all, options.sampling, index, sequence.all.size());
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) {
      end(index, Finish::kEndOfText);
      return;
    }
    sequence.all.push_back(id);
    sequence.completion.ids.push_back(id);
    if (sequence.decoder) {
      show(index, sequence.matcher.feed(sequence.decoder->feed(id)));
      if (sequence.matcher.matched()) return end(index, Finish::kStop);
    }
    if (static_cast<int64_t>(sequence.completion.ids.size()) >= options.max_new_tokens) {
      end(index, Finish::kLength);
    } else if (static_cast<int64_t>(sequence.all.size()) >= spec.max_positions) {
      end(index, Finish::kContext);
    }
  };
  const auto rows_of = [&](const at::Tensor& hidden, const std::vector<int64_t>& active) {
    const at::Tensor logits = model.head().logits(hidden).cpu();
    const float* data = logits.const_data_ptr<float>();
    const size_t vocab = static_cast<size_t>(spec.vocab_size);
    for (size_t r = 0; r < active.size(); ++r)
      take(static_cast<size_t>(active[r]), {data + r * vocab, vocab});
  };

  // All that a sequence has so far, into an empty cache.
  const auto read_whole = [&](size_t index) {
    const std::vector<int32_t> ids = sequences[index].all;
    std::vector<int32_t> positions(ids.size());
    for (size_t t = 0; t < ids.size(); ++t) positions[t] = static_cast<int32_t>(t);
    const std::vector<int64_t> active = {static_cast<int64_t>(index)};
    cache.clear(active[0]);
    rows_of(advance(model, cache, active,
                    tokens_at(ids, positions, 1, static_cast<int64_t>(ids.size()),
                              model.store().device())),
            active);
  };
  const int64_t new_keys = length_of_new_keys(spec);

  for (size_t index = 0; index < sequences.size(); ++index) {
    if (options.max_new_tokens == 0) {
      end(index, Finish::kLength);
      continue;
    }
    read_whole(index);
  }
  while (true) {
    std::vector<int64_t> active;
    std::vector<int32_t> ids, positions;
    for (size_t index = 0; index < sequences.size(); ++index) {
      if (sequences[index].done) continue;
      if (new_keys > 0 && static_cast<int64_t>(sequences[index].all.size()) == new_keys + 1) {
        read_whole(index);
        if (sequences[index].done) continue;
      }
      active.push_back(static_cast<int64_t>(index));
      ids.push_back(sequences[index].all.back());
      positions.push_back(static_cast<int32_t>(sequences[index].all.size() - 1));
    }
    if (active.empty()) break;
    rows_of(advance(model, cache, active,
                    tokens_at(ids, positions, static_cast<int64_t>(active.size()), 1,
                              model.store().device())),
            active);
  }

  std::vector<Completion> completions;
  for (Sequence& sequence : sequences) completions.push_back(std::move(sequence.completion));
  return completions;
}

}  // namespace trireme::infer
