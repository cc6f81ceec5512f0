#include "trireme/checkpoint/checkpoint.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "trireme/base/file.h"
#include "trireme/base/test_folder.h"
#include "trireme/checkpoint/faulty_storage.h"
#include "trireme/checkpoint/manifest.h"

namespace trireme::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::vector<NamedTensor> some_tensors(int64_t seed = 0) {
  const at::Tensor base =
      at::arange(24, at::kFloat).reshape({4, 6}) / 7 + static_cast<double>(seed);
  return {{"model.w", base},
          {"optimizer.exp_avg.model.w", base * 2},
          {"model.t", base.t()},  // not contiguous
          {"model.bf16", base.to(at::kBFloat16)},
          {"optimizer.step", at::scalar_tensor(seed + 5, at::kLong)},
          {"model.empty", at::zeros({0, 3})},
          {"model.double", base.to(at::kDouble)},
          {"model.half", base.to(at::kHalf)},
          {"model.int", at::arange(3, at::kInt)},
          {"model.short", at::arange(3, at::kShort)},
          {"model.char", at::arange(3, at::kChar)},
          {"model.byte", at::arange(3, at::kByte)},
          {"model.bool", at::arange(3).eq(1)}};
}

CheckpointState some_state(int64_t step = 7) {
  return {step,
          {{"tokens", 12345678901}, {"lr", 0.1}, {"seen", {1, 2, 3}}},
          {{"config.json", "{\"model_type\": \"llama\"}\n"}, {"tokenizer.json", "{}"}}};
}

void expect_equal(const Checkpoint& checkpoint, const std::vector<NamedTensor>& expected) {
  EXPECT_EQ(checkpoint.manifest().tensors.size(), expected.size());
  for (const NamedTensor& named : expected) {
    const at::Tensor loaded = checkpoint.tensor(named.name);
    EXPECT_EQ(loaded.scalar_type(), named.tensor.scalar_type()) << named.name;
    EXPECT_TRUE(at::equal(loaded, named.tensor)) << named.name;
  }
}

void flip_bit(const fs::path& path, size_t byte, int bit) {
  std::string content = read_file(path);
  content[byte] = static_cast<char>(content[byte] ^ (1 << bit));
  std::ofstream(path, std::ios::binary) << content;
}

TEST(CheckpointTest, ReadsBackWhatWasWritten) {
  const TestFolder folder;
  const auto tensors = some_tensors();
  write_checkpoint(folder / "step-7", tensors, some_state());
  const Checkpoint checkpoint(folder / "step-7");
  expect_equal(checkpoint, tensors);
  EXPECT_EQ(checkpoint.step(), 7);
  EXPECT_EQ(checkpoint.train_state(), some_state().train);
  EXPECT_EQ(checkpoint.text("config.json"), some_state().texts.at("config.json"));
  EXPECT_EQ(checkpoint.text("absent.json"), "");
  EXPECT_TRUE(checkpoint.verify().empty());
  EXPECT_TRUE(fs::exists(folder / "step-7" / "model.safetensors"));
  EXPECT_TRUE(fs::exists(folder / "step-7" / "optimizer.safetensors"));
}

TEST(CheckpointTest, TensorsOutliveTheCheckpoint) {
  const TestFolder folder;
  write_checkpoint(folder / "c", some_tensors(), some_state());
  at::Tensor tensor;
  {
    tensor = Checkpoint(folder / "c").tensor("model.w");
  }
  fs::remove_all(folder / "c");
  EXPECT_TRUE(at::equal(tensor, some_tensors()[0].tensor));
}

TEST(CheckpointTest, DigestDoesNotDependOnShards) {
  const TestFolder folder;
  const Manifest whole = write_checkpoint(folder / "a", some_tensors(), some_state());
  for (const int64_t shard_bytes : {1, 100, 300}) {
    const Manifest cut =
        write_checkpoint(folder / "b", some_tensors(), some_state(), {shard_bytes, nullptr});
    EXPECT_GT(cut.files.size(), whole.files.size());
    EXPECT_EQ(cut.digest, whole.digest);
    expect_equal(Checkpoint(folder / "b"), some_tensors());
  }
  EXPECT_NE(write_checkpoint(folder / "c", some_tensors(1), some_state()).digest, whole.digest);
}

TEST(CheckpointTest, DigestSeesNameTypeShapeAndBytes) {
  const TensorEntry entry{{"a", Dtype::kF32, {2, 3}, 0, 0}, "f", "0123"};
  std::set<std::string> digests = {digest_of({entry})};
  for (int change = 0; change < 4; ++change) {
    TensorEntry changed = entry;
    if (change == 0) changed.info.name = "b";
    if (change == 1) changed.info.dtype = Dtype::kI32;
    if (change == 2) changed.info.shape = {3, 2};
    if (change == 3) changed.xxh3 = "0124";
    digests.insert(digest_of({changed}));
  }
  EXPECT_EQ(digests.size(), 5u);
}

TEST(CheckpointTest, WritesTheSameBytesAgain) {
  const TestFolder folder;
  write_checkpoint(folder / "a", some_tensors(), some_state());
  write_checkpoint(folder / "b", some_tensors(), some_state());
  for (const auto& entry : fs::directory_iterator(folder / "a")) {
    EXPECT_EQ(read_file(entry.path()), read_file(folder / "b" / entry.path().filename().string()));
  }
}

// Every byte of every file: a flipped bit is found by verify() and by whoever reads what it belongs
// to.
TEST(CheckpointTest, FindsAFlippedBitAnywhere) {
  const TestFolder folder;
  const std::vector<NamedTensor> tensors = {{"w", at::arange(6, at::kFloat)},
                                            {"optimizer.m", at::arange(4)}};
  write_checkpoint(folder / "c", tensors, some_state());
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder / "c")) files.push_back(entry.path());
  ASSERT_EQ(files.size(), 5u);
  for (const fs::path& file : files) {
    const std::string before = read_file(file);
    for (size_t byte = 0; byte < before.size(); ++byte) {
      const int bit = static_cast<int>(byte % 8);
      flip_bit(file, byte, bit);
      const std::vector<Damage> damages = Checkpoint::verify(folder / "c");
      ASSERT_FALSE(damages.empty()) << file << " byte " << byte;
      ASSERT_EQ(damages.front().file, file.filename().string());
      std::ofstream(file, std::ios::binary) << before;
    }
  }
  EXPECT_TRUE(Checkpoint::verify(folder / "c").empty());
}

TEST(CheckpointTest, FindsATruncationAnywhere) {
  const TestFolder folder;
  write_checkpoint(folder / "c", {{"w", at::arange(6, at::kFloat)}}, some_state());
  for (const char* name : {"model.safetensors", "manifest.json", "config.json"}) {
    const std::string before = read_file(folder / "c" / name);
    for (size_t size = 0; size < before.size() - (std::string(name) == "manifest.json" ? 1 : 0);
         ++size) {
      fs::resize_file(folder / "c" / name, size);
      EXPECT_THROW(Checkpoint(folder / "c"), Error) << name << " " << size;
      EXPECT_FALSE(Checkpoint::verify(folder / "c").empty());
      std::ofstream(folder / "c" / name, std::ios::binary) << before;
    }
    fs::remove(folder / "c" / name);
    EXPECT_THROW(Checkpoint(folder / "c"), Error) << name;
    std::ofstream(folder / "c" / name, std::ios::binary) << before;
  }
}

TEST(CheckpointTest, NamesTheDamagedFileAndTensor) {
  const TestFolder folder;
  write_checkpoint(folder / "step-7", some_tensors(), some_state());
  const fs::path file = folder / "step-7" / "optimizer.safetensors";
  flip_bit(file, fs::file_size(file) - 1,
           3);  // the F32 state follows the I64 step: the last byte is of it
  const Checkpoint checkpoint(folder / "step-7");
  EXPECT_NO_THROW(checkpoint.tensor("model.w"));
  try {
    checkpoint.tensors();
    FAIL() << "damage was not found";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("optimizer.safetensors"));
    EXPECT_THAT(error.what(), HasSubstr("'optimizer.exp_avg.model.w'"));
    EXPECT_THAT(error.hint(), HasSubstr("move that folder away"));
  }
  EXPECT_NO_THROW(checkpoint.tensor("optimizer.exp_avg.model.w", false));
  const std::vector<Damage> damages = checkpoint.verify();
  ASSERT_EQ(damages.size(), 1u);
  EXPECT_EQ(damages[0].tensor, "optimizer.exp_avg.model.w");
}

TEST(CheckpointTest, SuggestsTheNearestTensor) {
  const TestFolder folder;
  write_checkpoint(folder / "c", some_tensors(), some_state());
  try {
    Checkpoint(folder / "c").tensor("model.doubel");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("no tensor 'model.doubel'"));
    EXPECT_THAT(error.hint(), HasSubstr("'model.double'"));
  }
}

TEST(CheckpointTest, AFullDiskLosesNothing) {
  const TestFolder folder;
  write_checkpoint(folder / "step-7", some_tensors(), some_state());
  int64_t full_after = 0;
  for (;; full_after += 211) {
    FaultyStorage storage;
    storage.full_after_bytes = full_after;
    try {
      write_checkpoint(folder / "step-7", some_tensors(1), some_state(), {100, &storage});
      break;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_THAT(error.what(), HasSubstr("No space left on device"));
    }
    expect_equal(Checkpoint(folder / "step-7"), some_tensors());
    EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
  }
  EXPECT_GT(full_after, 1000);
  expect_equal(Checkpoint(folder / "step-7"), some_tensors(1));
}

TEST(CheckpointTest, AsksForFreeSpaceFirst) {
  const TestFolder folder;
  FaultyStorage storage;
  storage.free = 1000;
  try {
    write_checkpoint(folder / "step-7", some_tensors(), some_state(), {100, &storage});
    FAIL() << "written without space";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("1.0 KB free"));
    EXPECT_THAT(error.what(), HasSubstr("needed"));
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

// The promise of the room: at whatever operation the process or the machine dies, the newest
// checkpoint is whole and is the old or the new.
TEST(CheckpointTest, AKillAtAnyOperationLeavesACompleteNewestCheckpoint) {
  const std::vector<NamedTensor> old_tensors = {{"w", at::arange(6, at::kFloat)},
                                                {"optimizer.m", at::arange(4)}};
  const std::vector<NamedTensor> new_tensors = {{"w", at::arange(6, at::kFloat) + 1},
                                                {"optimizer.m", at::arange(4) + 1}};
  for (const bool power_cut : {false, true}) {
    bool killed = true;
    for (int64_t kill_at = 0; killed; ++kill_at) {
      const TestFolder folder;
      write_checkpoint(folder / "step-7", old_tensors, some_state());
      FaultyStorage storage;
      storage.kill_at = kill_at;
      storage.power_cut = power_cut;
      killed = false;
      try {
        write_checkpoint(folder / "step-8", new_tensors, some_state(8), {100, &storage});
      } catch (const Killed&) {
        killed = true;
      }
      clean_up_transactions(disk(), folder.path());
      const auto latest = find_latest(folder.path());
      ASSERT_TRUE(latest.has_value());
      const Checkpoint checkpoint(*latest);
      ASSERT_TRUE(checkpoint.verify().empty());
      ASSERT_TRUE(killed || checkpoint.step() == 8);
      expect_equal(checkpoint, checkpoint.step() == 8 ? new_tensors : old_tensors);
    }
  }
}

TEST(CheckpointTest, FindsListsAndResolves) {
  const TestFolder folder;
  for (const int64_t step : {9, 10, 100}) {
    write_checkpoint(folder.path() / "run" / "checkpoints" / step_folder_name(step),
                     some_tensors(step), some_state(step));
  }
  const fs::path checkpoints = folder.path() / "run" / "checkpoints";
  fs::create_directories(checkpoints / "step-0100");  // not ours: leading zero
  fs::create_directories(checkpoints / ".tmp-step-200.1");
  EXPECT_EQ(find_latest(checkpoints)->filename(), "step-100");
  EXPECT_EQ(find_latest(folder.path()), std::nullopt);
  EXPECT_EQ(find_latest(folder / "missing"), std::nullopt);
  EXPECT_EQ(resolve_checkpoint(folder / "run"), checkpoints / "step-100");
  EXPECT_EQ(resolve_checkpoint(checkpoints), checkpoints / "step-100");
  EXPECT_EQ(resolve_checkpoint(checkpoints / "step-9"), checkpoints / "step-9");
  EXPECT_THROW(resolve_checkpoint(folder.path()), Error);
  EXPECT_THROW(resolve_checkpoint(folder / "missing"), Error);

  fs::remove(checkpoints / "step-10" / "model.safetensors");
  const auto list = list_checkpoints(folder / "run");
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0].step, 9);
  EXPECT_EQ(list[0].problem, "");
  EXPECT_EQ(list[0].num_tensors, 13);
  EXPECT_THAT(list[1].problem, HasSubstr("missing"));
  EXPECT_EQ(list[2].step, 100);
}

TEST(ManifestTest, RefusesWhatIsNotOurs) {
  Manifest manifest;
  manifest.files = {{"a", 1, "0"}};
  const std::string text = format_manifest(manifest);
  EXPECT_NO_THROW(parse_manifest(text, "m"));
  for (const char* bad : {"", "{", "[]", "{}", "{\"format\": \"other\"}", "null"}) {
    EXPECT_THROW(parse_manifest(bad, "m"), Error) << bad;
  }
  std::string newer = text;
  newer.replace(newer.find("\"version\": 1"), 12, "\"version\": 2");
  try {
    parse_manifest(newer, "m");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("version 2"));
    EXPECT_EQ(error.hint(), "update Trireme");
  }
  for (const char* name : {"../a", "a/b", "..", ""}) {
    manifest.files[0].name = name;
    EXPECT_THROW(parse_manifest(format_manifest(manifest), "m"), Error) << name;
  }
}

}  // namespace
}  // namespace trireme::checkpoint
