// Where activations and optimizer states leave the device and come back: instructions of the program. Internal to this room.
#pragma once

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Adds the kOffload and kReload instructions that the program's strategy asks for, and renumbers. Pure and
/// deterministic; the arithmetic and its order stay as they are.
///
/// Activations, of a part and a micro-batch: what the forward kept, and the part's input. They are offloaded as soon as no
/// forward reads them any more, given up on the device one layer later, and come back one layer ahead of the first
/// backward that reads them, so that a copy has a layer's forward (a layer's backward) to hide behind. A part too close to
/// the loss for that stays: its activations are needed again before they would be gone.
///
/// Optimizer states: when memory has room for them (state_visits.h).
void insert_offload(const model::ModelSpec& spec, Program& program);

/// Whether a part keeps anything that can be offloaded: not the embedding, not a head.
bool offloadable(const model::PartSpec& part);

}  // namespace trireme::plan
