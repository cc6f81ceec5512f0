// Traces in words: what `trireme trace summary` and `trireme trace compare` print.
#pragma once

#include <string>

#include "trireme/base/json.h"
#include "trireme/plan/trace_analysis.h"

namespace trireme::plan {

/// Keys as the interface page lists them for trace summary: {"ranks": [{...}]}.
OrderedJson to_json(const Trace& trace, const TraceSummary& summary);
std::string describe(const Trace& trace, const TraceSummary& summary);

OrderedJson to_json(const TraceComparison& comparison);
/// Totals by kind, then the `rows` instructions whose durations differ most; all of them in issue
/// order if `rows` is 0.
std::string describe(const TraceComparison& comparison, int rows);

}  // namespace trireme::plan
