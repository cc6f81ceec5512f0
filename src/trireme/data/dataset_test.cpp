#include "trireme/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "trireme/base/error.h"
#include "trireme/data/loader.h"

namespace trireme::data {
namespace {

namespace fs = std::filesystem;
using Documents = std::vector<std::vector<int32_t>>;

class DatasetTest : public ::testing::Test {
 protected:
  DatasetTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string("trireme-dataset-") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~DatasetTest() override { fs::remove_all(folder_); }

  std::shared_ptr<const IndexedDataset> store(const Documents& documents) {
    const fs::path prefix = folder_ / std::to_string(++stored_);
    // Without the writer, whose fsyncs would be most of these tests.
    std::vector<int32_t> lengths;
    std::ofstream ids(prefix.string() + ".bin", std::ios::binary);
    for (const auto& document : documents) {
      lengths.push_back(static_cast<int32_t>(document.size()));
      ids.write(reinterpret_cast<const char*>(document.data()),
                static_cast<std::streamsize>(document.size() * sizeof(int32_t)));
    }
    std::ofstream(prefix.string() + ".idx", std::ios::binary)
        << format_token_index(TokenType::kInt32, lengths);
    ids.close();
    return std::make_shared<const IndexedDataset>(prefix);
  }

  std::shared_ptr<TokenStream> stream(const Documents& documents) {
    auto stream = std::make_shared<TokenStream>();
    stream->add_all(store(documents));
    return stream;
  }

  Dataset dataset(const Documents& documents, int64_t seq_len, Packing packing, uint64_t seed = 0,
                  std::shared_ptr<const ByteLengths> bytes = nullptr) {
    return Dataset({{stream(documents), 1.0, "test"}}, seq_len, packing, seed, std::move(bytes));
  }

  /// Documents whose ids are all different, so that a token says where it came from.
  Documents distinct(std::mt19937_64& random, size_t max_documents, size_t max_length) {
    Documents documents(random() % max_documents + 1);
    for (auto& document : documents) {
      document.resize(random() % (max_length + 1));
      for (auto& id : document) id = next_id_++;
    }
    documents.push_back({next_id_, next_id_ + 1});
    next_id_ += 2;
    return documents;
  }

  fs::path folder_;
  int stored_ = 0;
  int32_t next_id_ = 0;
};

TEST_F(DatasetTest, PacksDocumentsAsTheSpecificationSays) {
  const Documents documents{{10, 11, 12}, {20, 21}, {30, 31, 32, 33}};
  const Batch batch = dataset(documents, 5, Packing::kDocuments).windows(0, 9);
  ASSERT_EQ(batch.rows, 2);
  EXPECT_EQ(batch.tokens, (std::vector<int32_t>{10, 11, 12, 20, 21, 30, 31, 32, 0, 0}));
  const int32_t no = kIgnoredTarget;
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{11, 12, no, 21, no, 31, 32, 33, no, no}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 0, 1, 0, 1, 2, 0, 1}));
  EXPECT_EQ(batch.segments, (std::vector<std::vector<int32_t>>{{0, 3}, {0, 3}}));
  EXPECT_EQ(batch.num_targets, 6);
}

TEST_F(DatasetTest, PacksAStreamAsTheSpecificationSays) {
  const Documents documents{{10, 11, 12}, {}, {20, 21}, {30, 31, 32, 33}};
  const Batch batch = dataset(documents, 5, Packing::kStream).windows(0, 9);
  ASSERT_EQ(batch.rows, 2);
  EXPECT_EQ(batch.tokens, (std::vector<int32_t>{10, 11, 12, 20, 21, 30, 31, 32, 0, 0}));
  const int32_t no = kIgnoredTarget;
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{11, 12, 20, 21, 30, 31, 32, 33, no, no}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
  EXPECT_EQ(batch.segments, (std::vector<std::vector<int32_t>>{{0}, {0}}));
  EXPECT_EQ(batch.num_targets, 8);
}

// Every token that has one before it (in its document, or in the stream) is a target exactly once,
// behind that one.
TEST_F(DatasetTest, LosesAndRepeatsNothingOnRandomDocuments) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 40; ++round) {
    const Documents documents = distinct(random, 12, 30);
    for (const Packing packing : {Packing::kDocuments, Packing::kStream}) {
      std::map<int32_t, int32_t> expected;  // target -> the token before it
      int32_t last = -1;
      for (const auto& document : documents) {
        if (packing == Packing::kDocuments) last = -1;
        for (const int32_t id : document) {
          if (last >= 0) expected[id] = last;
          last = id;
        }
      }
      const int64_t seq_len = static_cast<int64_t>(random() % 20 + 1);
      const Dataset data = dataset(documents, seq_len, packing);
      const Batch batch = data.windows(0, data.num_windows() + 5);
      ASSERT_EQ(batch.rows, data.num_windows());
      ASSERT_EQ(batch.segments.size(), static_cast<size_t>(batch.rows));
      std::map<int32_t, int32_t> found;
      for (size_t i = 0; i < batch.targets.size(); ++i) {
        if (batch.targets[i] == kIgnoredTarget) continue;
        ASSERT_TRUE(found.emplace(batch.targets[i], batch.tokens[i]).second) << "predicted twice";
      }
      EXPECT_EQ(found, expected);
      EXPECT_EQ(batch.num_targets, static_cast<int64_t>(expected.size()));
    }
  }
}

// Inside a segment every token belongs to the same document and positions count from 0.
TEST_F(DatasetTest, SegmentsAreDocuments) {
  std::mt19937_64 random(4);
  for (int round = 0; round < 40; ++round) {
    const Documents documents = distinct(random, 12, 20);
    std::map<int32_t, size_t> home;
    for (size_t d = 0; d < documents.size(); ++d) {
      for (const int32_t id : documents[d]) home[id] = d;
    }
    const int64_t seq_len = static_cast<int64_t>(random() % 20 + 1);
    const Dataset data = dataset(documents, seq_len, Packing::kDocuments);
    const int64_t predicted = data.num_tokens() - 1;
    const Batch batch = data.windows(0, data.num_windows());
    for (int64_t r = 0; r < batch.rows; ++r) {
      auto segments = batch.segments[static_cast<size_t>(r)];
      ASSERT_EQ(segments.front(), 0);
      ASSERT_TRUE(std::is_sorted(segments.begin(), segments.end(), std::less_equal<>()));
      ASSERT_LT(segments.back(), seq_len);
      segments.push_back(static_cast<int32_t>(seq_len));
      size_t previous = documents.size();
      for (size_t s = 0; s + 1 < segments.size(); ++s) {
        const int64_t begin = r * seq_len + segments[s];
        if (begin >= predicted) break;  // padding
        const size_t document = home[batch.tokens[static_cast<size_t>(begin)]];
        EXPECT_NE(document, previous) << "one document in two segments";
        previous = document;
        for (int64_t i = begin; i < r * seq_len + segments[s + 1]; ++i) {
          ASSERT_EQ(batch.positions[static_cast<size_t>(i)], i - begin);
          ASSERT_EQ(home[batch.tokens[static_cast<size_t>(i)]], document);
        }
      }
    }
  }
}

TEST_F(DatasetTest, CountsTheBytesBehindTargets) {
  const auto bytes = std::make_shared<const ByteLengths>(ByteLengths{0, 1, 2, 4, 8});
  const Documents documents{{1, 2, 3, 0}, {4, 4, 0}};
  // Targets 2 3 0 | 4 0 inside documents; the first 4 is added by a stream.
  EXPECT_EQ(dataset(documents, 3, Packing::kDocuments, 0, bytes).windows(0, 9).num_bytes,
            2 + 4 + 8);
  EXPECT_EQ(dataset(documents, 3, Packing::kStream, 0, bytes).windows(0, 9).num_bytes,
            2 + 4 + 8 + 8);
  EXPECT_EQ(dataset(documents, 3, Packing::kStream).windows(0, 9).num_bytes, 0);
}

TEST_F(DatasetTest, EveryWindowExactlyOnceAnEpochAndEveryEpochAnew) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 20; ++round) {
    const Dataset data = dataset(distinct(random, 20, 40), static_cast<int64_t>(random() % 9 + 1),
                                 Packing::kStream, random());
    const int64_t windows = data.num_windows();
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int> seen(static_cast<size_t>(windows), 0);
      for (int64_t i = 0; i < windows; ++i) {
        ++seen[static_cast<size_t>(data.place(epoch * windows + i).window)];
      }
      EXPECT_THAT(seen, ::testing::Each(1));
    }
  }
}

TEST_F(DatasetTest, EpochsOfABlendAreThoseOfEachPart) {
  std::mt19937_64 random(6);
  const auto small = stream(distinct(random, 5, 20));
  const auto large = stream(distinct(random, 40, 50));
  const Dataset data({{small, 3, "small"}, {large, 1, "large"}}, 4, Packing::kStream, 9);
  const std::vector<int64_t> windows{small->num_windows(4), large->num_windows(4)};
  std::vector<std::vector<int64_t>> order(2);
  for (int64_t sample = 0; sample < 8 * data.num_windows(); ++sample) {
    const auto [part, window] = data.place(sample);
    order[static_cast<size_t>(part)].push_back(window);
  }
  for (size_t p = 0; p < 2; ++p) {
    const auto size = static_cast<size_t>(windows[p]);
    ASSERT_GE(order[p].size(), size);
    for (size_t begin = 0; begin + size <= order[p].size(); begin += size) {
      std::vector<int64_t> epoch(order[p].begin() + static_cast<ptrdiff_t>(begin),
                                 order[p].begin() + static_cast<ptrdiff_t>(begin + size));
      std::sort(epoch.begin(), epoch.end());
      for (size_t i = 0; i < size; ++i) ASSERT_EQ(epoch[i], static_cast<int64_t>(i));
    }
  }
}

TEST_F(DatasetTest, BatchesAreCutsOfOneSequenceOfSamples) {
  std::mt19937_64 random(8);
  const Dataset data = dataset(distinct(random, 20, 40), 7, Packing::kDocuments, 1);
  const Batch whole = data.samples(100, 12);
  for (const int64_t rows : {1, 2, 3, 4, 6}) {
    for (int64_t first = 0; first < 12; first += rows) {
      const Batch part = data.samples(100 + first, rows);
      const std::vector<int32_t> expected(whole.tokens.begin() + first * 7,
                                          whole.tokens.begin() + (first + rows) * 7);
      EXPECT_EQ(part.tokens, expected);
    }
  }
}

TEST_F(DatasetTest, TooLittleTextIsAnError) {
  for (const Documents& documents : {Documents{}, Documents{{}}, Documents{{5}}}) {
    try {
      dataset(documents, 4, Packing::kStream);
      ADD_FAILURE() << "accepted nothing";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_THAT(error.what(), ::testing::HasSubstr("test"));
    }
  }
}

TEST_F(DatasetTest, FingerprintNoticesAChangedCorpus) {
  const uint64_t one = dataset({{1, 2, 3}, {4}}, 2, Packing::kStream).fingerprint();
  EXPECT_EQ(one, dataset({{1, 2, 3}, {4}}, 2, Packing::kStream).fingerprint());
  EXPECT_NE(one, dataset({{1, 2}, {3, 4}}, 2, Packing::kStream).fingerprint());
  EXPECT_NE(one, dataset({{1, 2, 3}, {4}}, 3, Packing::kStream).fingerprint());
  EXPECT_NE(one, dataset({{1, 2, 3}, {4}}, 2, Packing::kStream, 1).fingerprint());
}

TEST_F(DatasetTest, UnknownPackingSuggestsTheNearest) {
  EXPECT_EQ(parse_packing("documents"), Packing::kDocuments);
  EXPECT_EQ(parse_packing("stream"), Packing::kStream);
  try {
    parse_packing("document");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_THAT(error.hint(), ::testing::HasSubstr("documents"));
  }
}

bool equal(const Batch& a, const Batch& b) {
  return a.rows == b.rows && a.seq_len == b.seq_len && a.tokens == b.tokens &&
         a.targets == b.targets && a.positions == b.positions && a.segments == b.segments &&
         a.num_targets == b.num_targets && a.num_bytes == b.num_bytes;
}

TEST_F(DatasetTest, LoaderGivesTheSameBatchesForAnyNumberOfReaders) {
  std::mt19937_64 random(9);
  const auto data =
      std::make_shared<const Dataset>(dataset(distinct(random, 30, 60), 8, Packing::kDocuments, 2));
  for (const int readers : {1, 2, 5}) {
    for (const int64_t prefetch : {1, 3, 16}) {
      Loader loader(data, consecutive_samples(4), {0, prefetch, readers});
      for (int64_t n = 0; n < 40; ++n) {
        EXPECT_EQ(loader.position(), n);
        ASSERT_TRUE(equal(loader.next(), data->samples(4 * n, 4))) << n << " with " << readers;
      }
    }
  }
}

TEST_F(DatasetTest, LoaderResumesAndSeeksAnywhere) {
  std::mt19937_64 random(10);
  const auto data =
      std::make_shared<const Dataset>(dataset(distinct(random, 30, 60), 8, Packing::kDocuments, 2));
  // A ramp: two rows in each of the first 100 micro-batches, three after them.
  const SampleOrder ramp = [](int64_t n) {
    return n < 100 ? SampleRange{2 * n, 2} : SampleRange{200 + 3 * (n - 100), 3};
  };
  Loader loader(data, ramp, {int64_t{1} << 40, 4, 2});
  ASSERT_TRUE(equal(loader.next(), data->samples(200 + 3 * ((int64_t{1} << 40) - 100), 3)));
  for (int i = 0; i < 50; ++i) {
    const auto n = static_cast<int64_t>(random() % 200);
    loader.seek(n);
    const SampleRange range = ramp(n);
    ASSERT_TRUE(equal(loader.next(), data->samples(range.first, range.rows)));
  }
  EXPECT_GE(loader.exposed_seconds(), 0);
}

TEST_F(DatasetTest, LoaderThrowsWhatAReaderThrew) {
  const auto data = std::make_shared<const Dataset>(dataset({{1, 2, 3}}, 2, Packing::kStream));
  Loader loader(data, [](int64_t n) {
    if (n == 2) throw Error(ErrorCode::kData, "unreadable");
    return SampleRange{n, 1};
  });
  loader.next();
  loader.next();
  EXPECT_THROW(loader.next(), Error);
  EXPECT_EQ(loader.next().rows, 1);
}

}  // namespace
}  // namespace trireme::data
