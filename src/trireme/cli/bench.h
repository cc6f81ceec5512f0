// The parts of `trireme bench`, one file each: cli/bench_<name>.cpp.
#pragma once

#include "trireme/cli/command.h"

namespace trireme::cli {

void add_bench_comm(CLI::App& bench, GlobalOptions& options);
void add_bench_gemm(CLI::App& bench, GlobalOptions& options);
void add_bench_conformance(CLI::App& bench, GlobalOptions& options);
void add_bench_kernels(CLI::App& bench, GlobalOptions& options);
void add_bench_experts(CLI::App& bench, GlobalOptions& options);
void add_bench_plan(CLI::App& bench, GlobalOptions& options);
void add_bench_train(CLI::App& bench, GlobalOptions& options);
void add_bench_tokenize(CLI::App& bench, GlobalOptions& options);

/// One entry of "results": a figure with its spread. `values` is not empty; it is sorted in passing.
OrderedJson bench_result(const std::string& name, std::vector<double> values,
                         const std::string& unit);

/// Prints {"machine", "results"} with --json, else a line for each result.
void print_bench(const OrderedJson& results, const GlobalOptions& options);

}  // namespace trireme::cli
