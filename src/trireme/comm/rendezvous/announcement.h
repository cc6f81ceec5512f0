// How ranks learn where rank 0's server is.
#pragma once

#include <optional>
#include <string>

#include "trireme/comm/rendezvous/socket.h"

namespace trireme::comm {

struct Announcement {
  Endpoint endpoint;
  std::string token;
};

/// The file of a job in a folder that only this user can write to: below `runtime_folder` (XDG_RUNTIME_DIR) if it is there, else below
/// `temporary_folder`. Makes the folder. Error{kConfig} if somebody else owns it or others may write to it.
std::string announcement_path(const std::string& job, const std::string& runtime_folder,
                              const std::string& temporary_folder);

/// Replaces the file, readable by this user alone. Error{kData}.
void write_announcement(const std::string& path, const Announcement& announcement);

/// Empty if the file is not there, is not this user's own, or holds something else.
std::optional<Announcement> read_announcement(const std::string& path);

/// What holds for the processes that one process started, and for no others: its number and when it began.
std::string parent_identity();

/// Rank 0 tells a launcher's c10d::TCPStore at `store` where it is; the others ask it, for at most `timeout_s`, and get nothing if
/// rank 0 did not say it by then. Error{kDevice} if the store cannot be reached.
void announce_in_store(const Endpoint& store, const std::string& job, const Endpoint& own,
                       double timeout_s);
std::optional<Endpoint> ask_store(const Endpoint& store, const std::string& job, double timeout_s);

}  // namespace trireme::comm
