// trireme bench experts: products of a mixture of experts beside one dense product.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "trireme/cli/bench.h"
#include "trireme/kernels/expert_timing.h"

namespace trireme::cli {

namespace {

struct ExpertsArguments {
  std::vector<int64_t> experts = {8, 64};
  std::vector<std::string> precisions = {"fp32", "bf16"};
  int64_t tokens = 4096;
  int64_t hidden = 512;
  int64_t width = 2048;
  int rounds = 5;
  double seconds = 0.2;
};

void run(const ExpertsArguments& arguments, const GlobalOptions& options) {
  OrderedJson results = OrderedJson::array();
  for (const std::string& precision : arguments.precisions) {
    for (const int64_t experts : arguments.experts) {
      for (const bool skewed : {false, true}) {
        kernels::TimedExperts layer;
        // An eighth of the experts, two at least, computes a token; together they are as wide as the dense layer.
        const int64_t top_k = std::max<int64_t>(2, experts / 8);
        layer.rows = arguments.tokens * top_k;
        layer.experts = experts;
        layer.hidden = arguments.hidden;
        layer.expert_hidden = std::max<int64_t>(1, arguments.width / top_k);
        layer.skewed = skewed;
        layer.dtype = precision == "bf16" ? c10::kBFloat16 : c10::kFloat;
        for (const kernels::ExpertTiming& timing :
             kernels::time_experts(layer, arguments.rounds, arguments.seconds)) {
          OrderedJson result = bench_result(fmt::format("experts.{}.{}.{}.{}", precision, experts,
                                                        skewed ? "zipf" : "even", timing.name),
                                            timing.grouped, "GFLOP/s");
          std::vector<double> ratios;
          for (size_t i = 0; i < timing.grouped.size(); ++i)
            ratios.push_back(timing.grouped[i] / timing.dense[i]);
          const OrderedJson ratio = bench_result("", ratios, "");
          result["peer"] = "one dense product of as many operations";
          result["ratio"] = ratio["median"];
          result["ratio_min"] = ratio["min"];
          result["ratio_max"] = ratio["max"];
          results.push_back(std::move(result));
        }
      }
    }
  }
  print_bench(results, options);
}

}  // namespace

void add_bench_experts(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command =
      bench.add_subcommand("experts", "grouped products of experts beside one dense product");
  auto arguments = std::make_shared<ExpertsArguments>();
  command->add_option("--experts", arguments->experts, "number of experts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--precision", arguments->precisions)
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--tokens", arguments->tokens)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--hidden", arguments->hidden)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--width", arguments->width, "of the experts of a token together")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seconds", arguments->seconds, "for each product of a round")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_global_options(*command, options, "trireme bench experts --experts 64 --precision bf16");
  command->callback([arguments, &options] { run(*arguments, options); });
}

}  // namespace trireme::cli
