// Text generation: prompts in, continuations out, with a key-value cache.
//
// Runs the training parts' own pieces, so that greedy tokens are those of the training forward's
// arg-max. Prompts are read one after the other, then all sequences advance together, a token each.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trireme/data/tokenizer.h"
#include "trireme/infer/sampling.h"
#include "trireme/nn/model.h"

namespace trireme::infer {

struct GenerationOptions {
  int64_t max_new_tokens = 128;
  SamplingOptions sampling;
  std::vector<std::string> stop;  ///< ends a text before the first of these; needs a tokenizer
  std::vector<int32_t>
      stop_ids;  ///< ends a text at any of these ids (the id is not part of the output)
};

enum class Finish { kLength, kStop, kEndOfText, kContext };
const char* to_string(Finish finish);  ///< "length", "stop", "eos", "context"

struct Completion {
  std::vector<int32_t> ids;  ///< generated ids, without the prompt and without the id that ended it
  std::string text;          ///< of `ids`, cut before a stop string; "" without a tokenizer
  Finish finish = Finish::kLength;
};

/// Called with each piece of text that is certain (never half a character, never part of a stop
/// string).
using StreamCallback = std::function<void(int64_t prompt, const std::string& piece)>;

/// Generates for all prompts at once. `tokenizer` may be null (ids only). Throws Error{kConfig} for
/// options out of range, Error{kData} for an empty prompt, an id outside the vocabulary, or a
/// prompt that fills the context. Blocks. The result for a prompt does not depend on the prompts
/// beside it.
std::vector<Completion> generate(nn::Model& model, const data::Tokenizer* tokenizer,
                                 const std::vector<std::vector<int32_t>>& prompts,
                                 const GenerationOptions& options,
                                 const StreamCallback& stream = {});

/// Finds the first stop string in a growing text and says how much of it may be shown already.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stop) : stop_(std::move(stop)) {}
  /// Appends `piece`; returns what may be shown now. After a match nothing more is shown.
  std::string feed(const std::string& piece);
  /// The held-back rest, if nothing matched.
  std::string finish();
  bool matched() const { return matched_; }

 private:
  std::vector<std::string> stop_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace trireme::infer
