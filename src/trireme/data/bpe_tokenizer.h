// A byte-level BPE tokenizer made from a tokenizer.json's content.
#pragma once

#include <memory>
#include <string>

#include "trireme/data/tokenizer.h"
#include "trireme/data/tokenizer_json.h"

namespace trireme::data {

/// Error{kData} if the file contradicts itself (a merge of tokens that are not in the vocabulary,
/// for instance). `bos` and `eos` are tokens, or "" to look for the known names.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(TokenizerFile file, const std::string& origin,
                                              const std::string& bos = "",
                                              const std::string& eos = "");

}  // namespace trireme::data
