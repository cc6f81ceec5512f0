#include "trireme/checkpoint/storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/faulty_storage.h"

namespace trireme::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(StorageTest, SaysThatTheDiskIsFull) {
  // /dev/full is the kernel's own full disk.
  const auto file = disk().create("/dev/full");
  const std::string content = "x";
  try {
    file->write(std::as_bytes(std::span(content)));
    FAIL() << "written to /dev/full";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("/dev/full: No space left on device"));
    EXPECT_THAT(error.hint(), HasSubstr("free some space"));
  }
}

TEST(StorageTest, NamesThePathThatCannotBeWritten) {
  const TestFolder folder;
  write_file_atomically(folder / "file", "content");
  try {
    FolderTransaction transaction(disk(), folder / "file" / "step-1");
    FAIL() << "made a folder below a file";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr((folder / "file").string()));
    EXPECT_THAT(error.hint(), HasSubstr("is a file"));
  }
  EXPECT_EQ(read_file(folder / "file"), "content");
}

TEST(StorageTest, AnAbandonedTransactionLeavesNothing) {
  const TestFolder folder;
  {
    FolderTransaction transaction(disk(), folder / "a" / "target");
    transaction.write_file("x", "1");
  }
  EXPECT_TRUE(names_in(folder / "a").empty());
}

TEST(StorageTest, ReplacesAFolderWithAndWithoutExchange) {
  for (const bool can_exchange : {true, false}) {
    const TestFolder folder;
    FaultyStorage storage;
    storage.can_exchange = can_exchange;
    for (const std::string content : {"1", "2"}) {
      FolderTransaction transaction(storage, folder / "target/");
      transaction.write_file("x", content);
      transaction.commit();
    }
    EXPECT_EQ(read_file(folder / "target" / "x"), "2");
    EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"target"});
  }
}

TEST(StorageTest, ATransactionRemovesItsOwnLeftoversOnly) {
  const TestFolder folder;
  const std::string mine = ".tmp-step-1." + std::to_string(::getpid());
  const std::string other_target = ".tmp-step-1.5." + std::to_string(::getpid());
  const std::string alive = ".tmp-step-1." + std::to_string(::getppid());
  for (const std::string& name : {mine, other_target, alive}) {
    fs::create_directories(folder / name);
    write_file_atomically(folder / name / "old", "leftover");
  }
  FolderTransaction transaction(disk(), folder / "step-1");
  transaction.write_file("new", "1");
  transaction.commit();
  EXPECT_EQ(names_in(folder / "step-1"), std::vector<std::string>{"new"});
  EXPECT_THAT(names_in(folder.path()),
              ::testing::UnorderedElementsAre(alive, other_target, "step-1"));
}

TEST(StorageTest, CleaningUpPutsBackAFolderThatWasBeingReplaced) {
  const TestFolder folder;
  for (const char* name : {".old-a", ".old-b", "b", ".tmp-c.1", "kept"}) {
    fs::create_directories(folder / name);
    write_file_atomically(folder / name / "from", name);
  }
  clean_up_transactions(disk(), folder.path());
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"a", "b", "kept"}));
  EXPECT_EQ(read_file(folder / "a" / "from"), ".old-a");
  EXPECT_EQ(read_file(folder / "b" / "from"), "b");
}

// At every operation, killed or without power, with and without exchange: after cleaning up, the
// folder is the old one or the new one, whole.
TEST(StorageTest, AKillAtAnyOperationLeavesTheOldFolderOrTheNew) {
  int64_t runs = 0;
  for (const bool power_cut : {false, true}) {
    for (const bool can_exchange : {true, false}) {
      for (const bool replace : {false, true}) {
        for (int64_t kill_at = 0;; ++kill_at) {
          const TestFolder folder;
          if (replace) {
            fs::create_directories(folder / "target");
            write_file_atomically(folder / "target" / "x", "old");
            write_file_atomically(folder / "target" / "y", "old");
          }
          FaultyStorage storage;
          storage.kill_at = kill_at;
          storage.power_cut = power_cut;
          storage.can_exchange = can_exchange;
          bool killed = false;
          try {
            FolderTransaction transaction(storage, folder / "target");
            transaction.write_file("x", "new");
            transaction.write_file("y", "new");
            transaction.commit();
          } catch (const Killed&) {
            killed = true;
          }
          clean_up_transactions(disk(), folder.path());
          const std::vector<std::string> names = names_in(folder.path());
          if (!names.empty()) {
            ASSERT_EQ(names, std::vector<std::string>{"target"}) << kill_at;
            ASSERT_EQ(names_in(folder / "target"), (std::vector<std::string>{"x", "y"})) << kill_at;
            const std::string x = read_file(folder / "target" / "x");
            ASSERT_EQ(x, read_file(folder / "target" / "y")) << kill_at;
            ASSERT_TRUE(x == "new" || (replace && x == "old")) << kill_at << x;
          } else {
            ASSERT_TRUE(!replace && killed) << kill_at;
          }
          ++runs;
          if (!killed) {
            ASSERT_EQ(read_file(folder / "target" / "x"), "new");
            break;
          }
        }
      }
    }
  }
  EXPECT_GT(runs, 80);
}

}  // namespace
}  // namespace trireme::checkpoint
