// What every sub-command shares: the global options and its way into the command line.
//
// A sub-command is one file: cli/<name>.cpp defines add_<name>(), which declares its options on the
// CLI11 app and sets a callback. It parses and prints; the logic lives in the rooms below.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "trireme/base/json.h"
#include "trireme/device/device.h"

namespace trireme::cli {

struct GlobalOptions {
  bool json = false;   ///< one JSON document on stdout, logs on stderr
  bool quiet = false;  ///< stderr without progress and notes; stdout is the same
  bool verbose = false;
};

/// Declares --json, --quiet, --verbose on a sub-command and an example in its help's footer.
void add_global_options(CLI::App& command, GlobalOptions& options, const std::string& example);

/// Prints `document` on stdout as one JSON document.
void print_json(const OrderedJson& document);

/// Which device, and the library that brings it.
struct DeviceArguments {
  std::string name = "cpu";
  std::string plugin;
};

/// Declares --device and --plugin.
void add_device_options(CLI::App& command, DeviceArguments& arguments);

/// Loads the library, if there is one, and returns the device. Errors as device::load_plugin() and get_device().
device::Device& open_device(const DeviceArguments& arguments);

void add_train(CLI::App& app, GlobalOptions& options);
void add_launch(CLI::App& app, GlobalOptions& options);
void add_plan(CLI::App& app, GlobalOptions& options);
void add_eval(CLI::App& app, GlobalOptions& options);
void add_generate(CLI::App& app, GlobalOptions& options);
void add_tokenize(CLI::App& app, GlobalOptions& options);
void add_data(CLI::App& app, GlobalOptions& options);
void add_convert(CLI::App& app, GlobalOptions& options);
void add_checkpoint(CLI::App& app, GlobalOptions& options);
void add_trace(CLI::App& app, GlobalOptions& options);
void add_bench(CLI::App& app, GlobalOptions& options);
void add_doctor(CLI::App& app, GlobalOptions& options);

/// Runs the program; returns the exit status of the interface page.
int run(int argc, char** argv);

}  // namespace trireme::cli
