// trireme trace summary | compare | export
#include <fmt/core.h>

#include <memory>

#include "trireme/base/file.h"
#include "trireme/cli/command.h"
#include "trireme/plan/trace_report.h"

namespace trireme::cli {

namespace {

struct TraceArguments {
  std::string a;
  std::string b;
  std::string out;
  int rows = 20;
  bool all = false;
};

plan::Trace read_trace(const std::string& path) {
  return plan::parse_chrome_json(read_file(path), path);
}

void summary(const TraceArguments& arguments, const GlobalOptions& options) {
  const plan::Trace trace = read_trace(arguments.a);
  const plan::TraceSummary figures = plan::summarize(trace);
  if (options.json) {
    print_json(plan::to_json(trace, figures));
  } else {
    fmt::print("{}", plan::describe(trace, figures));
  }
}

void compare(const TraceArguments& arguments, const GlobalOptions& options) {
  const plan::TraceComparison comparison =
      plan::compare(read_trace(arguments.a), read_trace(arguments.b));
  if (options.json) {
    print_json(plan::to_json(comparison));
  } else {
    fmt::print("{}", plan::describe(comparison, arguments.all ? 0 : arguments.rows));
  }
}

void export_csv(const TraceArguments& arguments, const GlobalOptions& options) {
  const plan::Trace trace = read_trace(arguments.a);
  const std::string text = plan::to_csv(trace);
  if (arguments.out.empty()) {
    fmt::print("{}", text);
    return;
  }
  write_file_atomically(arguments.out, text);
  if (options.json) {
    print_json({{"path", arguments.out}, {"instructions", trace.events.size()}});
  }
}

}  // namespace

void add_trace(CLI::App& app, GlobalOptions& options) {
  auto arguments = std::make_shared<TraceArguments>();
  CLI::App* trace = app.add_subcommand("trace", "look into the trace.json of a step");
  trace->require_subcommand(1);
  add_global_options(*trace, options, "trireme trace summary runs/first/trace.json");

  CLI::App* summary_command = trace->add_subcommand("summary", "where the step's time went");
  summary_command->add_option("trace", arguments->a, "a trace.json")->required();
  add_global_options(*summary_command, options, "trireme trace summary runs/first/trace.json");
  summary_command->callback([arguments, &options] { summary(*arguments, options); });

  CLI::App* compare_command =
      trace->add_subcommand("compare", "two traces of one program, instruction by instruction");
  compare_command->add_option("a", arguments->a, "a trace.json")->required();
  compare_command->add_option("b", arguments->b, "another, measured or predicted")->required();
  compare_command->add_option("--rows", arguments->rows, "how many instructions to show")
      ->check(CLI::PositiveNumber);
  compare_command->add_flag("--all", arguments->all, "show all instructions, in order");
  add_global_options(*compare_command, options,
                     "trireme trace compare runs/first/trace.json predicted.json");
  compare_command->callback([arguments, &options] { compare(*arguments, options); });

  CLI::App* export_command = trace->add_subcommand("export", "one CSV line per instruction");
  export_command->add_option("trace", arguments->a, "a trace.json")->required();
  export_command->add_option("--out", arguments->out, "write here instead of stdout");
  add_global_options(*export_command, options,
                     "trireme trace export runs/first/trace.json --out step.csv");
  export_command->callback([arguments, &options] { export_csv(*arguments, options); });
}

}  // namespace trireme::cli
