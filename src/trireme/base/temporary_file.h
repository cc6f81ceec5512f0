// Names under which a file is written before a rename makes it the file, and what killed processes left under them.
//
// A temporary of `folder/NAME` is `folder/.NAME.PID.N.tmp`. Whoever writes it holds a lock on it (flock), which the system
// takes back however the process ends: a temporary without a lock is abandoned, on whichever host it was written.
#pragma once

#include <filesystem>
#include <string_view>

namespace trireme {

/// A name beside `path` that this process has not used before. Thread-safe.
std::filesystem::path temporary_path(const std::filesystem::path& path);

/// Creates `temporary` for writing, in place of what a killed process of our number left there, and locks it until the
/// descriptor is closed. Returns the descriptor, which is the caller's, or -1 with errno.
int create_temporary(const std::filesystem::path& temporary);

/// Removes the temporaries in `folder` that no process holds; with `name` only those of `folder/name`. Other files, and a
/// folder that is not there, are left alone. Never throws: what cannot be removed stays.
void remove_abandoned_temporaries(const std::filesystem::path& folder, std::string_view name = {});

}  // namespace trireme
