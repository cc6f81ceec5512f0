#include "trireme/base/temporary_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <set>
#include <string>

#include "trireme/base/file.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;
using ::testing::UnorderedElementsAre;

class TemporaryFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // mkdtemp puts letters in place of the X.
    std::string name = (fs::temp_directory_path() / "trireme-temporary-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  void touch(const std::string& name) { std::ofstream(folder_ / name) << "x"; }
  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_))
      names.insert(entry.path().filename().string());
    return names;
  }

  fs::path folder_;
};

TEST_F(TemporaryFileTest, NamesDifferAndAreRecognised) {
  const fs::path first = temporary_path(folder_ / "a.json");
  const fs::path second = temporary_path(folder_ / "a.json");
  EXPECT_NE(first, second);
  EXPECT_EQ(first.parent_path(), folder_);
  touch(first.filename().string());
  touch(second.filename().string());
  remove_abandoned_temporaries(folder_);
  EXPECT_TRUE(files().empty());
  EXPECT_EQ(temporary_path("plain").parent_path(), "");
}

TEST_F(TemporaryFileTest, OnlyAbandonedTemporariesGo) {
  for (const char* name :
       {".a.idx.12.3.tmp", ".b.12.3.tmp", ".a.idx.tmp", ".a.idx.12.tmp", ".a.idx.12.x.tmp",
        "a.idx.12.3.tmp", ".a.idx.12.3.tmp2", "..12.tmp", "a.idx"}) {
    touch(name);
  }
  fs::create_directory(folder_ / ".folder.1.2.tmp");
  remove_abandoned_temporaries(folder_, "a.idx");
  EXPECT_EQ(files().count(".a.idx.12.3.tmp"), 0u);
  EXPECT_EQ(files().count(".b.12.3.tmp"), 1u);
  remove_abandoned_temporaries(folder_);
  EXPECT_THAT(files(), UnorderedElementsAre(".a.idx.tmp", ".a.idx.12.tmp", ".a.idx.12.x.tmp",
                                            "a.idx.12.3.tmp", ".a.idx.12.3.tmp2", "..12.tmp",
                                            "a.idx", ".folder.1.2.tmp"));
  remove_abandoned_temporaries(folder_ / "missing");
}

TEST_F(TemporaryFileTest, WhatIsBeingWrittenStaysUntilItsProcessIsKilled) {
  const fs::path path = temporary_path(folder_ / "tokens.bin");
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const bool made = create_temporary(path) >= 0;
    if (::write(ready[1], made ? "y" : "n", 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  char made = 0;
  ASSERT_EQ(::read(ready[0], &made, 1), 1);
  EXPECT_EQ(made, 'y');
  remove_abandoned_temporaries(folder_);
  EXPECT_TRUE(fs::exists(path));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  remove_abandoned_temporaries(folder_);
  EXPECT_FALSE(fs::exists(path));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(TemporaryFileTest, ReplacesWhatAProcessOfTheSameNumberLeft) {
  const fs::path path = temporary_path(folder_ / "a");
  touch(path.filename().string());
  const int descriptor = create_temporary(path);
  ASSERT_GE(descriptor, 0);
  EXPECT_EQ(read_file(path), "");
  ::close(descriptor);
  EXPECT_EQ(create_temporary(folder_ / "missing" / ".a.1.1.tmp"), -1);
  EXPECT_EQ(errno, ENOENT);
}

}  // namespace
}  // namespace trireme
