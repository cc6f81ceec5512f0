// A folder of its own for one test, removed afterwards.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

namespace trireme {

class TestFolder {
 public:
  TestFolder() {
    // In memory where that is possible: thousands of writes to a busy disk take a minute and prove nothing more.
    const bool shared_memory = access("/dev/shm", W_OK) == 0;
    const std::filesystem::path parent =
        shared_memory ? std::filesystem::path("/dev/shm") : std::filesystem::temp_directory_path();
    std::string name =
        (parent / "trireme-test-XXXXXX").string();  // mkdtemp puts letters in place of the X
    path_ = mkdtemp(name.data());
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace trireme
