// When optimizer states that are kept on the host visit the device. Internal to this room.
#pragma once

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Adds the kReload and kOffload of every part's optimizer states to a program that has all its other instructions, and
/// renumbers. Pure and deterministic; the arithmetic and its order stay as they are.
///
/// Memory decides: what the step holds without states, instruction by instruction, leaves room below the peak, which is no
/// higher than two parts' states at a time have it. States come as early as there is room for them until their step, from
/// the last micro-batch's forward on, so that copies in run beside its backward. After their step they go, and are given up
/// when others need their room: those of the last parts by the next step's first instructions, so that copies out run beside
/// its forward.
void insert_state_visits(const model::ModelSpec& spec, Program& program);

}  // namespace trireme::plan
