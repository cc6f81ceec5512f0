#include "trireme/checkpoint/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <mutex>
#include <random>

#include "trireme/base/file.h"
#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/faulty_storage.h"

namespace trireme::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// The content of step N in closed form, so that whoever reads it knows what it must be. Small enough that ATen
// starts no threads: a test below forks.
std::vector<NamedTensor> content_of(int64_t step) {
  const at::Tensor base = at::arange(60, at::kFloat).reshape({6, 10}) + static_cast<double>(step);
  return {{"w", base}, {"b", base.narrow(0, 1, 1) * 3}, {"optimizer.exp_avg.w", base.t() * 2}};
}

CheckpointState state_of(int64_t step) {
  return {step, {{"tokens", step * 10}}, {{"config.json", "{}"}}};
}

void expect_content(const fs::path& path, int64_t step) {
  const Checkpoint checkpoint(path);
  ASSERT_EQ(checkpoint.step(), step);
  ASSERT_EQ(checkpoint.train_state(), state_of(step).train);
  for (const NamedTensor& named : content_of(step)) {
    ASSERT_TRUE(at::equal(checkpoint.tensor(named.name), named.tensor)) << named.name;
  }
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(CheckpointWriterTest, KeepsTheNewest) {
  const TestFolder folder;
  CheckpointWriter writer({.folder = folder / "checkpoints", .keep = 2});
  EXPECT_TRUE(writer.last_completed().empty());
  for (int64_t step = 8; step <= 11; ++step) writer.save(content_of(step), state_of(step));
  writer.wait();
  EXPECT_FALSE(writer.busy());
  EXPECT_EQ(names_in(folder / "checkpoints"), (std::vector<std::string>{"step-10", "step-11"}));
  EXPECT_EQ(writer.last_completed(), folder / "checkpoints" / "step-11");
  expect_content(folder / "checkpoints" / "step-10", 10);
  expect_content(folder / "checkpoints" / "step-11", 11);
  EXPECT_GT(writer.last_stall_s(), 0);
  EXPECT_GT(writer.last_write_s(), 0);
}

TEST(CheckpointWriterTest, AnOlderStepDoesNotPushOutWhatIsNewer) {
  const TestFolder folder;
  const fs::path checkpoints = folder / "checkpoints";
  CheckpointWriter writer({.folder = checkpoints, .keep = 1});
  writer.save(content_of(30), state_of(30));
  writer.wait();
  writer.save(content_of(10), state_of(10));  // resumed from before step 30
  writer.wait();
  EXPECT_EQ(names_in(checkpoints), (std::vector<std::string>{"step-10", "step-30"}));
  writer.save(content_of(30), state_of(30));  // written again, in place of the old one
  writer.wait();
  EXPECT_EQ(names_in(checkpoints), std::vector<std::string>{"step-30"});
  expect_content(checkpoints / "step-30", 30);
}

TEST(CheckpointWriterTest, TheStateMayChangeAsSoonAsSaveReturns) {
  const TestFolder folder;
  CheckpointWriter writer({.folder = folder.path(), .keep = 5});
  for (int64_t step = 1; step <= 5; ++step) {
    std::vector<NamedTensor> tensors = content_of(step);
    writer.save(tensors, state_of(step));
    for (NamedTensor& named : tensors) named.tensor.fill_(-1);
  }
  writer.wait();
  for (int64_t step = 1; step <= 5; ++step) expect_content(folder / step_folder_name(step), step);
}

TEST(CheckpointWriterTest, SavesTensorsThatGrow) {
  const TestFolder folder;
  CheckpointWriter writer({.folder = folder.path(), .keep = 5});
  writer.save({{"w", at::ones({3})}}, state_of(1));
  writer.save({{"w", at::ones({30000}) * 2}}, state_of(2));
  writer.save({{"w", at::ones({5})}}, state_of(3));
  writer.wait();
  EXPECT_TRUE(at::equal(Checkpoint(folder / "step-2").tensor("w"), at::ones({30000}) * 2));
  EXPECT_TRUE(at::equal(Checkpoint(folder / "step-3").tensor("w"), at::ones({5})));
}

TEST(CheckpointWriterTest, AFailedSaveIsReportedOnceAndLosesNothing) {
  const TestFolder folder;
  FaultyStorage storage;
  CheckpointWriter writer({.folder = folder.path(), .keep = 1, .storage = &storage});
  writer.save(content_of(1), state_of(1));
  writer.wait();
  storage.full_after_bytes = 0;
  writer.save(content_of(2), state_of(2));
  try {
    writer.wait();
    FAIL() << "the failure was not reported";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("No space left on device"));
  }
  EXPECT_NO_THROW(writer.wait());
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"step-1"});
  expect_content(folder / "step-1", 1);

  writer.save(content_of(3), state_of(3));  // fails behind our back
  EXPECT_THROW(writer.save(content_of(4), state_of(4)), Error);
  storage.full_after_bytes = -1;
  writer.save(content_of(4), state_of(4));
  writer.wait();
  EXPECT_EQ(names_in(folder.path()), std::vector<std::string>{"step-4"});
}

TEST(CheckpointWriterTest, RefusesASaveThatCannotFit) {
  const TestFolder folder;
  FaultyStorage storage;
  CheckpointWriter writer({.folder = folder.path(), .storage = &storage});
  storage.free = 500;
  EXPECT_THROW(writer.save(content_of(1), state_of(1)), Error);
  EXPECT_FALSE(writer.busy());
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(CheckpointWriterTest, SaysAtOnceThatTheFolderCannotBeWritten) {
  const TestFolder folder;
  write_file_atomically(folder / "file", "");
  EXPECT_THROW(CheckpointWriter({.folder = folder / "file" / "checkpoints"}), Error);
  if (fs::exists("/proc/self")) {
    EXPECT_THROW(CheckpointWriter({.folder = "/proc/self"}),
                 Error);  // a folder where even root makes no file
  }
}

TEST(CheckpointWriterTest, RemovesWhatAKilledRunLeft) {
  const TestFolder folder;
  fs::create_directories(folder / ".tmp-step-5.1");
  write_file_atomically(folder / ".tmp-step-5.1" / "model.safetensors", "half");
  CheckpointWriter writer({.folder = folder.path()});
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

// Writers of three ranks; what each has of step N is every third tensor.
class CheckpointWriterRanksTest : public ::testing::Test {
 protected:
  static constexpr int kRanks = 3;
  static std::vector<NamedTensor> content_of_rank(int64_t step, int rank) {
    std::vector<NamedTensor> tensors;
    const std::vector<NamedTensor> all = content_of(step);
    for (size_t i = static_cast<size_t>(rank); i < all.size(); i += kRanks)
      tensors.push_back(all[i]);
    return tensors;
  }
  CheckpointWriter& writer(int rank) {
    auto& one = writers_[static_cast<size_t>(rank)];
    if (one == nullptr) {
      CheckpointWriter::Options options;
      options.folder = folder_ / "checkpoints";
      options.keep = 2;
      options.storage = &storages_[static_cast<size_t>(rank)];
      options.rank = rank;
      options.ranks = kRanks;
      options.check = [this] { TRIREME_USER_CHECK(!lost_, kDevice, "", "rank 1 is lost"); };
      one = std::make_unique<CheckpointWriter>(std::move(options));
    }
    return *one;
  }
  void save(int64_t step, const std::vector<int>& ranks = {0, 1, 2}) {
    const fs::path folder = writer(0).begin(step, extent_of(content_of(step)));
    for (const int rank : ranks) {
      writer(rank).save_share(folder, content_of_rank(step, rank),
                              rank == 0 ? state_of(step) : CheckpointState{});
    }
  }

  const TestFolder folder_;
  std::array<FaultyStorage, kRanks> storages_;
  std::array<std::unique_ptr<CheckpointWriter>, kRanks> writers_;
  std::atomic<bool> lost_ = false;
};

TEST_F(CheckpointWriterRanksTest, WriteWhatOneWouldHave) {
  for (int64_t step = 1; step <= 4; ++step) {
    save(step);
    writer(0).wait();
    const fs::path path = folder_ / "checkpoints" / step_folder_name(step);
    expect_content(path, step);
    EXPECT_EQ(names_in(path),
              (std::vector<std::string>{
                  "config.json", "manifest.json", "model-00001-of-00002.safetensors",
                  "model-00002-of-00002.safetensors", "optimizer.safetensors"}));
    EXPECT_TRUE(Checkpoint(path).verify().empty());
    EXPECT_EQ(Checkpoint(path).manifest().digest,
              write_checkpoint(folder_ / "alone", content_of(step), state_of(step)).digest);
  }
  EXPECT_EQ(names_in(folder_ / "checkpoints"), (std::vector<std::string>{"step-3", "step-4"}));
}

TEST_F(CheckpointWriterRanksTest, AFailureOfOneIsTheFailureOfAll) {
  save(1);
  writer(0).wait();
  storages_[2].full_after_bytes = 0;
  save(2);
  for (const auto& [rank, reason] :
       {std::pair{0, "rank 2 did not write its part"}, std::pair{2, "No space left on device"}}) {
    try {
      writer(rank).wait();
      FAIL() << "rank " << rank << " did not report the failure";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_THAT(error.what(), HasSubstr(reason));
    }
  }
  EXPECT_NO_THROW(writer(1).wait());
  EXPECT_EQ(names_in(folder_ / "checkpoints"), std::vector<std::string>{"step-1"});
  storages_[2].full_after_bytes = -1;
  save(3);
  writer(0).wait();
  expect_content(folder_ / "checkpoints" / "step-3", 3);
}

TEST_F(CheckpointWriterRanksTest, ARankThatIsLostEndsTheWaiting) {
  save(1);
  writer(0).wait();
  save(2, {0, 2});
  writer(2).wait();
  lost_ = true;
  EXPECT_THROW(writer(0).wait(), Error);
  EXPECT_EQ(names_in(folder_ / "checkpoints"), std::vector<std::string>{"step-1"});
}

TEST_F(CheckpointWriterRanksTest, AFailureThatCannotBeToldKeepsItsReason) {
  save(1);
  writer(0).wait();
  const fs::path folder = writer(0).begin(2, extent_of(content_of(2)));
  fs::remove_all(folder);  // as a first writer does that failed
  writer(1).save_share(folder, content_of_rank(2, 1), {});
  try {
    writer(1).wait();
    FAIL() << "the failure was not reported";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("model"));
    EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("share-")));
  }
}

TEST_F(CheckpointWriterRanksTest, ASaveThatLacksATensorIsNotCommitted) {
  save(1);
  writer(0).wait();
  Extent more = extent_of(content_of(2));
  ++more.tensors;
  const fs::path folder = writer(0).begin(2, more);
  for (const int rank : {0, 1, 2})
    writer(rank).save_share(folder, content_of_rank(2, rank), state_of(2));
  EXPECT_THROW(writer(0).wait(), Error);
  const fs::path again = writer(0).begin(3, extent_of(content_of(3)));
  writer(0).save_share(again, content_of(3), state_of(3));
  writer(1).save_share(again, content_of_rank(3, 1), {});
  writer(2).save_share(again, {}, {});
  EXPECT_THROW(writer(0).wait(), Error) << "a tensor was written twice";
  EXPECT_EQ(names_in(folder_ / "checkpoints"), std::vector<std::string>{"step-1"});
}

TEST_F(CheckpointWriterRanksTest, AFolderThatARankDoesNotSeeIsNamed) {
  try {
    const CheckpointWriter writer({.folder = folder_ / "elsewhere", .rank = 1, .ranks = 2});
    FAIL() << "the folder is not there";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("rank 1 does not see the folder"));
    EXPECT_THAT(error.hint(), HasSubstr("file system"));
  }
}

/// The real disk, telling a pipe before every operation, so that a killer can choose its moment without a clock.
class TellingStorage final : public Storage {
 public:
  explicit TellingStorage(int pipe) : pipe_(pipe) {}
  std::unique_ptr<OutputFile> create(const fs::path& path) override {
    tell();
    return std::make_unique<File>(*this, disk().create(path));
  }
  void make_folders(const fs::path& path) override { tell(), disk().make_folders(path); }
  void sync_folder(const fs::path& path) override { tell(), disk().sync_folder(path); }
  void rename(const fs::path& from, const fs::path& to) override {
    tell(), disk().rename(from, to);
  }
  bool exchange(const fs::path& a, const fs::path& b) override {
    return tell(), disk().exchange(a, b);
  }
  void remove_all(const fs::path& path) override { tell(), disk().remove_all(path); }
  uint64_t free_bytes(const fs::path& path) override { return disk().free_bytes(path); }

 private:
  class File final : public OutputFile {
   public:
    File(TellingStorage& storage, std::unique_ptr<OutputFile> file)
        : storage_(storage), file_(std::move(file)) {}
    void write(std::span<const std::byte> bytes) override {
      while (!bytes.empty()) {
        storage_.tell();
        const auto piece = bytes.first(std::min<size_t>(bytes.size(), 100));
        file_->write(piece);
        bytes = bytes.subspan(piece.size());
      }
    }
    void sync_and_close() override { storage_.tell(), file_->sync_and_close(); }

   private:
    TellingStorage& storage_;
    std::unique_ptr<OutputFile> file_;
  };
  void tell() {
    const std::lock_guard lock(mutex_);
    const char byte = 0;
    if (::write(pipe_, &byte, 1) != 1) _exit(1);
  }
  std::mutex mutex_;
  int pipe_;
};

/// Resumes where the folder says and saves step after step until it is killed.
[[noreturn]] void run_until_killed(const fs::path& folder, int pipe) {
  TellingStorage storage(pipe);
  CheckpointWriter writer({.folder = folder, .keep = 2, .shard_bytes = 300, .storage = &storage});
  const auto latest = find_latest(folder);
  for (int64_t step = latest ? Checkpoint(*latest).step() + 1 : 1;; ++step) {
    writer.save(content_of(step), state_of(step));
  }
}

TEST(CheckpointWriterTest, SurvivesSigkillAtRandomMoments) {
  const TestFolder folder;
  std::mt19937 random(11);
  int64_t last_step = 0;
  for (int round = 0; round < 60; ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(ends[0]);
      run_until_killed(folder.path(), ends[1]);
    }
    close(ends[1]);
    const int moment = std::uniform_int_distribution<int>(1, 150)(random);
    char byte = 0;
    for (int i = 0; i < moment; ++i)
      ASSERT_EQ(read(ends[0], &byte, 1), 1) << "the writer died by itself";
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    close(ends[0]);

    const auto latest = find_latest(folder.path());
    if (!latest) {
      ASSERT_EQ(last_step, 0);
      continue;
    }
    const int64_t step = Checkpoint(*latest).step();
    ASSERT_GE(step, last_step) << "a checkpoint was lost";
    for (const auto& [kept, path] : step_folders(folder.path())) {
      expect_content(path, kept);
      ASSERT_TRUE(Checkpoint::verify(path).empty());
    }
    last_step = step;
  }
  EXPECT_GT(last_step, 20);
}

}  // namespace
}  // namespace trireme::checkpoint
