// Pipeline schedules as text: one line a rank, as docs/formats/pipeline_schedule.md says. Pure; the caller reads the file.
#pragma once

#include <string>
#include <string_view>

#include "trireme/plan/schedule.h"

namespace trireme::plan {

/// Reads a schedule for any number of ranks and micro-batches. Error{kConfig} with `origin`, line and reason: what is no
/// action, stages without a rank, work that is missing or done twice or out of order, ranks that wait for one another.
PipelineSchedule parse_schedule(std::string_view text, const std::string& origin);

/// What parse_schedule() reads back as the same schedule.
std::string schedule_text(const PipelineSchedule& schedule);

}  // namespace trireme::plan
