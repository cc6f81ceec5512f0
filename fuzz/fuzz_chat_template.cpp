// A chat template and, behind a NUL, a line of chat data: rendered and encoded, or an error of the user's data.
#include <cstdlib>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/data/chat_template.h"
#include "trireme/data/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  static const auto tokenizer = data::make_byte_tokenizer();
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find('\0');
  const std::string_view line =
      cut == std::string_view::npos
          ? R"({"messages": [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b"}], "tools": [{"x": [1]}]})"
          : input.substr(cut + 1);
  try {
    const auto conversation = data::parse_conversation(line, "fuzz.jsonl:1");
    const data::ChatTemplate chat(std::string(input.substr(0, cut)), "template",
                                  {{"bos_token", "<s>"}}, 0);
    if (!conversation) return 0;
    const auto encoded = data::encode_conversation(chat, *tokenizer, *conversation, "fuzz.jsonl:1");
    if (encoded.ids.size() != encoded.predicted.size()) std::abort();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kData) std::abort();
  }
  return 0;
}
