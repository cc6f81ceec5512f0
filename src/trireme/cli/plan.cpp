// trireme plan explain | simulate; search, calibrate and score are files of their own
#include <fmt/core.h>

#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/log.h"
#include "trireme/cli/command.h"
#include "trireme/cli/plan_predict.h"
#include "trireme/device/probe.h"
#include "trireme/plan/explain.h"
#include "trireme/plan/local_spec.h"
#include "trireme/plan/trace.h"
#include "trireme/plan/world_trace.h"
#include "trireme/train/plan_report.h"
#include "trireme/train/run_config.h"
#include "trireme/train/run_setup.h"

namespace trireme::cli {

namespace {

struct PlanArguments {
  std::string run_file;
  std::vector<std::string> sets;
  bool all = false;
  std::string trace;
  std::string out;
  std::string report;
  double gemm_gflops = 0.0;
  double attention_gflops = 0.0;
  double bandwidth_gbs = 10.0;
  double host_link_gbs = 10.0;
  ClusterArguments on;
};

struct ModelProgram {
  model::ModelSpec spec;  ///< as rank 0 has it
  plan::Program program;
};

ModelProgram plan_run(const PlanArguments& arguments) {
  const train::RunFile run = train::load_run_file(arguments.run_file, arguments.sets);
  const model::ModelSpec spec = train::spec_of(run);
  const plan::Strategy strategy = train::strategy_of(run.config, spec);
  return {plan::local_spec(spec, strategy.parallel, 0), plan::build_program(spec, strategy)};
}

void explain(const PlanArguments& arguments, const GlobalOptions& options) {
  const ModelProgram run = plan_run(arguments);
  if (options.json) {
    print_json(plan::explain_json(run.spec, run.program));
  } else {
    fmt::print("{}", plan::explain(run.spec, run.program, arguments.all));
  }
}

plan::DeviceRates rates_of(const PlanArguments& arguments, plan::Precision precision) {
  double gemm = arguments.gemm_gflops;
  if (gemm <= 0) {
    const bool bf16 = precision == plan::Precision::kBf16;
    gemm = device::measure_gemm(bf16 ? at::kBFloat16 : at::kFloat, 1024, 1024, 1024, 0.5).median;
    log::info("measured {:.0f} GFLOP/s of {} products", gemm, plan::to_string(precision));
  }
  plan::DeviceRates rates;
  rates.product_flops = gemm * 1e9;
  rates.attention_flops =
      (arguments.attention_gflops > 0 ? arguments.attention_gflops : gemm / 2) * 1e9;
  rates.memory_bytes = arguments.bandwidth_gbs * 1e9;
  rates.host_link_bytes = arguments.host_link_gbs * 1e9;
  return rates;
}

void simulate_on_cluster(const PlanArguments& arguments, const GlobalOptions& options) {
  TRIREME_USER_CHECK(
      arguments.trace.empty(), kConfig,
      "leave out --cluster or --trace; `plan calibrate --from-trace` makes a cluster "
      "of a trace",
      "--trace is of one rank, --cluster is of a whole run");
  const train::RunFile file = train::load_run_file(arguments.run_file, arguments.sets);
  const model::ModelSpec spec = train::spec_of(file);
  const plan::PlannedRun run =
      planned_on_cluster(spec, train::strategy_of(file.config, spec), arguments.on);
  plan::PredictedWorld world;
  const plan::Prediction prediction = plan::predict(run, &world);
  if (!arguments.out.empty()) {
    write_file_atomically(arguments.out, plan::to_chrome_json(plan::world_traces(run, world),
                                                              plan::rank_names(run, world)));
  }
  if (!arguments.report.empty()) {
    write_file_atomically(arguments.report,
                          train::plan_report_html(arguments.run_file, run, prediction, world));
  }
  if (options.json) {
    print_json(plan::prediction_json(run, prediction));
  } else {
    fmt::print("{}", plan::describe(run, prediction));
  }
}

void simulate(const PlanArguments& arguments, const GlobalOptions& options) {
  if (!arguments.on.cluster.empty()) {
    simulate_on_cluster(arguments, options);
    return;
  }
  TRIREME_USER_CHECK(arguments.report.empty(), kConfig,
                     "name one: `plan calibrate` writes that of this machine",
                     "--report is of a run on a --cluster");
  const ModelProgram run = plan_run(arguments);
  std::vector<double> durations;
  if (!arguments.trace.empty()) {
    const plan::Trace trace = plan::parse_chrome_json(read_file(arguments.trace), arguments.trace);
    durations = plan::durations_of(trace, run.program);
  } else {
    durations = plan::estimate_durations(run.spec, run.program,
                                         rates_of(arguments, run.program.strategy.precision));
  }
  const plan::Simulation simulation = plan::simulate(run.program, durations);
  if (!arguments.out.empty()) {
    write_file_atomically(arguments.out, plan::to_chrome_json(plan::predicted_trace(
                                             run.spec, run.program, simulation)));
  }
  if (options.json) {
    print_json(plan::simulation_json(run.spec, run.program, simulation));
  } else {
    fmt::print("{}", plan::describe(run.spec, run.program, simulation));
  }
}

}  // namespace

void add_plan(CLI::App& app, GlobalOptions& options) {
  auto arguments = std::make_shared<PlanArguments>();
  CLI::App* plan = app.add_subcommand("plan", "show or simulate the program of a step");
  plan->require_subcommand(1);
  add_global_options(*plan, options, "trireme plan explain run.toml");

  const auto common = [&](CLI::App* command, const std::string& example) {
    command->add_option("run", arguments->run_file, "the run file")->required();
    command->add_option("--set", arguments->sets, "table.key=value, overrides the run file");
    add_global_options(*command, options, example);
  };

  CLI::App* explain_command =
      plan->add_subcommand("explain", "the step's instructions, memory and FLOPs, in words");
  common(explain_command, "trireme plan explain run.toml --set memory.recompute=full");
  explain_command->add_flag("--all", arguments->all,
                            "every micro-batch, also those that are alike");
  explain_command->callback([arguments, &options] { explain(*arguments, options); });

  CLI::App* simulate_command =
      plan->add_subcommand("simulate", "the step's time, memory and critical path");
  common(simulate_command, "trireme plan simulate run.toml --gemm-gflops 200");
  simulate_command->add_option("--cluster", arguments->on.cluster,
                               "predict the whole run on this cluster (a name of profiles/)");
  simulate_command
      ->add_option("--stack", arguments->on.stack, "as this training software would run it")
      ->default_val("trireme");
  simulate_command->add_option("--parallel", arguments->on.parallel,
                               "with --cluster: sizes as tp=8, over those of the run file");
  simulate_command->add_option("--profiles", arguments->on.profiles,
                               "more profiles (.toml); they come before those of the program");
  simulate_command->add_option("--trace", arguments->trace,
                               "take every instruction's duration from this measured trace.json");
  simulate_command->add_option("--out", arguments->out, "write the predicted trace.json here");
  simulate_command->add_option("--report", arguments->report,
                               "with --cluster: write a page with timeline and waterfalls here");
  simulate_command->add_option("--gemm-gflops", arguments->gemm_gflops,
                               "rate of matrix products; measured if not given");
  simulate_command->add_option("--attention-gflops", arguments->attention_gflops,
                               "rate of attention; half of the products' if not given");
  simulate_command->add_option("--bandwidth-gbs", arguments->bandwidth_gbs,
                               "memory bandwidth in GB/s");
  simulate_command->add_option("--host-link-gbs", arguments->host_link_gbs,
                               "rate of copies to the host, and from it, in GB/s");
  simulate_command->callback([arguments, &options] { simulate(*arguments, options); });
  add_plan_search(*plan, options);
  add_plan_calibrate(*plan, options);
  add_plan_score(*plan, options);
}

}  // namespace trireme::cli
