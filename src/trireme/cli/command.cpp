#include "trireme/cli/command.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <span>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/base/suggest.h"
#include "trireme/cli/sim_clock.h"
#include "trireme/device/plugin/plugin.h"

namespace trireme::cli {

void add_global_options(CLI::App& command, GlobalOptions& options, const std::string& example) {
  command.add_flag("--json", options.json, "one JSON document on stdout, logs on stderr");
  command.add_flag("--quiet", options.quiet, "on stderr only warnings and errors; stdout stays");
  command.add_flag("--verbose", options.verbose, "more lines, and where an error arose");
  command.footer("Example:\n  " + example);
}

void add_device_options(CLI::App& command, DeviceArguments& arguments) {
  command
      .add_option("--device", arguments.name, "what computes: cpu, sim, or what a plug-in brings")
      ->capture_default_str();
  command.add_option("--plugin", arguments.plugin,
                     "the library that brings the device (docs/devices.md)");
}

device::Device& open_device(const DeviceArguments& arguments) {
  device::use_plugin(arguments.name, arguments.plugin);
  return device::get_device(arguments.name);
}

void print_json(const OrderedJson& document) {
  std::fputs(document.dump(2, ' ', false, OrderedJson::error_handler_t::replace).c_str(), stdout);
  std::fputc('\n', stdout);
}

namespace {

constexpr const char* kMemoryHint =
    "use a smaller batch.micro or data.seq_len, or set memory.recompute";
constexpr const char* kDefectHint =
    "this is a defect of Trireme; please report it with the command that caused it";

int print_error(ErrorCode code, std::string_view message, std::string_view hint) {
  std::string text = fmt::format("error: {}\n", message);
  if (!hint.empty()) text += fmt::format("  hint: {}\n", hint);
  std::fputs(text.c_str(), stderr);
  return static_cast<int>(code);
}

std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (!sub->get_name().empty()) names.push_back(sub->get_name());
  }
  return names;
}

/// Names of all options of `app`, its option groups (nameless sub-apps) included.
void collect_option_names(const CLI::App& app, std::vector<std::string>& names) {
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (sub->get_name().empty()) collect_option_names(*sub, names);
  }
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

struct Complaint {
  std::string message;
  std::string hint;
};

/// Finds the first argument that no command knows and names the nearest one; otherwise says what
/// the parser said.
Complaint explain(const CLI::App& root, std::span<char*> arguments, const CLI::ParseError& error) {
  const CLI::App* app = &root;
  std::string path = root.get_name();
  for (const char* argument : arguments) {
    const std::string word = argument;
    if (word == "--") break;
    if (word.size() > 1 && word[0] == '-' && !std::isdigit(static_cast<unsigned char>(word[1]))) {
      std::vector<std::string> options;
      collect_option_names(*app, options);
      const std::string name = word.substr(0, word.find('='));
      // A short option may have its value or more flags attached.
      const bool known =
          contains(options, name) || (word[1] != '-' && contains(options, word.substr(0, 2)));
      if (!known) {
        return {fmt::format("{}: unknown option '{}'", path, name), suggestion(name, options)};
      }
      continue;
    }
    const std::vector<std::string> names = subcommand_names(*app);
    if (names.empty()) continue;
    if (!contains(names, word)) {
      return {fmt::format("{}: unknown command '{}'", path, word), suggestion(word, names)};
    }
    app = app->get_subcommand(word);
    path += " " + word;
  }
  const std::vector<std::string> names = subcommand_names(*app);
  if (!names.empty()) {
    return {fmt::format("{}: a command is missing", path), suggestion("", names)};
  }
  return {fmt::format("{}: {}", path, error.what()), fmt::format("see '{} --help'", path)};
}

}  // namespace

int run(int argc, char** argv) {
  CLI::App app{"Trireme trains large language models.", "trireme"};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("trireme ") + TRIREME_VERSION);
  GlobalOptions options;
#define X(name) add_##name(app, options);
#include "trireme/cli/command_list.inc"
#undef X
  // Runs after all arguments are read and before the sub-command's own callback.
  app.parse_complete_callback([&options] {
    if (options.quiet) log::set_level(log::Level::kWarning);
    if (options.verbose) log::set_level(log::Level::kVerbose);
    resolve_sim_clock();
  });
  try {
    app.parse(argc, argv);
    // A full disk or a closed pipe behind stdout must not pass as success.
    if (std::fflush(stdout) != 0) {
      return print_error(ErrorCode::kData, "cannot write to the standard output",
                         "check where it goes");
    }
    return 0;
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::RuntimeError& ended) {  // a command that has a status of its own
    std::fflush(stdout);
    return ended.get_exit_code();
  } catch (const CLI::ParseError& error) {
    const Complaint complaint =
        explain(app, std::span(argv, static_cast<size_t>(argc)).subspan(1), error);
    return print_error(ErrorCode::kConfig, complaint.message, complaint.hint);
  } catch (const Error& error) {
    std::string message = error.what();
    if (options.verbose) {
      message += fmt::format("\n  at {}:{}", error.where().file_name(), error.where().line());
    }
    return print_error(error.code(), message, error.hint());
  } catch (const c10::OutOfMemoryError& error) {
    return print_error(ErrorCode::kDevice, error.what_without_backtrace(), kMemoryHint);
  } catch (const c10::NotImplementedError& error) {
    // PyTorch's text goes on for pages about where the operator does exist.
    const std::string text = error.what_without_backtrace();
    return print_error(
        ErrorCode::kDevice, options.verbose ? text : text.substr(0, text.find(". ")),
        "the device lacks it, and has no fallback to the CPU; `trireme doctor --device "
        "NAME` lists all that a run needs");
  } catch (const c10::AcceleratorError& error) {
    return print_error(ErrorCode::kDevice, error.what_without_backtrace(),
                       "the device failed; the run can be resumed from its last checkpoint");
  } catch (const c10::Error& error) {
    return print_error(ErrorCode::kInternal,
                       options.verbose ? error.what() : error.what_without_backtrace(),
                       kDefectHint);
  } catch (const std::bad_alloc&) {
    return print_error(ErrorCode::kDevice, "out of memory", kMemoryHint);
  } catch (const std::exception& error) {
    return print_error(ErrorCode::kInternal, error.what(), kDefectHint);
  }
}

}  // namespace trireme::cli
