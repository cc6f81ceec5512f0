#include "trireme/cli/bench.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/thread_pool.h"
#include "trireme/data/tokenizer.h"
#include "trireme/device/machine.h"
#include "trireme/device/probe.h"

namespace trireme::cli {

OrderedJson bench_result(const std::string& name, std::vector<double> values,
                         const std::string& unit) {
  std::sort(values.begin(), values.end());
  return {{"name", name},
          {"median", values.at(values.size() / 2)},
          {"min", values.front()},
          {"max", values.back()},
          {"unit", unit}};
}

void print_bench(const OrderedJson& results, const GlobalOptions& options) {
  if (options.json) {
    print_json({{"machine", device::to_json(device::read_machine())}, {"results", results}});
    return;
  }
  for (const OrderedJson& result : results) {
    fmt::print("{:<36} {:9.4g} {} [{:.4g} .. {:.4g}]\n", result["name"].get<std::string>(),
               result["median"].get<double>(), result["unit"].get<std::string>(),
               result["min"].get<double>(), result["max"].get<double>());
    if (result.contains("ratio"))
      fmt::print("{:<36} {:9.3f} of {}\n", "", result["ratio"].get<double>(),
                 result["peer"].get<std::string>());
  }
}

namespace {

struct GemmArguments {
  std::vector<std::string> shapes = {"1024x1024x1024", "2048x2304x768", "2048x768x2048"};
  std::vector<std::string> precisions = {"fp32", "bf16"};
  double seconds = 1.0;
};

struct GemmShape {
  int64_t m, n, k;
};

GemmShape parse_shape(const std::string& text) {
  GemmShape shape{};
  char rest = 0;
  const int count = std::sscanf(text.c_str(), "%ldx%ldx%ld%c", &shape.m, &shape.n, &shape.k, &rest);
  TRIREME_USER_CHECK(count == 3 && shape.m > 0 && shape.n > 0 && shape.k > 0, kConfig,
                     "write rows x columns x inner, such as 1024x4096x1024",
                     "--shape {}: not a shape", text);
  return shape;
}

void run_gemm(const GemmArguments& arguments, const GlobalOptions& options) {
  OrderedJson results = OrderedJson::array();
  for (const std::string& precision : arguments.precisions) {
    for (const std::string& text : arguments.shapes) {
      const GemmShape shape = parse_shape(text);
      const auto dtype = precision == "bf16" ? c10::kBFloat16 : c10::kFloat;
      const device::Rate rate =
          device::measure_gemm(dtype, shape.m, shape.n, shape.k, arguments.seconds);
      results.push_back({{"name", fmt::format("gemm.{}.{}", precision, text)},
                         {"median", rate.median},
                         {"min", rate.min},
                         {"max", rate.max},
                         {"unit", "GFLOP/s"}});
    }
  }
  print_bench(results, options);
}

struct TokenizeArguments {
  std::string tokenizer = "bytes";
  std::vector<std::string> files;
  int repeats = 3;
};

void run_tokenize(const TokenizeArguments& arguments, const GlobalOptions& options) {
  std::vector<std::string> texts;
  double megabytes = 0;
  for (const std::string& pattern : arguments.files) {
    for (const auto& path : expand_glob(pattern)) {
      texts.push_back(read_file(path));
      megabytes += static_cast<double>(texts.back().size()) * 1e-6;
    }
  }
  TRIREME_USER_CHECK(!texts.empty(), kData, "name text files", "no file matches {}",
                     fmt::join(arguments.files, " "));
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  const auto tokenizer = data::load_tokenizer(arguments.tokenizer);
  ThreadPool pool;
  std::vector<double> byte_rates;
  std::vector<double> token_rates;
  for (int i = 0; i < arguments.repeats; ++i) {
    const double start = steady_clock().now_s();
    double tokens = 0;
    for (const auto& ids : data::encode_parallel(pool, *tokenizer, views))
      tokens += static_cast<double>(ids.size());
    const double seconds = steady_clock().now_s() - start;
    byte_rates.push_back(megabytes / seconds);
    token_rates.push_back(tokens / seconds);
  }
  print_bench({bench_result("tokenize.bytes", byte_rates, "MB/s"),
               bench_result("tokenize.tokens", token_rates, "tokens/s")},
              options);
}

}  // namespace

void add_bench_gemm(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command = bench.add_subcommand("gemm", "matrix products as torch computes them");
  auto arguments = std::make_shared<GemmArguments>();
  command->add_option("--shape", arguments->shapes, "rows x columns x inner")
      ->capture_default_str();
  command->add_option("--precision", arguments->precisions)
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--seconds", arguments->seconds, "for each shape")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_global_options(*command, options, "trireme bench gemm --shape 2048x50304x768");
  command->callback([arguments, &options] { run_gemm(*arguments, options); });
}

void add_bench_tokenize(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command = bench.add_subcommand("tokenize", "encoding text files with all threads");
  auto arguments = std::make_shared<TokenizeArguments>();
  command->add_option("--tokenizer", arguments->tokenizer, "tokenizer.json, or bytes")
      ->capture_default_str();
  command->add_option("--repeats", arguments->repeats)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("files", arguments->files, "text files or patterns")->required();
  add_global_options(*command, options,
                     "trireme bench tokenize --tokenizer tokenizer.json 'corpus/**/*.txt'");
  command->callback([arguments, &options] { run_tokenize(*arguments, options); });
}

void add_bench(CLI::App& app, GlobalOptions& options) {
  CLI::App* bench = app.add_subcommand("bench", "measure this machine and this program");
  bench->require_subcommand(1);
  add_global_options(*bench, options, "trireme bench gemm");
  add_bench_gemm(*bench, options);
  add_bench_kernels(*bench, options);
  add_bench_conformance(*bench, options);
  add_bench_comm(*bench, options);
  add_bench_experts(*bench, options);
  add_bench_plan(*bench, options);
  add_bench_train(*bench, options);
  add_bench_tokenize(*bench, options);
}

}  // namespace trireme::cli
