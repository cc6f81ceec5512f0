// A tokenizer made of the parts that a tokenizer.json names: added tokens, normalizer,
// pre-tokenizer, model, post-processor and decoder.
#pragma once

#include <memory>
#include <string>

#include "trireme/data/tokenizer.h"
#include "trireme/data/tokenizer_json.h"

namespace trireme::data {

/// Error{kData} if the file contradicts itself (a merge of tokens that are not in the vocabulary,
/// for instance) or has a part that is not supported. `bos` and `eos` are tokens, or "" to look for
/// the known names.
std::unique_ptr<Tokenizer> make_composed_tokenizer(TokenizerFile file, const std::string& origin,
                                                   const std::string& bos = "",
                                                   const std::string& eos = "");

}  // namespace trireme::data
