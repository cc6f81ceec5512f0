#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/cli/bench.h"
#include "trireme/comm/gloo/tcp_ranks.h"
#include "trireme/comm/local/local_world.h"
#include "trireme/comm/transfer_timing.h"

namespace trireme::cli {

namespace {

struct BenchCommArguments {
  int ranks = 2;
  std::string transport = "local";
  std::vector<int64_t> sizes = {1024, 64 * 1024, 1024 * 1024, 16 * 1024 * 1024};
  double seconds = 0.3;
  double latency_us = 0.0;
  double gigabytes_per_s = 0.0;
};

void run_bench_comm(const BenchCommArguments& arguments, const GlobalOptions& options) {
  std::vector<comm::TransferTiming> timings;
  const auto body = [&](comm::World& world) {
    std::vector<comm::TransferTiming> mine =
        comm::time_transfers(world, device::get_device("cpu"), arguments.sizes, arguments.seconds);
    if (world.rank() == 0) timings = std::move(mine);
  };
  const bool links = arguments.latency_us > 0 || arguments.gigabytes_per_s > 0;
  TRIREME_USER_CHECK(!links || arguments.transport == "local", kConfig,
                     "leave --link-latency and --link-rate away, or take --transport local",
                     "--transport {} has the links that it has, not modelled ones",
                     arguments.transport);
  if (arguments.transport == "gloo") {
    comm::run_ranks_over_tcp(arguments.ranks, body);
  } else {
    comm::LocalOptions local;
    local.inside_node = {arguments.latency_us * 1e-6, arguments.gigabytes_per_s * 1e9};
    comm::run_ranks(arguments.ranks, body, local);
  }
  OrderedJson results = OrderedJson::array();
  for (const comm::TransferTiming& timing : timings) {
    std::vector<double> microseconds;
    for (const double seconds : timing.seconds) microseconds.push_back(seconds * 1e6);
    OrderedJson result =
        bench_result(fmt::format("comm.{}.{}.{}", arguments.transport, timing.name, timing.bytes),
                     std::move(microseconds), "us");
    result["ranks"] = arguments.ranks;
    result["gigabytes_per_s"] =
        static_cast<double>(timing.bytes) / result["median"].get<double>() * 1e-3;
    result["sent_bytes"] = timing.sent_bytes;
    result["theoretical_bytes"] = timing.theoretical_bytes;
    if (timing.theoretical_bytes > 0) {
      result["ratio"] =
          static_cast<double>(timing.sent_bytes) / static_cast<double>(timing.theoretical_bytes);
      result["peer"] = "the bytes that theory needs";
    }
    results.push_back(std::move(result));
  }
  print_bench(results, options);
}

}  // namespace

void add_bench_comm(CLI::App& bench, GlobalOptions& options) {
  CLI::App* command = bench.add_subcommand("comm", "transfers between ranks, by kind and size");
  auto arguments = std::make_shared<BenchCommArguments>();
  command->add_option("--ranks", arguments->ranks, "threads that talk to each other")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--transport", arguments->transport, "memory, or TCP over loopback")
      ->check(CLI::IsMember({"local", "gloo"}))
      ->capture_default_str();
  command->add_option("--bytes", arguments->sizes, "of the whole tensor")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seconds", arguments->seconds, "for each kind and size")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--link-latency", arguments->latency_us,
                   "microseconds of a modelled link (local)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--link-rate", arguments->gigabytes_per_s,
                   "GB/s of a modelled link (local); 0: memory")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_global_options(*command, options, "trireme bench comm --ranks 4 --transport gloo");
  command->callback([arguments, &options] { run_bench_comm(*arguments, options); });
}

}  // namespace trireme::cli
