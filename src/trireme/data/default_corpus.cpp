#include "trireme/data/default_corpus.h"

#include <lzma.h>
#include <zlib.h>

#include <algorithm>
#include <system_error>
#include <unordered_set>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/base/interrupt.h"
#include "trireme/base/thread_pool.h"
#include "trireme/data/bpe_trainer.h"
#include "trireme/data/prepare.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {

namespace {

namespace fs = std::filesystem;

CompressedSize size_of(size_t compressed, size_t original) {
  return {
      static_cast<int64_t>(compressed),
      original == 0 ? 0.0 : 8.0 * static_cast<double>(compressed) / static_cast<double>(original)};
}

std::vector<fs::path> find_files(const CorpusOptions& options) {
  std::vector<fs::path> files;
  for (const fs::path& source : options.sources) {
    std::error_code error;
    TRIREME_USER_CHECK(fs::is_directory(source, error), kData, "name folders that exist",
                       "{}: not a folder", source.string());
    std::vector<fs::path> found;
    fs::recursive_directory_iterator it(source, fs::directory_options::skip_permission_denied,
                                        error);
    for (const fs::recursive_directory_iterator end; !error && it != end; it.increment(error)) {
      const auto extension = it->path().extension().string();
      const bool wanted = std::find(options.extensions.begin(), options.extensions.end(),
                                    extension) != options.extensions.end();
      std::error_code ignored;
      if (wanted && it->is_regular_file(ignored)) found.push_back(it->path());
    }
    TRIREME_USER_CHECK(!error, kData, "check its permissions", "cannot list {}: {}",
                       source.string(), error.message());
    std::sort(found.begin(), found.end());
    files.insert(files.end(), found.begin(), found.end());
  }
  return files;
}

OrderedJson json_of(const PreparedPart& part) {
  return {{"documents", part.documents}, {"tokens", part.tokens}, {"bytes", part.bytes}};
}

std::string concatenated(const std::vector<fs::path>& files) {
  std::string text;
  for (const fs::path& file : files) text += read_file(file);
  return text;
}

/// The finished corpus in `out`, if it was made from the same files with the same options.
bool is_current(const fs::path& out, const std::string& fingerprint, OrderedJson& description) {
  std::error_code error;
  for (const char* name :
       {"corpus.json", "tokenizer.json", "train.bin", "train.idx", "valid.bin", "valid.idx"}) {
    if (!fs::is_regular_file(out / name, error)) return false;
  }
  const fs::path path = out / "corpus.json";
  description = parse_ordered_json(read_file(path), path.string());
  return description.is_object() && description.value("fingerprint", std::string()) == fingerprint;
}

}  // namespace

CompressedSize gzip_size(std::string_view text) {
  z_stream stream{};
  // 15 bits of window, + 16 for the gzip header, 8 is the program's memory level at -9.
  TRIREME_CHECK(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK,
                "zlib");
  std::string out(size_t{1} << 16, '\0');
  size_t taken = 0;
  size_t made = 0;
  int status = Z_OK;
  while (status == Z_OK) {
    const size_t piece = std::min<size_t>(text.size() - taken, size_t{1} << 30);
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data() + taken));
    stream.avail_in = static_cast<unsigned>(piece);
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<unsigned>(out.size());
    status = deflate(&stream, taken + piece == text.size() ? Z_FINISH : Z_NO_FLUSH);
    taken += piece - stream.avail_in;
    made += out.size() - stream.avail_out;
  }
  deflateEnd(&stream);
  TRIREME_CHECK(status == Z_STREAM_END, "zlib: {}", status);
  return size_of(made, text.size());
}

CompressedSize xz_size(std::string_view text) {
  lzma_stream stream = LZMA_STREAM_INIT;
  TRIREME_CHECK(lzma_easy_encoder(&stream, 9, LZMA_CHECK_CRC64) == LZMA_OK, "liblzma");
  std::string out(size_t{1} << 16, '\0');
  size_t made = 0;
  stream.next_in = reinterpret_cast<const uint8_t*>(text.data());
  stream.avail_in = text.size();
  lzma_ret status = LZMA_OK;
  while (status == LZMA_OK) {
    stream.next_out = reinterpret_cast<uint8_t*>(out.data());
    stream.avail_out = out.size();
    status = lzma_code(&stream, LZMA_FINISH);
    made += out.size() - stream.avail_out;
  }
  lzma_end(&stream);
  TRIREME_CHECK(status == LZMA_STREAM_END, "liblzma: {}", static_cast<int>(status));
  return size_of(made, text.size());
}

CorpusFiles select_corpus_files(const CorpusOptions& options) {
  CorpusFiles files;
  std::unordered_set<uint64_t> seen;
  for (const fs::path& path : find_files(options)) {
    ++files.found;
    const std::string text = read_file(path);
    if (text.empty() || !is_valid_utf8(text)) {
      ++files.unfit;
      continue;
    }
    const uint64_t hash = xxh3(std::as_bytes(std::span(text)));
    if (!seen.insert(hash).second) {
      ++files.duplicates;
      continue;
    }
    files.fingerprint = mix(files.fingerprint, hash);
    (held_out(hash, options.valid_fraction) ? files.valid : files.train).push_back(path);
  }
  // However few files there are, both sides have one.
  if (files.valid.empty() && files.train.size() >= 2) {
    files.valid.push_back(files.train.back());
    files.train.pop_back();
  }
  TRIREME_USER_CHECK(!files.train.empty() && !files.valid.empty(), kData,
                     "name folders with more files", "{} files make no corpus ({} found)",
                     files.train.size() + files.valid.size(), files.found);
  return files;
}

OrderedJson make_corpus(const CorpusOptions& options) {
  const auto report = [&options](const std::string& phase, double share) {
    if (interrupted()) throw Error(ErrorCode::kInterrupted, "interrupted while making the corpus");
    if (options.progress) options.progress(phase, share);
  };
  report("finding files", 0);
  const CorpusFiles files = select_corpus_files(options);
  const std::string fingerprint =
      hash_text(mix(files.fingerprint, static_cast<uint64_t>(options.vocab_size),
                    static_cast<uint64_t>(options.valid_fraction * 1e9)));
  OrderedJson description;
  if (is_current(options.out, fingerprint, description)) return description;

  std::error_code ignored;  // a folder that cannot be made shows below, with the reason
  fs::create_directories(options.out, ignored);
  fs::remove(options.out / "corpus.json", ignored);
  BpeTrainOptions bpe;
  bpe.vocab_size = options.vocab_size;
  std::unique_ptr<Tokenizer> tokenizer;
  {
    ThreadPool pool(options.num_threads);
    tokenizer = train_bpe(bpe, files.train, pool, [&report](const BpeTrainProgress& progress) {
      const auto total = static_cast<double>(std::max<int64_t>(1, progress.total));
      report("training the tokenizer", static_cast<double>(progress.done) / total);
    });
  }
  write_file_atomically(options.out / "tokenizer.json", tokenizer->to_json());

  PrepareOptions prepare_options;
  prepare_options.num_threads = options.num_threads;
  prepare_options.progress = [&report](const PrepareProgress& progress) {
    const auto total = static_cast<double>(std::max<int64_t>(1, progress.bytes));
    report("tokenizing", static_cast<double>(progress.bytes_done) / total);
  };
  const PrepareResult train =
      prepare(files.train, *tokenizer, options.out / "train", prepare_options);
  const PrepareResult valid =
      prepare(files.valid, *tokenizer, options.out / "valid", prepare_options);

  report("compressing the validation files", 0);
  const std::string text = concatenated(files.valid);
  const CompressedSize gzip = gzip_size(text);
  const CompressedSize xz = xz_size(text);
  description = {{"files", files.train.size() + files.valid.size()},
                 {"duplicates", files.duplicates},
                 {"unfit", files.unfit},
                 {"vocab_size", tokenizer->vocab_size()},
                 {"fingerprint", fingerprint},
                 {"train", json_of(train.train)},
                 {"valid", json_of(valid.train)},
                 {"compressed_bytes", {{"gzip -9", gzip.bytes}, {"xz -9", xz.bytes}}},
                 {"bits_per_byte", {{"gzip -9", gzip.bits_per_byte}, {"xz -9", xz.bits_per_byte}}}};
  write_file_atomically(options.out / "corpus.json", description.dump(2) + "\n");
  report("done", 1);
  return description;
}

}  // namespace trireme::data
