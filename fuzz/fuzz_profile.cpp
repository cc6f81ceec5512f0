// Profiles of devices and clusters: any text is either read or refused with Error{kConfig}.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "trireme/base/error.h"
#include "trireme/plan/profile.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  trireme::plan::ProfileLibrary library;
  try {
    library.add(text, "fuzz.toml");
  } catch (const trireme::Error& error) {
    if (error.code() != trireme::ErrorCode::kConfig) std::abort();
  }
  return 0;
}
