#include "trireme/data/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <set>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/json.h"
#include "trireme/data/default_corpus.h"
#include "trireme/data/indexed_dataset.h"
#include "trireme/data/summary.h"

namespace trireme::data {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PrepareTest : public ::testing::Test {
 protected:
  PrepareTest() : tokenizer_(make_byte_tokenizer()) {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string("trireme-prepare-") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~PrepareTest() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& bytes) {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }

  /// Documents as text; checks that each ends with the end-of-text id.
  std::vector<std::string> documents(const fs::path& prefix) {
    const IndexedDataset dataset(prefix);
    std::vector<std::string> texts;
    for (int64_t d = 0; d < dataset.num_documents(); ++d) {
      std::vector<int32_t> ids(static_cast<size_t>(dataset.document_length(d)));
      dataset.read(d, 0, ids);
      EXPECT_EQ(ids.back(), kByteTokenizerEos);
      ids.pop_back();
      texts.emplace_back(ids.begin(), ids.end());
    }
    return texts;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  fs::path folder_;
};

TEST_F(PrepareTest, WritesEveryDocumentInOrderWithItsEnd) {
  const std::vector<fs::path> files{write("b.txt", "two words"),
                                    write("a.jsonl", "{\"text\": \"x\"}\n{\"text\": \"yz\"}\n"),
                                    write("empty.txt", "")};
  const PrepareResult result = prepare(files, *tokenizer_, folder_ / "out");
  EXPECT_THAT(documents(folder_ / "out"), ElementsAre("two words", "x", "yz"));
  EXPECT_EQ(result.train.documents, 3);
  EXPECT_EQ(result.train.bytes, 12);
  EXPECT_EQ(result.train.tokens, 15);
  EXPECT_EQ(result.train.max_id, 256);
  const Json description = parse_json(read_file(folder_ / "out.json"), "out.json");
  EXPECT_EQ(description["tokens"], 15);
  EXPECT_EQ(description["bytes"], 12);
  EXPECT_EQ(description["tokenizer"], tokenizer_->fingerprint());
  EXPECT_EQ(IndexedDataset(folder_ / "out").max_id(), 256);
}

TEST_F(PrepareTest, TheDescriptionIsBelievedOnlyOfItsOwnFiles) {
  prepare({write("a.txt", "one"), write("b.txt", "three")}, *tokenizer_, folder_ / "out");
  const auto path = [this](const char* suffix) { return folder_ / (std::string("out") + suffix); };
  const auto largest = [this] { return IndexedDataset(folder_ / "out").max_id(); };
  const std::string bin = read_file(path(".bin"));
  const std::string index = read_file(path(".idx"));
  Json description = parse_json(read_file(path(".json")), "out.json");
  EXPECT_EQ(description["fingerprint"], hash_text(IndexedDataset(folder_ / "out").fingerprint()));
  // A mark that the ids do not hold shows who was asked.
  description["max_id"] = 999;
  write("out.json", description.dump());
  EXPECT_EQ(largest(), 999);

  std::string other = bin;  // as long, with a larger id at the end: 300 in place of 256
  other[other.size() - 2] = 300 - 256;
  write("out.bin", other);
  EXPECT_EQ(largest(), 300);
  write("out.bin", bin);
  EXPECT_EQ(largest(), 999);
  write("out.idx", format_token_index(TokenType::kUint16, std::vector<int32_t>{6, 4}));
  EXPECT_EQ(largest(), 256);
  write("out.idx", index);
  EXPECT_EQ(largest(), 999);
  description.erase("fingerprint");  // as an older program wrote it
  write("out.json", description.dump());
  EXPECT_EQ(largest(), 256);
}

TEST_F(PrepareTest, ASpelledOutSpecialTokenIsText) {
  prepare({write("a.txt", "a<|endoftext|>b")}, *tokenizer_, folder_ / "out");
  EXPECT_THAT(documents(folder_ / "out"), ElementsAre("a<|endoftext|>b"));
}

TEST_F(PrepareTest, ThreadsDoNotChangeTheFiles) {
  std::mt19937_64 random(1);
  std::vector<fs::path> files;
  for (int i = 0; i < 20; ++i) {
    files.push_back(
        write(fmt::format("f{}", i), std::string(random() % 5000, static_cast<char>('a' + i))));
  }
  PrepareOptions options;
  options.num_threads = 1;
  prepare(files, *tokenizer_, folder_ / "one", options);
  options.num_threads = 4;
  prepare(files, *tokenizer_, folder_ / "four", options);
  EXPECT_EQ(read_file(folder_ / "one.bin"), read_file(folder_ / "four.bin"));
  EXPECT_EQ(read_file(folder_ / "one.idx"), read_file(folder_ / "four.idx"));
}

TEST_F(PrepareTest, ALongFileIsOneDocument) {
  std::string text;
  for (int i = 0; text.size() < (size_t{2} << 20); ++i) text += "line " + std::to_string(i) + "\n";
  PrepareOptions options;
  options.batch_bytes = size_t{300} << 10;
  prepare({write("long.txt", text), write("short.txt", "s")}, *tokenizer_, folder_ / "out",
          options);
  EXPECT_EQ(documents(folder_ / "out"), (std::vector<std::string>{text, "s"}));
}

TEST_F(PrepareTest, DuplicatesAreLeftOut) {
  const std::vector<fs::path> files{write("a", "same"), write("b", "other"), write("c", "same")};
  PrepareOptions options;
  options.deduplicate = true;
  EXPECT_EQ(prepare(files, *tokenizer_, folder_ / "out", options).duplicates, 1);
  EXPECT_THAT(documents(folder_ / "out"), ElementsAre("same", "other"));
}

TEST_F(PrepareTest, TheSplitIsByContentWhateverTheOrder) {
  std::vector<fs::path> files;
  for (int i = 0; i < 300; ++i) {
    files.push_back(write(fmt::format("f{}", i), fmt::format("document {}", i % 200)));
  }
  PrepareOptions options;
  options.valid_fraction = 0.3;
  const PrepareResult result = prepare(files, *tokenizer_, folder_ / "out", options);
  auto train = documents(folder_ / "out");
  auto valid = documents(folder_ / "out-valid");
  EXPECT_EQ(train.size() + valid.size(), 300U);
  EXPECT_EQ(result.valid.documents, static_cast<int64_t>(valid.size()));
  // 200 different ones, each held out with probability 0.3: 60, standard deviation 6.5.
  const std::set<std::string> held(valid.begin(), valid.end());
  EXPECT_NEAR(static_cast<double>(held.size()), 60, 33);
  for (const auto& text : train) EXPECT_FALSE(held.contains(text)) << text;

  std::reverse(files.begin(), files.end());
  prepare(files, *tokenizer_, folder_ / "reversed", options);
  const auto again = documents(folder_ / "reversed-valid");
  EXPECT_EQ(held, std::set<std::string>(again.begin(), again.end()));
}

TEST_F(PrepareTest, WhatAKilledWriterLeftOfThisPairIsRemoved) {
  const auto text = write("a.txt", "text");
  for (const char* name : {".x.bin.12.0.tmp", ".x.idx.12.3.tmp", ".x.json.12.2.tmp",
                           ".y.bin.12.0.tmp", ".x.bin.tmp"}) {
    write(std::string("out/") + name, "half");
  }
  prepare({text}, *tokenizer_, folder_ / "out" / "x");
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "out"))
    names.insert(entry.path().filename().string());
  EXPECT_EQ(names,
            (std::set<std::string>{"x.bin", "x.idx", "x.json", ".y.bin.12.0.tmp", ".x.bin.tmp"}));
}

TEST_F(PrepareTest, FailuresLeaveNothingBehind) {
  const auto bad = write("bad.jsonl", "{\"text\": \"x\"}\n{");
  EXPECT_THROW(prepare({bad}, *tokenizer_, folder_ / "out" / "x"), Error);
  EXPECT_THROW(prepare({write("blank", "")}, *tokenizer_, folder_ / "out" / "x"), Error);
  set_interrupted(true);
  try {
    prepare({write("a", "text")}, *tokenizer_, folder_ / "out" / "x");
    ADD_FAILURE() << "not interrupted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInterrupted);
  }
  set_interrupted(false);
  EXPECT_TRUE(fs::is_empty(folder_ / "out"));
}

TEST_F(PrepareTest, ByteLengthsAddUpToTheText) {
  const auto lengths = byte_lengths_of(*tokenizer_);
  ASSERT_EQ(lengths.size(), 257U);
  EXPECT_THAT(std::vector<int32_t>(lengths.begin(), lengths.end() - 1), ::testing::Each(1));
  EXPECT_EQ(lengths.back(), 0);
}

TEST_F(PrepareTest, HeldOutIsTheFractionAsked) {
  std::mt19937_64 random(2);
  int held = 0;
  for (int i = 0; i < 100000; ++i) {
    const uint64_t hash = random();
    held += held_out(hash, 0.1);
    EXPECT_FALSE(held_out(hash, 0));
    EXPECT_TRUE(held_out(hash, 1));
    // A larger fraction holds out the same documents and more.
    EXPECT_LE(held_out(hash, 0.1), held_out(hash, 0.2));
  }
  EXPECT_NEAR(held, 10000, 5 * 95);  // five standard deviations
}

TEST_F(PrepareTest, SummariesCountWhatIsThere) {
  // Nearest rank of 1 .. 10: the 5th, 9th, 10th.
  const LengthSummary lengths = summarize_lengths({10, 9, 8, 7, 6, 5, 4, 3, 2, 1});
  EXPECT_EQ(lengths.total, 55);
  EXPECT_EQ(lengths.median, 5);
  EXPECT_EQ(lengths.p90, 9);
  EXPECT_EQ(lengths.p99, 10);
  using Bins = std::vector<std::pair<int64_t, int64_t>>;
  EXPECT_EQ(lengths.histogram, (Bins{{1, 1}, {2, 2}, {4, 4}, {8, 3}}));
  EXPECT_EQ(summarize_lengths({}).count, 0);

  const auto text = write("a.txt", "hello");
  prepare({text}, *tokenizer_, folder_ / "out");
  const DataSummary pair = summarize_data((folder_ / "out.bin").string(), {}, tokenizer_.get());
  EXPECT_EQ(pair.kind, "tokens");
  EXPECT_EQ(pair.tokens.total, 6);
  EXPECT_EQ(pair.sample, "hello");
  EXPECT_EQ(pair.type, "uint16");
  EXPECT_THAT(to_text(pair), HasSubstr("6 tokens, 1 documents"));
  const DataSummary file = summarize_data(text.string(), {}, tokenizer_.get());
  EXPECT_EQ(file.kind, "text");
  EXPECT_EQ(file.bytes.total, 5);
  EXPECT_EQ(file.tokens.total, 5);
  EXPECT_EQ(to_json(file)["documents"], 1);
}

class CorpusTest : public PrepareTest {
 protected:
  CorpusOptions options() {
    for (int i = 0; i < 60; ++i) {
      write(fmt::format("source/d{}/f{}.py", i % 3, i),
            fmt::format("def function_{}(value):\n    return value + {}\n", i, i));
    }
    write("source/copy.py", read_file(folder_ / "source/d0/f0.py"));
    write("source/empty.py", "");
    write("source/latin.py", "# caf\xe9\n");
    write("source/readme.txt", "not asked for");
    CorpusOptions options;
    options.sources = {folder_ / "source"};
    options.out = folder_ / "corpus";
    options.valid_fraction = 0.2;
    options.vocab_size = 300;
    return options;
  }
};

TEST_F(CorpusTest, EveryFileIsOnOneSideOrCounted) {
  const CorpusFiles files = select_corpus_files(options());
  EXPECT_EQ(files.found, 63);
  EXPECT_EQ(files.duplicates, 1);
  EXPECT_EQ(files.unfit, 2);
  std::set<fs::path> all(files.train.begin(), files.train.end());
  all.insert(files.valid.begin(), files.valid.end());
  EXPECT_EQ(all.size(), 60U);
  EXPECT_EQ(files.train.size() + files.valid.size(), 60U);
}

TEST_F(CorpusTest, IsMadeOnceAndAnewWhenAFileChanges) {
  const CorpusOptions corpus = options();
  const OrderedJson first = make_corpus(corpus);
  EXPECT_EQ(first["train"]["documents"].get<int>() + first["valid"]["documents"].get<int>(), 60);
  int bytes = 0;
  for (int i = 0; i < 60; ++i) {
    bytes += static_cast<int>(fs::file_size(folder_ / fmt::format("source/d{}/f{}.py", i % 3, i)));
  }
  EXPECT_EQ(first["train"]["bytes"].get<int>() + first["valid"]["bytes"].get<int>(), bytes);
  const auto time = fs::last_write_time(folder_ / "corpus/train.bin");
  EXPECT_EQ(make_corpus(corpus), first);
  EXPECT_EQ(fs::last_write_time(folder_ / "corpus/train.bin"), time);
  const auto tokenizer = load_tokenizer((folder_ / "corpus/tokenizer.json").string());
  EXPECT_EQ(tokenizer->vocab_size(), first["vocab_size"].get<int64_t>());
  const DataSummary train =
      summarize_data((folder_ / "corpus/train").string(), {}, tokenizer.get());
  EXPECT_EQ(train.tokens.total, first["train"]["tokens"].get<int64_t>());
  EXPECT_THAT(train.sample, HasSubstr("def function_"));

  write("source/d0/f0.py", "changed = True\n");
  EXPECT_NE(make_corpus(corpus)["fingerprint"], first["fingerprint"]);
}

TEST_F(CorpusTest, WhatIsMissingIsNamed) {
  CorpusOptions corpus = options();
  corpus.sources = {folder_ / "nowhere"};
  try {
    make_corpus(corpus);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("nowhere"));
  }
  corpus.sources = {folder_ / "source"};
  corpus.extensions = {".rs"};
  EXPECT_THROW(make_corpus(corpus), Error);
}

TEST_F(CorpusTest, CompressorsGiveTheProgramsSizes) {
  // Sizes of `gzip -9 -n -c FILE | wc -c` and `xz -9 -c FILE | wc -c` on the text below.
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "line " + std::to_string(i * i) + " of a text\n";
  EXPECT_EQ(gzip_size(text).bytes, 3533);
  EXPECT_EQ(xz_size(text).bytes, 2132);
  EXPECT_DOUBLE_EQ(gzip_size(text).bits_per_byte, 8.0 * 3533 / static_cast<double>(text.size()));
  EXPECT_EQ(gzip_size("").bytes, 20);
}

}  // namespace
}  // namespace trireme::data
