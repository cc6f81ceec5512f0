#include "trireme/base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>

#include "trireme/base/error.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "trireme_file_XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  void touch(const std::string& name, const std::string& content = "x") {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  std::vector<std::string> glob(const std::string& pattern) {
    std::vector<std::string> names;
    for (const fs::path& path : expand_glob((folder_ / pattern).string())) {
      names.push_back(path.lexically_relative(folder_).string());
    }
    return names;
  }
  size_t entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
  }

  fs::path folder_;
};

TEST_F(FileTest, WritesAndReadsBack) {
  const std::string content("a\0b\n\xff", 5);
  write_file_atomically(folder_ / "f", content);
  EXPECT_EQ(read_file(folder_ / "f"), content);
  write_file_atomically(folder_ / "f", "");
  EXPECT_EQ(read_file(folder_ / "f"), "");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(FileTest, ReadsAFileWhoseSizeIsNotKnown) {
  EXPECT_THAT(read_file("/proc/self/status"), HasSubstr("Pid:"));
}

TEST_F(FileTest, AFailedWriteLeavesWhatWasThere) {
  // Renaming a file over a folder fails after the temporary was written: it must be gone again.
  fs::create_directories(folder_ / "taken" / "inside");
  try {
    write_file_atomically(folder_ / "taken", "new");
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr((folder_ / "taken").string()));
    EXPECT_FALSE(error.hint().empty());
  }
  EXPECT_TRUE(fs::is_directory(folder_ / "taken" / "inside"));
  EXPECT_EQ(entries(), 1u);
}

TEST_F(FileTest, AWriteThatStopsHalfWayLeavesWhatWasThere) {
  touch("f", "old");
  // A limit on file sizes stops the write in the middle, as a full disk would.
  struct rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit tight{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  EXPECT_THROW(write_file_atomically(folder_ / "f", std::string(10000, 'x')), Error);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_file(folder_ / "f"), "old");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(FileTest, MissingFilesAndFoldersAreNamed) {
  for (const fs::path& path : {folder_ / "missing", folder_}) {
    try {
      (void)read_file(path);
      FAIL() << "expected an Error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_THAT(error.what(), HasSubstr(path.string()));
    }
    EXPECT_THROW(MappedFile{path}, Error);
  }
  EXPECT_THROW(sync_path(folder_ / "missing"), Error);
  EXPECT_NO_THROW(sync_path(folder_));
}

TEST_F(FileTest, MapsFiles) {
  touch("f", "content");
  touch("empty", "");
  MappedFile mapped(folder_ / "f");
  EXPECT_EQ(mapped.text(), "content");
  EXPECT_EQ(mapped.bytes().size(), 7u);
  MappedFile moved(std::move(mapped));
  EXPECT_EQ(moved.text(), "content");
  MappedFile empty(folder_ / "empty");
  EXPECT_EQ(empty.text(), "");
  empty = std::move(moved);
  EXPECT_EQ(empty.text(), "content");
}

TEST_F(FileTest, GlobMatchesWithinAFolder) {
  touch("b.txt");
  touch("a.txt");
  touch("c.md");
  touch(".hidden.txt");
  touch("sub/d.txt");
  EXPECT_THAT(glob("*.txt"), ElementsAre("a.txt", "b.txt"));
  EXPECT_THAT(glob("?.md"), ElementsAre("c.md"));
  EXPECT_THAT(glob("[ab].txt"), ElementsAre("a.txt", "b.txt"));
  EXPECT_THAT(glob("*/d.txt"), ElementsAre("sub/d.txt"));
  EXPECT_THAT(glob("sub"), IsEmpty());
  EXPECT_THAT(glob("nothing*"), IsEmpty());
  EXPECT_THAT(glob("missing/*"), IsEmpty());
}

TEST_F(FileTest, GlobMatchesAnyDepth) {
  touch("x.py");
  touch("a/x.py");
  touch("a/b/c/x.py");
  touch("a/b/y.txt");
  touch(".git/x.py");
  fs::create_directory_symlink(folder_, folder_ / "a" / "loop");
  EXPECT_THAT(glob("**/*.py"), ElementsAre("a/b/c/x.py", "a/x.py", "x.py"));
  EXPECT_THAT(glob("a/**/x.py"), ElementsAre("a/b/c/x.py", "a/x.py"));
  EXPECT_THAT(glob("a/**"), ElementsAre("a/b/c/x.py", "a/b/y.txt", "a/x.py"));
  EXPECT_THAT(glob("**/b/**/*"), ElementsAre("a/b/c/x.py", "a/b/y.txt"));
}

TEST_F(FileTest, GlobTakesAnExistingNameAsItIs) {
  touch("a[1].txt");
  touch("a1.txt");
  EXPECT_THAT(glob("a[1].txt"), ElementsAre("a[1].txt"));
  EXPECT_THAT(glob("a1.txt"), ElementsAre("a1.txt"));
}

}  // namespace
}  // namespace trireme
