#include "trireme/cli/command.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "trireme/base/error.h"
#include "trireme/base/log.h"

namespace trireme::cli {

void add_global_options(CLI::App& command, GlobalOptions& options, const std::string& example) {
  command.add_flag("--json", options.json, "one JSON document on stdout, logs on stderr");
  command.add_flag("--quiet", options.quiet, "only warnings and errors");
  command.add_flag("--verbose", options.verbose, "more lines, and where an error arose");
  command.footer("Example:\n  " + example);
}

void print_json(const OrderedJson& document) {
  std::fputs(document.dump(2, ' ', false, OrderedJson::error_handler_t::replace).c_str(), stdout);
  std::fputc('\n', stdout);
}

bool use_colour() { return isatty(STDOUT_FILENO) && std::getenv("NO_COLOR") == nullptr; }

namespace {

void print_error(const std::string& message, const std::string& hint) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  if (!hint.empty()) std::fprintf(stderr, "  hint: %s\n", hint.c_str());
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
  // Sub-commands' callbacks run inside parse(): options are set by then.
  app.parse_complete_callback([] {});
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);
    return status == 0 ? 0 : static_cast<int>(ErrorCode::kConfig);
  } catch (const Error& error) {
    print_error(error.what(), error.hint());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    print_error(error.what(), "this is a defect of Trireme; please report it with the command that caused it");
    return static_cast<int>(ErrorCode::kInternal);
  }
}

}  // namespace trireme::cli
