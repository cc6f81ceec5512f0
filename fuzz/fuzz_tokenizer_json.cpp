// tokenizer.json: every input gives a tokenizer that encodes and decodes, or an error of the user's data.
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/data/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer = data::parse_tokenizer(json, "fuzz.json");
    const std::string_view texts[] = {"", "Hello, world! 123\n\n  'tis <|endoftext|> \xC3\xA9",
                                      json.substr(0, 2000)};
    for (const auto text : texts) {
      std::vector<int32_t> ids;
      try {
        ids = tokenizer->encode(text);
      } catch (const Error& error) {  // a character that the vocabulary has no token for
        if (error.code() != ErrorCode::kData) std::abort();
        continue;
      }
      const auto encoding = tokenizer->encode_with_offsets(text);
      if (encoding.ids != ids || encoding.offsets.size() != ids.size()) std::abort();
      for (const int32_t id : ids) {
        if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
      }
      const std::string decoded = tokenizer->decode(ids);
      data::StreamDecoder stream(*tokenizer);
      std::string streamed;
      for (const int32_t id : ids) streamed += stream.feed(id);
      if (streamed + stream.finish() != decoded) std::abort();
      // Text that may be cut gives the same ids in pieces.
      const data::EncodeOptions plain{.add_special_tokens = false};
      data::StreamEncoder encoder(*tokenizer);
      std::vector<int32_t> pieces;
      for (size_t at = 0; at < text.size(); at += 7) encoder.feed(text.substr(at, 7), pieces);
      encoder.finish(pieces);
      if (pieces != tokenizer->encode(text, plain)) std::abort();
    }
    // What is written can be read again and is the same.
    const std::string written = tokenizer->to_json();
    if (data::parse_tokenizer(written, "written.json")->to_json() != written) std::abort();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kData) std::abort();
  }
  return 0;
}
