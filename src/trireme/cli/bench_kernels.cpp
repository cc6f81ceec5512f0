#include <memory>
#include <string>
#include <vector>

#include "trireme/cli/bench.h"
#include "trireme/kernels/kernel_timing.h"

namespace trireme::cli {

namespace {

struct BenchKernelsArguments {
  kernels::TimedLayer layer;
  std::vector<std::string> precisions = {"fp32", "bf16"};
  double seconds = 0.3;
};

void run_bench_kernels(BenchKernelsArguments arguments, const GlobalOptions& options) {
  OrderedJson results = OrderedJson::array();
  for (const std::string& precision : arguments.precisions) {
    arguments.layer.dtype = precision == "bf16" ? c10::kBFloat16 : c10::kFloat;
    for (const kernels::KernelTiming& timing :
         kernels::time_kernels(arguments.layer, arguments.seconds)) {
      results.push_back(
          bench_result("kernels." + precision + "." + timing.name, timing.rates, timing.unit));
    }
  }
  print_bench(results, options);
}

}  // namespace

void add_bench_kernels(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command = bench.add_subcommand("kernels", "every kernel at the shapes of one layer");
  auto arguments = std::make_shared<BenchKernelsArguments>();
  kernels::TimedLayer& layer = arguments->layer;
  const auto add_size = [&](const char* name, int64_t& value, const char* meaning) {
    command->add_option(name, value, meaning)->check(CLI::PositiveNumber)->capture_default_str();
  };
  add_size("--rows", layer.rows, "tokens");
  add_size("--seq-len", layer.seq_len, "tokens of a sequence");
  add_size("--hidden", layer.hidden, "width of the model");
  add_size("--heads", layer.heads, "of attention");
  add_size("--kv-heads", layer.kv_heads, "key and value heads");
  add_size("--feed-forward", layer.feed_forward, "width of the feed-forward layer");
  add_size("--vocab-size", layer.vocab_size, "entries of the vocabulary");
  command->add_option("--precision", arguments->precisions)
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--seconds", arguments->seconds, "for each kernel")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_global_options(*command, options,
                     "trireme bench kernels --hidden 768 --feed-forward 2048 --precision bf16");
  command->callback([arguments, &options] { run_bench_kernels(*arguments, options); });
}

}  // namespace trireme::cli
