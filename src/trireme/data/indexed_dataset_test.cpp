#include "trireme/data/indexed_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "trireme/base/error.h"

namespace trireme::data {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class IndexedDatasetTest : public ::testing::Test {
 protected:
  IndexedDatasetTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() /
              (std::string("trireme-") + info->test_suite_name() + "-" + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~IndexedDatasetTest() override { fs::remove_all(folder_); }

  void write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }
  fs::path prefix() const { return folder_ / "corpus"; }
  fs::path folder_;
};

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
std::string bytes_of(const std::vector<int64_t>& values) {
  std::string out;
  for (const int64_t value : values) put(out, static_cast<T>(value));
  return out;
}

/// An index as Megatron-LM lays it out, from its specification: the peer of format_token_index.
std::string mmap_index(uint8_t code, const std::vector<int64_t>& lengths,
                       const std::vector<int64_t>& offsets, const std::vector<int64_t>& documents) {
  std::string out("MMIDIDX\0\0", 9);
  put<uint64_t>(out, 1);
  put<uint8_t>(out, code);
  put<uint64_t>(out, lengths.size());
  put<uint64_t>(out, documents.size());
  return out + bytes_of<int32_t>(lengths) + bytes_of<int64_t>(offsets) +
         bytes_of<int64_t>(documents);
}

std::string legacy_index(uint64_t code, uint64_t size, const std::vector<int64_t>& lengths,
                         const std::vector<int64_t>& documents) {
  std::string out("TNTIDX\0\0", 8);
  std::vector<int64_t> dimensions{0};
  std::vector<int64_t> starts{0};
  for (const int64_t length : lengths) {
    dimensions.push_back(dimensions.back() + 1);
    starts.push_back(starts.back() + length);
  }
  put<uint64_t>(out, 1);
  put<uint64_t>(out, code);
  put<uint64_t>(out, size);
  put<uint64_t>(out, lengths.size());
  put<uint64_t>(out, lengths.size());
  put<uint64_t>(out, documents.size());
  return out + bytes_of<int64_t>(dimensions) + bytes_of<int64_t>(starts) +
         bytes_of<int64_t>(lengths) + bytes_of<int64_t>(documents);
}

std::vector<int32_t> document(const IndexedDataset& dataset, int64_t d) {
  std::vector<int32_t> ids(static_cast<size_t>(dataset.document_length(d)));
  dataset.read(d, 0, ids);
  return ids;
}

std::span<const std::byte> view(const std::string& bytes) {
  return std::as_bytes(std::span(bytes));
}

std::string error_of(const std::string& index, int64_t bin_bytes) {
  try {
    parse_token_index(view(index), bin_bytes, "x.idx");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), ::testing::StartsWith("x.idx: "));
    EXPECT_FALSE(error.hint().empty());
    return error.what();
  }
  return "";
}

TEST_F(IndexedDatasetTest, WhatIsWrittenIsReadBackForRandomDocuments) {
  std::mt19937_64 random(1);
  for (const TokenType type : {TokenType::kUint8, TokenType::kInt8, TokenType::kInt16,
                               TokenType::kUint16, TokenType::kInt32, TokenType::kInt64}) {
    const int32_t limit = token_size(type) == 1 ? 127 : token_size(type) == 2 ? 32767 : 2147483647;
    std::vector<std::vector<int32_t>> documents(random() % 40 + 1);
    for (auto& ids : documents) {
      ids.resize(random() % 100);
      for (auto& id : ids) id = static_cast<int32_t>(random() % (static_cast<uint64_t>(limit) + 1));
    }
    documents.back().push_back(limit);
    IndexedDatasetWriter writer(prefix(), type);
    for (const auto& ids : documents) writer.add(ids);
    writer.finish();

    const IndexedDataset dataset(prefix());
    EXPECT_EQ(dataset.type(), type);
    ASSERT_EQ(dataset.num_documents(), static_cast<int64_t>(documents.size()));
    for (size_t d = 0; d < documents.size(); ++d) {
      EXPECT_EQ(document(dataset, static_cast<int64_t>(d)), documents[d]);
    }
    EXPECT_EQ(dataset.max_id(), limit);
  }
}

TEST_F(IndexedDatasetTest, WrittenIndexHasMegatronsBytes) {
  const std::vector<int32_t> lengths{3, 0, 2};
  EXPECT_EQ(format_token_index(TokenType::kUint16, lengths),
            mmap_index(8, {3, 0, 2}, {0, 6, 6}, {0, 1, 2, 3}));
  EXPECT_EQ(format_token_index(TokenType::kInt32, lengths),
            mmap_index(4, {3, 0, 2}, {0, 12, 12}, {0, 1, 2, 3}));
}

TEST_F(IndexedDatasetTest, ReadsDocumentsOfSeveralSequencesInAnyOrder) {
  // Sequences lie in the file as "4 5", "1 2 3", ""; the first document is the last two of them.
  write("corpus.bin", bytes_of<int32_t>({4, 5, 1, 2, 3}));
  write("corpus.idx", mmap_index(4, {3, 0, 2}, {8, 20, 0}, {0, 2, 2, 3}));
  const IndexedDataset dataset(prefix());
  ASSERT_EQ(dataset.num_documents(), 3);
  EXPECT_EQ(document(dataset, 0), (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(document(dataset, 1), std::vector<int32_t>{});
  EXPECT_EQ(document(dataset, 2), (std::vector<int32_t>{4, 5}));
}

TEST_F(IndexedDatasetTest, ReadsPartsAcrossSequences) {
  write("corpus.bin", bytes_of<uint16_t>({0, 1, 2, 3, 4, 5, 6, 65535}));
  write("corpus.idx", mmap_index(8, {2, 3, 3}, {0, 4, 10}, {0, 3}));
  const IndexedDataset dataset(prefix());
  std::vector<int32_t> ids(6);
  dataset.read(0, 1, ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(dataset.max_id(), 65535);
}

TEST_F(IndexedDatasetTest, ReadsTheLegacyIndexInEveryType) {
  const std::vector<int64_t> ids{7, 0, 127, 3, 4};
  const std::vector<std::pair<uint64_t, std::string>> types{
      {1, bytes_of<uint8_t>(ids)}, {2, bytes_of<int8_t>(ids)},  {3, bytes_of<int16_t>(ids)},
      {4, bytes_of<int32_t>(ids)}, {5, bytes_of<int64_t>(ids)}, {8, bytes_of<uint16_t>(ids)}};
  for (const auto& [code, bytes] : types) {
    write("corpus.bin", bytes);
    write("corpus.idx", legacy_index(code, bytes.size() / ids.size(), {2, 3}, {0, 1, 2}));
    const IndexedDataset dataset(prefix());
    ASSERT_EQ(dataset.num_documents(), 2);
    EXPECT_EQ(document(dataset, 0), (std::vector<int32_t>{7, 0}));
    EXPECT_EQ(document(dataset, 1), (std::vector<int32_t>{127, 3, 4}));
  }
}

TEST_F(IndexedDatasetTest, AcceptsSequenceModes) {
  const std::string index = mmap_index(8, {2, 1}, {0, 4}, {0, 1, 2}) + std::string(2, '\0');
  EXPECT_EQ(parse_token_index(view(index), 6, "x.idx").lengths, (std::vector<int64_t>{2, 1}));
}

TEST_F(IndexedDatasetTest, EveryTruncationIsAnError) {
  for (const std::string& index :
       {mmap_index(8, {3, 0, 2}, {0, 6, 6}, {0, 1, 2, 3}), legacy_index(4, 4, {2, 3}, {0, 1, 2})}) {
    for (size_t size = 0; size < index.size(); ++size) {
      EXPECT_NE(error_of(index.substr(0, size), 20), "") << size;
    }
    EXPECT_THAT(error_of(index + "1234567", 20), HasSubstr("7 bytes follow"));
  }
}

TEST_F(IndexedDatasetTest, DamageNamesTheReason) {
  EXPECT_THAT(error_of("PK\3\4 something else", 0), HasSubstr("not a Megatron index"));
  EXPECT_THAT(error_of(mmap_index(6, {1}, {0}, {0, 1}), 8), HasSubstr("floating point"));
  EXPECT_THAT(error_of(mmap_index(9, {1}, {0}, {0, 1}), 8), HasSubstr("dtype code 9"));
  EXPECT_THAT(error_of(mmap_index(0, {1}, {0}, {0, 1}), 8), HasSubstr("dtype code 0"));
  EXPECT_THAT(error_of(mmap_index(8, {-1}, {0}, {0, 1}), 8), HasSubstr("length -1"));
  EXPECT_THAT(error_of(mmap_index(8, {2}, {1}, {0, 1}), 8), HasSubstr("not a multiple of 2"));
  EXPECT_THAT(error_of(mmap_index(8, {2}, {-2}, {0, 1}), 8), HasSubstr("byte -2"));
  EXPECT_THAT(error_of(mmap_index(8, {5}, {0}, {0, 1}), 8), HasSubstr("past the end of the .bin"));
  EXPECT_THAT(error_of(mmap_index(8, {1}, {INT64_MAX - 1}, {0, 1}), 8),
              HasSubstr("past the end of the .bin"));
  EXPECT_THAT(error_of(mmap_index(8, {1}, {0}, {1, 1}), 8), HasSubstr("begin at sequence 0"));
  EXPECT_THAT(error_of(mmap_index(8, {1, 1}, {0, 2}, {0, 2, 1, 2}), 8),
              HasSubstr("document 2 begins before"));
  EXPECT_THAT(error_of(mmap_index(8, {1, 1}, {0, 2}, {0, 1}), 8), HasSubstr("end at sequence 1"));
  EXPECT_THAT(error_of(mmap_index(8, {1}, {0}, {}), 8), HasSubstr("begin at sequence 0"));
  EXPECT_THAT(error_of(legacy_index(4, 2, {1}, {0, 1}), 8), HasSubstr("element size 2"));
  std::string version = mmap_index(8, {1}, {0}, {0, 1});
  version[9] = 2;
  EXPECT_THAT(error_of(version, 8), HasSubstr("version 2"));
  std::string count = mmap_index(8, {1}, {0}, {0, 1});
  std::memset(count.data() + 18, 0xff, 8);
  EXPECT_THAT(error_of(count, 8), HasSubstr("sequence lengths"));
}

TEST_F(IndexedDatasetTest, NoFlippedBitMakesReadsLeaveTheFile) {
  const std::string good = mmap_index(8, {3, 0, 2}, {0, 6, 6}, {0, 1, 2, 3});
  write("corpus.bin", bytes_of<uint16_t>({1, 2, 3, 4, 5}));
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string index = good;
    index[bit / 8] = static_cast<char>(index[bit / 8] ^ (1 << (bit % 8)));
    try {
      parse_token_index(view(index), 10, "corpus.idx");
      write("corpus.idx", index);
      const IndexedDataset dataset(prefix());
      for (int64_t d = 0; d < dataset.num_documents(); ++d) document(dataset, d);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData) << error.what();
    }
  }
}

TEST_F(IndexedDatasetTest, IdsThatAreNotIdsAreErrors) {
  for (const int64_t bad : {int64_t{-1}, int64_t{1} << 31}) {
    write("corpus.bin", bytes_of<int64_t>({1, bad}));
    write("corpus.idx", mmap_index(5, {2}, {0}, {0, 1}));
    const IndexedDataset dataset(prefix());
    EXPECT_THROW(document(dataset, 0), Error);
  }
  IndexedDatasetWriter writer(prefix(), TokenType::kUint16);
  EXPECT_THROW(writer.add(std::vector<int32_t>{65536}), Error);
  EXPECT_THROW(writer.add(std::vector<int32_t>{-1}), Error);
}

TEST_F(IndexedDatasetTest, AnUnfinishedWriterLeavesWhatWasThere) {
  {
    IndexedDatasetWriter writer(prefix(), TokenType::kUint16);
    writer.add(std::vector<int32_t>{1, 2});
    writer.finish();
  }
  {
    IndexedDatasetWriter writer(prefix(), TokenType::kUint16);
    writer.add(std::vector<int32_t>{3});
  }
  EXPECT_EQ(document(IndexedDataset(prefix()), 0), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 2);
}

TEST_F(IndexedDatasetTest, TheFingerprintOfALongFileSeesItsEndsItsSizeAndItsIndex) {
  std::vector<std::byte> bin(size_t{3} << 20, std::byte{7});
  const uint64_t first = token_fingerprint(1, bin);
  EXPECT_EQ(token_fingerprint(1, bin), first);
  EXPECT_NE(token_fingerprint(2, bin), first);
  EXPECT_NE(token_fingerprint(1, std::span(bin).first(bin.size() - 1)), first);
  for (const size_t place : {size_t{0}, size_t{4095}, bin.size() - 4096, bin.size() - 1}) {
    bin[place] = std::byte{8};
    EXPECT_NE(token_fingerprint(1, bin), first) << place;
    bin[place] = std::byte{7};
  }
  // No more than 12 KiB lie between the beginnings of two pieces of 4 KiB.
  std::fill_n(bin.begin() + 1000000, 12 << 10, std::byte{8});
  EXPECT_NE(token_fingerprint(1, bin), first);
}

TEST_F(IndexedDatasetTest, TheWriterKnowsTheFingerprintBeforehand) {
  IndexedDatasetWriter writer(prefix(), TokenType::kInt32);
  std::vector<int32_t> ids(700000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * i % 1000003);
  writer.add(ids);
  writer.add(std::vector<int32_t>{5});
  const uint64_t before = writer.fingerprint();
  writer.finish();
  EXPECT_EQ(IndexedDataset(prefix()).fingerprint(), before);
}

TEST_F(IndexedDatasetTest, MissingFilesAreNamed) {
  try {
    const IndexedDataset dataset(prefix());
    FAIL() << "opened what is not there";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("corpus.bin"));
  }
}

TEST_F(IndexedDatasetTest, PrefixMayCarryAnExtension) {
  EXPECT_EQ(token_prefix("a/b.bin"), "a/b");
  EXPECT_EQ(token_prefix("a/b.idx"), "a/b");
  EXPECT_EQ(token_prefix("a/b.v2"), "a/b.v2");
}

}  // namespace
}  // namespace trireme::data
