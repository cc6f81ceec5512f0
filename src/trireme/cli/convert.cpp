// trireme convert import HF_DIR OUT | export CHECKPOINT HF_DIR
#include <fmt/core.h>

#include <memory>

#include "trireme/base/error.h"
#include "trireme/checkpoint/model_source.h"
#include "trireme/cli/command.h"
#include "trireme/device/memory.h"

namespace trireme::cli {

namespace {

struct ConvertOptions {
  std::string from;
  std::string to;
  std::string dtype = "auto";
  bool force = false;
  bool fp8 = false;
  bool without_mtp = false;
  double shard_gb = 5.0;
};

void report(int64_t tensors, uint64_t bytes, const std::string& path,
            const GlobalOptions& options) {
  if (options.json) {
    print_json({{"tensors", tensors}, {"bytes", bytes}, {"path", path}});
  } else {
    fmt::print("{}: {} tensors, {:.1f} MB\n", path, tensors, static_cast<double>(bytes) / 1e6);
  }
}

void run_import(const ConvertOptions& convert, const GlobalOptions& options) {
  device::install_cpu_allocator();
  const auto manifest = checkpoint::import_huggingface(convert.from, convert.to, convert.force);
  uint64_t bytes = 0;
  for (const auto& tensor : manifest.tensors) bytes += tensor.info.bytes();
  report(static_cast<int64_t>(manifest.tensors.size()), bytes, convert.to, options);
}

void run_export(const ConvertOptions& convert, const GlobalOptions& options) {
  // Scales are kept until they are written: malloc would take them from the holes of weights, and memory would grow by every one.
  device::install_cpu_allocator();
  auto source = checkpoint::open_model(convert.from);
  if (convert.without_mtp) source = checkpoint::without_mtp(std::move(source));
  checkpoint::ExportOptions export_options;
  export_options.dtype = convert.dtype == "auto"       ? source.stored_dtype
                         : convert.dtype == "bfloat16" ? checkpoint::Dtype::kBf16
                         : convert.dtype == "float16"  ? checkpoint::Dtype::kF16
                                                       : checkpoint::Dtype::kF32;
  export_options.form = source.form;
  if (convert.dtype != "auto") export_options.form.other_dtypes.clear();
  export_options.fp8 = convert.fp8;
  export_options.scales = source.scales;
  export_options.replace = convert.force;
  TRIREME_USER_CHECK(convert.shard_gb > 0, kConfig, "the default is 5",
                     "--shard-gb {} is not positive", convert.shard_gb);
  export_options.shard_bytes = static_cast<int64_t>(convert.shard_gb * 1e9);
  const auto result = checkpoint::export_huggingface(convert.to, source.spec, source.parameters,
                                                     source.texts, export_options);
  report(result.num_tensors, result.bytes, result.path.string(), options);
}

}  // namespace

void add_convert(CLI::App& app, GlobalOptions& options) {
  CLI::App* command =
      app.add_subcommand("convert", "Exchange models with Hugging Face directories");
  command->require_subcommand(1);
  add_global_options(*command, options, "trireme convert export runs/first exported");
  const auto convert = std::make_shared<ConvertOptions>();

  CLI::App* import =
      command->add_subcommand("import", "Make a checkpoint of a Hugging Face directory");
  import->add_option("hf_dir", convert->from, "directory with config.json and safetensors weights")
      ->required();
  import->add_option("out", convert->to, "folder of the new checkpoint")->required();
  import->add_flag("--force", convert->force, "replace what is there");
  add_global_options(*import, options, "trireme convert import ./gpt2 gpt2-checkpoint");
  import->callback([convert, &options] { run_import(*convert, options); });

  CLI::App* output =
      command->add_subcommand("export", "Make a Hugging Face directory of a checkpoint");
  output->add_option("checkpoint", convert->from, "a checkpoint, or a run's folder for its newest")
      ->required();
  output->add_option("hf_dir", convert->to, "the new directory")->required();
  output
      ->add_option("--dtype", convert->dtype,
                   "type of the weights; auto: as imported, else float32")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}));
  output->add_flag("--fp8", convert->fp8,
                   "linear weights of the blocks as fp8 in blocks of 128 x 128 with scales, as "
                   "DeepSeek-V3 publishes them; --dtype is of the others");
  output->add_flag("--without-mtp", convert->without_mtp,
                   "leave the layers of multi-token prediction out, which transformers does not "
                   "know");
  output->add_option("--shard-gb", convert->shard_gb,
                     "cut the weights into files of this many GB and an index");
  output->add_flag("--force", convert->force, "replace what is there");
  add_global_options(*output, options, "trireme convert export runs/first exported");
  output->callback([convert, &options] { run_export(*convert, options); });
}

}  // namespace trireme::cli
