// A checkpoint that several writers make together, each some of its tensors: files in one hidden folder, whose names and sums the
// first writer reads there before it names the folder. Internal to this room.
//
// A writer leaves share-<rank>.json beside its files when they are synced, or share-<rank>.failed with the reason; a manifest's text,
// so that half a file is noticed. Nothing of it is left in the finished folder.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "trireme/checkpoint/checkpoint.h"
#include "trireme/checkpoint/storage.h"

namespace trireme::checkpoint {

/// Writes and syncs `tensors`, in any order, into files of their own. Returned: their entries, nothing else. `mark`: of one of several
/// writers, in its files' names; "": the names are those of the finished folder. Blocks. Error{kData} naming the reason.
Manifest write_share(Storage& storage, const std::filesystem::path& folder,
                     std::vector<TensorToWrite> tensors, int64_t shard_bytes,
                     const std::string& mark = "");

/// Tells the first writer what this one has written. Blocks. Error{kData}.
void post_share(Storage& storage, const std::filesystem::path& folder, int rank,
                const Manifest& share);
/// Tells it why this one has written nothing, if anything can be written there. Blocks.
void post_failure(Storage& storage, const std::filesystem::path& folder, int rank,
                  const std::string& reason) noexcept;

/// What the writers 1 to `writers` - 1 have written, by rank. Blocks until all have told; meanwhile calls `check`, whose
/// exceptions pass. Error{kData} with the reason of a writer that failed.
std::vector<Manifest> await_shares(Storage& storage, const std::filesystem::path& folder,
                                   int writers, const std::function<void()>& check);

/// Gives the files of several shares the names of the finished folder and joins the shares, which have different tensors.
Manifest join_shares(Storage& storage, const std::filesystem::path& folder,
                     std::vector<Manifest> shares);

/// Writes what is no tensor and the manifest, and names the folder. `all`: the entries of every tensor.
Manifest commit_checkpoint(FolderTransaction& transaction, Manifest all,
                           const CheckpointState& state);

}  // namespace trireme::checkpoint
