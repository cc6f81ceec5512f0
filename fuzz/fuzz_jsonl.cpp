// JSONL lines: every input gives a text, nothing (a blank line) or an error of the user's data.
#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "trireme/base/error.h"
#include "trireme/data/document_source.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    try {
      data::jsonl_text(text.substr(begin, end - begin), "text", "fuzz.jsonl:1");
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kData) std::abort();
    }
    begin = end + 1;
  }
  return 0;
}
