// expand_glob: shell-like patterns, walked component by component so that only folders that can
// match are read.
#include <fnmatch.h>

#include <algorithm>
#include <set>
#include <system_error>

#include "trireme/base/file.h"

namespace trireme {

namespace fs = std::filesystem;

namespace {

bool has_magic(const std::string& text) {
  return text.find_first_of("*?[") != std::string::npos;
}

std::vector<fs::path> entries_of(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  fs::directory_iterator it(folder.empty() ? fs::path(".") : folder, error);
  for (const fs::directory_iterator end; !error && it != end; it.increment(error)) {
    entries.push_back(folder / it->path().filename());
  }
  return entries;
}

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path.empty() ? fs::path(".") : path, error);
}

bool is_link(const fs::path& path) {
  std::error_code error;
  return fs::is_symlink(path, error);
}

bool hidden(const fs::path& path) {
  return path.filename().string().starts_with('.');
}

/// Collects what matches parts[index..] below `base`.
void expand(const fs::path& base, const std::vector<std::string>& parts, size_t index,
            std::set<std::string>& found) {
  if (index == parts.size()) {
    std::error_code error;
    if (fs::is_regular_file(base, error)) found.insert(base.string());
    return;
  }
  const std::string& part = parts[index];
  if (part == "**") {
    expand(base, parts, index + 1, found);
    for (const fs::path& entry : entries_of(base)) {
      if (hidden(entry)) continue;
      // Links to folders are not followed: they may form a cycle.
      if (is_folder(entry) && !is_link(entry)) {
        expand(entry, parts, index, found);
      } else if (index + 1 == parts.size()) {
        expand(entry, parts, index + 1, found);
      }
    }
    return;
  }
  if (!has_magic(part)) {
    const fs::path next = base / part;
    std::error_code error;
    if (fs::exists(next, error)) expand(next, parts, index + 1, found);
    return;
  }
  for (const fs::path& entry : entries_of(base)) {
    if (::fnmatch(part.c_str(), entry.filename().c_str(), FNM_PERIOD) != 0) continue;
    if (index + 1 < parts.size() && !is_folder(entry)) continue;
    expand(entry, parts, index + 1, found);
  }
}

}  // namespace

std::vector<fs::path> expand_glob(const std::string& pattern) {
  std::error_code error;
  // A name that exists wins, so that a file called 'a[1].txt' can be named.
  if (fs::is_regular_file(pattern, error)) return {fs::path(pattern)};
  if (!has_magic(pattern)) return {};

  const fs::path whole(pattern);
  std::vector<std::string> parts;
  for (const fs::path& part : whole.relative_path()) {
    if (!part.empty()) parts.push_back(part.string());
  }
  std::set<std::string> found;  // sorted by bytes, each once
  expand(whole.root_path(), parts, 0, found);
  return {found.begin(), found.end()};
}

}  // namespace trireme
