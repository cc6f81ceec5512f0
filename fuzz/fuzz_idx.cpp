// The .idx parser on arbitrary bytes. What it accepts must be safe to read from: the checks below are those that
// IndexedDataset relies on.
#include <cstdlib>

#include "trireme/base/error.h"
#include "trireme/data/indexed_dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  // The first two bytes choose the size of the .bin file.
  if (size < 2) return 0;
  const int64_t bin_bytes = data[0] | (int64_t{data[1]} << 8);
  try {
    const data::TokenIndex index = data::parse_token_index(
        std::as_bytes(std::span(data + 2, size - 2)), bin_bytes, "fuzz.idx");
    const auto width = static_cast<int64_t>(data::token_size(index.type));
    if (width == 0 || index.lengths.size() != index.offsets.size()) std::abort();
    for (size_t s = 0; s < index.lengths.size(); ++s) {
      if (index.offsets[s] < 0 || index.offsets[s] + index.lengths[s] * width > bin_bytes)
        std::abort();
    }
    for (size_t d = 0; d + 1 < index.documents.size(); ++d) {
      if (index.documents[d] > index.documents[d + 1]) std::abort();
    }
    if (index.documents.back() != static_cast<int64_t>(index.lengths.size())) std::abort();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kData) std::abort();
  }
  return 0;
}
