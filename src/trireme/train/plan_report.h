// The page of `trireme plan simulate --report`: what a run would cost, before it starts. Format: docs/formats/report.md.
#pragma once

#include <string>

#include "trireme/plan/prediction.h"

namespace trireme::train {

/// The page. Pure: no request leaves it, the same input gives the same text. `title`: the run file's name.
std::string plan_report_html(const std::string& title, const plan::PlannedRun& run,
                             const plan::Prediction& prediction, const plan::PredictedWorld& world);

}  // namespace trireme::train
