// The parser of pipeline schedules: any text is either read or refused with Error{kConfig}, and what was read runs.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "trireme/base/error.h"
#include "trireme/plan/schedule_text.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace trireme;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const plan::PipelineSchedule schedule = plan::parse_schedule(text, "fuzz");
    // What was read must read back the same.
    if (plan::parse_schedule(plan::schedule_text(schedule), "again") != schedule) std::abort();
    plan::run_schedule(schedule, {plan::StageCost{}});
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kConfig) std::abort();
  }
  return 0;
}
