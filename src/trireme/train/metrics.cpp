#include "trireme/train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/base/file.h"

namespace trireme::train {

namespace {

OrderedJson finite_or_null(double x) {
  return std::isfinite(x) ? OrderedJson(x) : OrderedJson(nullptr);
}

double number_or_nan(const Json& json, const char* key) {
  const Json& value = json.at(key);
  return value.is_null() ? std::nan("") : value.get<double>();
}

std::optional<double> optional_number(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

[[noreturn]] void fail(const std::filesystem::path& path, int error) {
  throw Error(ErrorCode::kData,
              fmt::format("{}: cannot write: {}", path.string(), std::strerror(error)),
              "make room on the disk or choose another out; the newest checkpoint is untouched");
}

}  // namespace

double largest_load(const std::vector<int64_t>& load) {
  const int64_t all = std::accumulate(load.begin(), load.end(), int64_t{0});
  if (all == 0) return 1.0;
  return static_cast<double>(*std::max_element(load.begin(), load.end())) *
         static_cast<double>(load.size()) / static_cast<double>(all);
}

OrderedJson to_json(const StepMetrics& m) {
  OrderedJson json = {{"step", m.step},
                      {"tokens", m.tokens},
                      {"loss", finite_or_null(m.loss)},
                      {"grad_norm", finite_or_null(m.grad_norm)},
                      {"lr", m.lr},
                      {"step_s", m.step_s},
                      {"tokens_per_s", m.tokens_per_s},
                      {"model_tflops", m.model_tflops},
                      {"peak_bytes", m.peak_bytes},
                      {"loader_exposed_s", m.loader_exposed_s},
                      {"checkpoint_stall_s", m.checkpoint_stall_s},
                      {"page_faults", m.page_faults},
                      {"sequences", m.sequences}};
  if (m.mtp_loss) json["mtp_loss"] = finite_or_null(*m.mtp_loss);
  if (!m.load.empty()) {
    json["load"] = m.load;
    json["dropped"] = m.dropped;
    json["balance_loss"] = finite_or_null(m.balance_loss);
    json["z_loss"] = finite_or_null(m.z_loss);
    json["router_entropy"] = finite_or_null(m.router_entropy);
  }
  if (m.skipped) json["skipped"] = true;
  if (m.valid_loss) json["valid_loss"] = finite_or_null(*m.valid_loss);
  if (m.valid_perplexity) json["valid_perplexity"] = finite_or_null(*m.valid_perplexity);
  if (m.valid_bits_per_byte) json["valid_bits_per_byte"] = finite_or_null(*m.valid_bits_per_byte);
  return json;
}

std::optional<StepMetrics> metrics_from_json(const Json& json) {
  try {
    StepMetrics m;
    m.step = json.at("step").get<int64_t>();
    m.tokens = json.at("tokens").get<int64_t>();
    m.loss = number_or_nan(json, "loss");
    m.grad_norm = number_or_nan(json, "grad_norm");
    m.lr = json.at("lr").get<double>();
    m.step_s = json.at("step_s").get<double>();
    m.tokens_per_s = json.at("tokens_per_s").get<double>();
    m.model_tflops = json.at("model_tflops").get<double>();
    m.peak_bytes = json.at("peak_bytes").get<int64_t>();
    m.loader_exposed_s = json.value("loader_exposed_s", 0.0);
    m.checkpoint_stall_s = json.value("checkpoint_stall_s", 0.0);
    m.page_faults = json.value("page_faults", int64_t{0});
    m.sequences = json.value("sequences", int64_t{0});
    if (json.contains("mtp_loss")) m.mtp_loss = number_or_nan(json, "mtp_loss");
    if (json.contains("load")) {
      m.load = json.at("load").get<std::vector<std::vector<int64_t>>>();
      m.dropped = json.at("dropped").get<int64_t>();
      m.balance_loss = number_or_nan(json, "balance_loss");
      m.z_loss = number_or_nan(json, "z_loss");
      m.router_entropy = number_or_nan(json, "router_entropy");
    }
    m.skipped = json.value("skipped", false);
    m.valid_loss = optional_number(json, "valid_loss");
    m.valid_perplexity = optional_number(json, "valid_perplexity");
    m.valid_bits_per_byte = optional_number(json, "valid_bits_per_byte");
    return m;
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

namespace {

/// Calls `visit(line with its newline, metrics)` for whole lines until one is broken or `visit`
/// says false.
template <typename Visit>
void for_each_line(const std::string& text, Visit visit) {
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) return;
    const Json json = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                  text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    const std::optional<StepMetrics> metrics = metrics_from_json(json);
    if (!metrics || !visit(std::string_view(text).substr(begin, end + 1 - begin), *metrics)) return;
    begin = end + 1;
  }
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step) : path_(path) {
  if (std::filesystem::is_regular_file(path)) {
    const std::string text = read_file(path);
    size_t keep = 0;
    for_each_line(text, [&](std::string_view line, const StepMetrics& metrics) {
      if (metrics.step > last_step) return false;
      keep += line.size();
      ++kept_;
      return true;
    });
    if (keep < text.size()) write_file_atomically(path, std::string_view(text).substr(0, keep));
  }
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(path_, errno);
}

MetricsFile::~MetricsFile() {
  if (fd_ >= 0) ::close(fd_);
}

void MetricsFile::append(const StepMetrics& metrics) {
  const std::string line = to_json(metrics).dump() + "\n";
  const off_t before = ::lseek(fd_, 0, SEEK_END);
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t n = ::write(fd_, line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : ENOSPC;
      // What cannot be taken back here is taken away when the run resumes.
      if (before >= 0 && ::ftruncate(fd_, before) != 0) fail(path_, error);
      fail(path_, error);
    }
    done += static_cast<size_t>(n);
  }
}

void MetricsFile::sync() {
  // Character devices and pipes have nothing to sync.
  if (::fsync(fd_) != 0 && errno != EINVAL) fail(path_, errno);
}

std::vector<StepMetrics> read_metrics(const std::filesystem::path& path) {
  std::vector<StepMetrics> result;
  if (!std::filesystem::exists(path)) return result;
  for_each_line(read_file(path), [&](std::string_view, const StepMetrics& metrics) {
    result.push_back(metrics);
    return true;
  });
  return result;
}

std::vector<std::pair<std::string, float>> scalars_of(const StepMetrics& m) {
  std::vector<std::pair<std::string, float>> scalars = {
      {"train/loss", static_cast<float>(m.loss)},
      {"train/grad_norm", static_cast<float>(m.grad_norm)},
      {"train/lr", static_cast<float>(m.lr)},
      {"speed/step_s", static_cast<float>(m.step_s)},
      {"speed/tokens_per_s", static_cast<float>(m.tokens_per_s)},
      {"speed/model_tflops", static_cast<float>(m.model_tflops)},
      {"speed/loader_exposed_s", static_cast<float>(m.loader_exposed_s)},
      {"speed/checkpoint_stall_s", static_cast<float>(m.checkpoint_stall_s)},
      {"memory/peak_bytes", static_cast<float>(m.peak_bytes)},
      {"memory/page_faults", static_cast<float>(m.page_faults)}};
  if (m.mtp_loss) scalars.emplace_back("train/mtp_loss", static_cast<float>(*m.mtp_loss));
  if (!m.load.empty()) {
    scalars.emplace_back("moe/balance_loss", static_cast<float>(m.balance_loss));
    scalars.emplace_back("moe/z_loss", static_cast<float>(m.z_loss));
    scalars.emplace_back("moe/router_entropy", static_cast<float>(m.router_entropy));
    scalars.emplace_back("moe/dropped", static_cast<float>(m.dropped));
    for (size_t i = 0; i < m.load.size(); ++i)
      scalars.emplace_back(fmt::format("moe/largest_load_{}", i),
                           static_cast<float>(largest_load(m.load[i])));
  }
  if (m.valid_loss) {
    scalars.emplace_back("valid/loss", static_cast<float>(*m.valid_loss));
    scalars.emplace_back("valid/perplexity", static_cast<float>(*m.valid_perplexity));
  }
  if (m.valid_bits_per_byte)
    scalars.emplace_back("valid/bits_per_byte", static_cast<float>(*m.valid_bits_per_byte));
  return scalars;
}

}  // namespace trireme::train
