// Tables of published runs: any text is either read or refused with Error{kData}, and every row is used or refused with a reason.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "trireme/base/error.h"
#include "trireme/plan/published_run.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using trireme::plan::CsvRow;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    for (const CsvRow& row : trireme::plan::parse_csv(text, "fuzz.csv")) {
      trireme::plan::Refusal refusal;
      const auto run = trireme::plan::read_published_run(
          row, "fuzz", trireme::plan::shipped_profiles(), "", refusal);
      if (!run && refusal.reason.empty()) std::abort();
    }
  } catch (const trireme::Error& error) {
    if (error.code() != trireme::ErrorCode::kData) std::abort();
  }
  return 0;
}
