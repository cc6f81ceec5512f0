#include "trireme/data/open_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <set>

#include "trireme/base/error.h"
#include "trireme/data/prepare.h"
#include "trireme/data/tokenizer.h"

namespace trireme::data {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class OpenDatasetTest : public ::testing::Test {
 protected:
  OpenDatasetTest() : tokenizer_(make_byte_tokenizer()) {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string("trireme-open-") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~OpenDatasetTest() override { fs::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return (folder_ / name).string();
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  DataOptions options(std::vector<DataInput> train) {
    DataOptions options;
    options.train = std::move(train);
    options.seq_len = 8;
    options.cache = folder_ / "cache";
    options.num_threads = 1;
    return options;
  }

  DataPair open(const DataOptions& options) { return open_data(options, tokenizer_.get()); }

  void expect_error(const DataOptions& options, ErrorCode code, const std::string& message,
                    bool with_tokenizer = true) {
    try {
      open_data(options, with_tokenizer ? tokenizer_.get() : nullptr);
      ADD_FAILURE() << "no error: " << message;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_THAT(error.what(), HasSubstr(message));
      EXPECT_FALSE(error.hint().empty()) << error.what();
    }
  }

  int64_t cached() const {
    return std::distance(fs::directory_iterator(folder_ / "cache"), fs::directory_iterator());
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  fs::path folder_;
};

TEST_F(OpenDatasetTest, TextJsonlAndPairsMakeOneStream) {
  write("a.txt", "alpha");
  write("b.txt", "beta");
  prepare({write("c.md", "gamma")}, *tokenizer_, folder_ / "pair");
  const auto data = open(options({{path("?.txt"), 0},
                                  {write("d.jsonl", "{\"text\": \"delta\"}"), 0},
                                  {path("pair"), 0}}))
                        .train;
  EXPECT_EQ(data->num_documents(), 4);
  EXPECT_EQ(data->num_tokens(), 5 + 4 + 5 + 5 + 4);
  EXPECT_EQ(data->max_id(), 256);
  const Batch batch = data->windows(0, data->num_windows());
  // The first byte of each document is never a target.
  EXPECT_EQ(batch.num_bytes, 4 + 3 + 4 + 4);
  EXPECT_EQ(batch.num_targets, 15 + 4);
}

TEST_F(OpenDatasetTest, TokenizesOnceUntilSomethingChanges) {
  const std::string file = write("a.txt", "some text");
  const DataOptions data = options({{file, 0}});
  open(data);
  EXPECT_EQ(cached(), 3);  // .bin, .idx, .json
  const uint64_t fingerprint = open(data).train->fingerprint();
  EXPECT_EQ(cached(), 3);
  EXPECT_EQ(open(data).train->fingerprint(), fingerprint);
  write("a.txt", "another text");
  EXPECT_EQ(open(data).train->num_tokens(), 13);
  EXPECT_EQ(cached(), 6);
  DataOptions separated = data;
  separated.separator = " ";
  EXPECT_EQ(open(separated).train->num_documents(), 2);
  EXPECT_EQ(cached(), 9);
}

TEST_F(OpenDatasetTest, WeightsMakeABlend) {
  DataOptions data = options(
      {{write("a.txt", std::string(100, 'a')), 3}, {write("b.txt", std::string(500, 'b')), 1}});
  const auto train = open(data).train;
  EXPECT_EQ(train->blend().weights(), (std::vector<double>{0.75, 0.25}));
  const Batch batch = train->samples(0, 400);
  int64_t of_a = 0;
  for (int64_t r = 0; r < 400; ++r) of_a += batch.tokens[static_cast<size_t>(r * 8)] == 'a';
  EXPECT_EQ(of_a, 300);
}

TEST_F(OpenDatasetTest, ValidationByFractionIsDisjointAndComplete) {
  std::string lines;
  for (int i = 0; i < 400; ++i)
    lines += "{\"text\": \"document number " + std::to_string(1000 + i % 200) + "\"}\n";
  DataOptions data = options({{write("a.jsonl", lines), 0}});
  data.valid_fraction = 0.25;
  const DataPair pair = open(data);
  ASSERT_NE(pair.valid, nullptr);
  EXPECT_EQ(pair.train->num_documents() + pair.valid->num_documents(), 400);
  // Of 200 different documents 50 are held out, standard deviation 6.1; each is there twice.
  EXPECT_NEAR(static_cast<double>(pair.valid->num_documents()), 100, 62);
  const auto documents = [](const Dataset& dataset) {
    const Batch batch = dataset.windows(0, dataset.num_windows());
    std::set<std::vector<int32_t>> found;
    std::vector<int32_t> current;
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
      if (batch.tokens[i] != kByteTokenizerEos) current.push_back(batch.tokens[i]);
      if (batch.targets[i] == kByteTokenizerEos) {
        if (current.size() > 10) found.insert({current.end() - 4, current.end()});
        current.clear();
      }
    }
    return found;
  };
  const auto train = documents(*pair.train);
  const auto valid = documents(*pair.valid);
  EXPECT_GT(valid.size(), 10U);
  for (const auto& document : valid) EXPECT_FALSE(train.contains(document));
}

TEST_F(OpenDatasetTest, ValidationFilesAreOpenedBesideTraining) {
  DataOptions data = options({{write("a.txt", "train text"), 0}});
  EXPECT_EQ(open(data).valid, nullptr);
  data.valid = {{write("b.txt", "valid"), 0}};
  EXPECT_EQ(open(data).valid->num_tokens(), 6);
  EXPECT_EQ(open_inputs(data.valid, data, tokenizer_.get())->num_tokens(), 6);
}

TEST_F(OpenDatasetTest, WrongInputsAreNamed) {
  const std::string text = write("a.txt", "text");
  expect_error(options({}), ErrorCode::kConfig, "data.train is empty");
  expect_error(options({{path("no/*.txt"), 0}}), ErrorCode::kData, "data.train: no file matches");
  expect_error(options({{folder_.string(), 0}}), ErrorCode::kData, "is a folder");
  expect_error(options({{write("empty.txt", ""), 0}}), ErrorCode::kData, "empty.txt");
  expect_error(options({{write("bad.jsonl", "{}"), 0}}), ErrorCode::kData, "bad.jsonl:1");
  expect_error(options({{text, 1}, {text, 0}}), ErrorCode::kConfig, "has no weight");
  expect_error(options({{text, 1}, {text, -1}}), ErrorCode::kConfig, "weight -1");
  expect_error(options({{text, 0}}), ErrorCode::kConfig, "no tokenizer", false);
  DataOptions data = options({{text, 0}});
  data.seq_len = 0;
  expect_error(data, ErrorCode::kConfig, "seq_len = 0");
  data = options({{text, 0}});
  data.valid_fraction = 1.5;
  expect_error(data, ErrorCode::kConfig, "valid_fraction = 1.5");
  data.valid_fraction = 1e-9;
  expect_error(data, ErrorCode::kData, "holds out none of 1 documents");
  data.valid = {{text, 0}};
  expect_error(data, ErrorCode::kConfig, "both given");
  data.valid_fraction = 0;
  data.valid = {{path("none"), 0}};
  expect_error(data, ErrorCode::kData, "data.valid: no file matches");
  data.cache.clear();
  expect_error(data, ErrorCode::kConfig, "no folder for its tokens");
  write("broken.bin", "1234");
  expect_error(options({{write("broken.idx", "nonsense"), 0}}), ErrorCode::kData, "broken.idx");
}

}  // namespace
}  // namespace trireme::data
