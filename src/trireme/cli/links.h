// Modelled links between ranks that are threads.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "trireme/comm/local/local_world.h"

namespace trireme::cli {

struct LinkArguments {
  double latency_us = 0.0;
  double gigabytes_per_s = 0.0;
};

inline void add_link_options(CLI::App& command, LinkArguments& arguments) {
  command
      .add_option("--link-latency", arguments.latency_us,
                  "microseconds of a modelled link between ranks")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--link-rate", arguments.gigabytes_per_s,
                  "GB/s of a modelled link between ranks; 0: memory")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

/// Between ranks on `device`; of the simulated one on its own clock where it has one (docs/devices.md).
inline comm::LocalOptions local_options(const LinkArguments& arguments, const std::string& device) {
  comm::LocalOptions options;
  options.inside_node = {arguments.latency_us * 1e-6, arguments.gigabytes_per_s * 1e9};
  options.simulated_clock = device == "sim" || device.starts_with("sim:");
  return options;
}

}  // namespace trireme::cli
