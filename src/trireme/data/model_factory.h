// The model that a tokenizer.json describes.
#pragma once

#include <memory>
#include <string>

#include "trireme/data/token_model.h"
#include "trireme/data/tokenizer_json.h"

namespace trireme::data {

/// `byte_level`: the pieces that come in are to be read as bytes. Error{kData} naming `origin` if the
/// file contradicts itself or combines parts in a way that is not supported.
std::unique_ptr<TokenModel> make_token_model(const TokenizerFile& file, bool byte_level,
                                             const std::string& origin);

}  // namespace trireme::data
