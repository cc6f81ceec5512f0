#include "trireme/data/document_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <fstream>
#include <random>

#include "trireme/base/error.h"

namespace trireme::data {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class DocumentSourceTest : public ::testing::Test {
 protected:
  DocumentSourceTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string("trireme-source-") + info->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~DocumentSourceTest() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }

  static std::string gzip(const std::string& text) {
    z_stream stream{};
    deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
    std::string out(deflateBound(&stream, text.size()) + 64, '\0');
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
    stream.avail_in = static_cast<unsigned>(text.size());
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<unsigned>(out.size());
    deflate(&stream, Z_FINISH);
    out.resize(stream.total_out);
    deflateEnd(&stream);
    return out;
  }

  static std::string zstd(const std::string& text) {
    std::string out(ZSTD_compressBound(text.size()), '\0');
    out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
    return out;
  }

  static std::vector<std::string> read_all(const fs::path& path,
                                           const DocumentFormat& format = {}) {
    const auto source = open_documents(path, format);
    std::vector<std::string> documents;
    TextPiece piece;
    while (source->next(piece)) {
      EXPECT_TRUE(piece.begins && piece.ends);
      documents.push_back(piece.text);
    }
    return documents;
  }

  static std::string error_of(const fs::path& path, const DocumentFormat& format = {}) {
    try {
      read_all(path, format);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_FALSE(error.hint().empty()) << error.what();
      return error.what();
    }
    return "";
  }

  static std::string random_text(size_t size) {
    std::mt19937_64 random(size);
    std::string text(size, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % 26);
    return text;
  }

  fs::path folder_;
};

TEST_F(DocumentSourceTest, AFileIsADocumentByteForByte) {
  const std::string bytes("a\r\n\0\xff end \n", 12);
  EXPECT_THAT(read_all(write("a.txt", bytes)), ElementsAre(bytes));
  EXPECT_THAT(read_all(write("empty.txt", "")), ElementsAre());
}

TEST_F(DocumentSourceTest, ReadsCompressedTextOfAnySizeAndSeveralMembers) {
  for (const size_t size : {size_t{1}, size_t{1000}, size_t{262144}, size_t{1000003}}) {
    const std::string text = random_text(size);
    EXPECT_THAT(read_all(write("a.txt.gz", gzip(text) + gzip("more"))), ElementsAre(text + "more"));
    EXPECT_THAT(read_all(write("a.txt.zst", zstd(text) + zstd("more"))),
                ElementsAre(text + "more"));
  }
  // Compresses 10000 to 1: the decoder holds much more than one output's worth.
  const std::string zeros(3000001, '0');
  EXPECT_THAT(read_all(write("z.zst", zstd(zeros))), ElementsAre(zeros));
  EXPECT_THAT(read_all(write("z.gz", gzip(zeros))), ElementsAre(zeros));
}

TEST_F(DocumentSourceTest, DamagedCompressionIsAnError) {
  const std::string text = random_text(500000);
  const std::string gz = gzip(text);
  const std::string zst = zstd(text);
  EXPECT_THAT(error_of(write("a.gz", gz.substr(0, gz.size() / 2))), HasSubstr("a.gz"));
  EXPECT_THAT(error_of(write("a.gz", gz.substr(0, gz.size() - 4))), HasSubstr("gzip"));
  EXPECT_THAT(error_of(write("a.gz", "plain text")), HasSubstr("not a gzip file"));
  EXPECT_THAT(error_of(write("a.zst", zst.substr(0, zst.size() / 2))),
              HasSubstr("truncated Zstandard"));
  EXPECT_THAT(error_of(write("a.zst", "plain text")), HasSubstr("not Zstandard"));
  std::string flipped = gz;
  flipped[gz.size() / 2] = static_cast<char>(flipped[gz.size() / 2] ^ 0x10);
  EXPECT_THAT(error_of(write("a.gz", flipped)), HasSubstr("damaged"));
}

TEST_F(DocumentSourceTest, MissingFilesAreErrors) {
  for (const char* name : {"no.txt", "no.gz", "no.zst", "no.jsonl"}) {
    EXPECT_THAT(error_of(folder_ / name), HasSubstr(name));
  }
}

TEST_F(DocumentSourceTest, JsonlGivesTheField) {
  const std::string lines =
      "{\"text\": \"one\\nline\", \"id\": 1}\r\n"
      "\n"
      "{\"id\": {\"text\": 0}, \"text\": \"\\u00e9\\ud83d\\ude00\"}\n"
      "{\"text\": \"\"}\n"
      "{\"text\": \"last\"}";
  const std::vector<std::string> expected{"one\nline", "\xc3\xa9\xf0\x9f\x98\x80", "last"};
  EXPECT_EQ(read_all(write("a.jsonl", lines)), expected);
  EXPECT_EQ(read_all(write("a.jsonl.gz", gzip(lines))), expected);
  EXPECT_EQ(read_all(write("a.jsonl.zst", zstd(lines))), expected);
  EXPECT_THAT(read_all(write("b.ndjson", "{\"body\": \"x\"}"), {"body", ""}), ElementsAre("x"));
}

TEST_F(DocumentSourceTest, MalformedJsonlNamesFileAndLine) {
  const std::string good = "{\"text\": \"x\"}\n";
  EXPECT_THAT(error_of(write("a.jsonl", good + "\n" + good + "{\"text\": \n")),
              HasSubstr("a.jsonl:4"));
  EXPECT_THAT(error_of(write("a.jsonl", good + "[1]\n")),
              HasSubstr("a.jsonl:2: not a JSON object"));
  EXPECT_THAT(error_of(write("a.jsonl", "{\"txt\": \"x\"}")), HasSubstr("no field \"text\""));
  EXPECT_THAT(error_of(write("a.jsonl", "{\"text\": 1}")), HasSubstr("not a string but number"));
  EXPECT_THAT(error_of(write("a.jsonl", "{\"text\": \"\xff\"}")), HasSubstr("a.jsonl:1"));
  EXPECT_THAT(error_of(write("a.jsonl", good + good.substr(0, 9))), HasSubstr("a.jsonl:2"));
}

TEST_F(DocumentSourceTest, SeparatorsCutWhereverTheyFall) {
  EXPECT_THAT(
      read_all(write("a.txt", "one<|end|>two\n<|end|> \n<|end|>three<|end|"), {"text", "<|end|>"}),
      ElementsAre("one", "two\n", "three<|end|"));
  // A separator on every offset around the size of one read.
  const std::string separator = "<|end|>";
  for (size_t size = (256 << 10) - 9; size < (256 << 10) + 3; ++size) {
    const std::string first = random_text(size);
    EXPECT_THAT(read_all(write("b.txt", first + separator + "rest"), {"text", separator}),
                ElementsAre(first, "rest"));
  }
}

TEST_F(DocumentSourceTest, LongFilesComeInPiecesCutWhereItIsSafe) {
  std::string text;
  for (int i = 0; text.size() < 2000000; ++i) text += "word" + std::to_string(i) + " ";
  const auto path = write("long.txt", text);
  const SafeCut at_space = [](std::string_view piece) {
    return piece.rfind(' ') == std::string_view::npos ? 0 : piece.rfind(' ');
  };
  const auto source = open_documents(path, {}, 300000, at_space);
  std::string joined;
  TextPiece piece;
  int pieces = 0;
  bool ended = false;
  while (source->next(piece)) {
    EXPECT_EQ(piece.begins, pieces == 0);
    EXPECT_FALSE(ended);
    ended = piece.ends;
    if (pieces++ > 0) {
      EXPECT_EQ(piece.text.front(), ' ');
    }
    joined += piece.text;
  }
  EXPECT_TRUE(ended);
  EXPECT_GT(pieces, 2);
  EXPECT_EQ(joined, text);
  // No safe place: one piece.
  EXPECT_THAT(read_all(path), ElementsAre(text));
}

TEST_F(DocumentSourceTest, NamesTellJsonlFromText) {
  for (const char* name : {"a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"})
    EXPECT_TRUE(is_jsonl(name));
  for (const char* name : {"a.txt", "a.json", "jsonl", "a.jsonl.txt", "a.gz"})
    EXPECT_FALSE(is_jsonl(name));
}

}  // namespace
}  // namespace trireme::data
