// A request to stop, made by SIGINT (Ctrl-C) or SIGTERM, that a long task polls between steps.
//
// Only cli/ installs the handlers; the rooms below poll interrupted().
#pragma once

namespace trireme {

/// Turns the first SIGINT or SIGTERM into a flag. The second one ends the process at once, with the
/// signal's default action. Idempotent; call it from the main thread.
void install_interrupt_handlers();

/// A stop was requested. Thread-safe, does not block, costs one load.
bool interrupted();

/// Requests a stop as a signal would, or takes the request back; for tests and embedding programs.
void set_interrupted(bool value);

}  // namespace trireme
