// manifest.json: what a checkpoint consists of, with sizes and checksums. Pure: text in, text out.
#pragma once

#include <string>
#include <string_view>

#include "trireme/checkpoint/checkpoint.h"

namespace trireme::checkpoint {

inline constexpr int kManifestVersion = 1;

/// The text of manifest.json; its last key is a checksum of the rest.
std::string format_manifest(const Manifest& manifest);

/// Reads it back. Error{kData} naming `origin` if it is not a manifest, is of a newer version, or
/// is damaged; file names with a folder in them are refused.
Manifest parse_manifest(std::string_view text, const std::string& origin);

}  // namespace trireme::checkpoint
