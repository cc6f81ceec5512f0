// The run file's parser: any text is either read or refused with Error{kConfig}.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "trireme/base/error.h"
#include "trireme/train/run_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const trireme::train::RunFile run = trireme::train::parse_run_file(text, "fuzz.toml");
    // What was read must read back the same.
    const std::string effective = trireme::train::effective_toml(run);
    const trireme::train::RunFile again =
        trireme::train::parse_run_file(effective, "effective.toml");
    if (!trireme::train::differing_keys(run.config, again.config).empty()) std::abort();
  } catch (const trireme::Error& error) {
    if (error.code() != trireme::ErrorCode::kConfig) std::abort();
  }
  return 0;
}
