// What a training step pays for data when nothing hides it, and how fast windows are found.
#include <benchmark/benchmark.h>

#include <filesystem>
#include <random>

#include "trireme/data/dataset.h"
#include "trireme/data/loader.h"

namespace trireme::data {
namespace {

/// 4 million tokens in documents of about 1,000.
std::shared_ptr<const Dataset> make_dataset(Packing packing) {
  const auto prefix = std::filesystem::temp_directory_path() / "trireme-loader-bench";
  std::mt19937_64 random(1);
  IndexedDatasetWriter writer(prefix, TokenType::kUint16);
  while (writer.num_tokens() < 4'000'000) {
    std::vector<int32_t> document(random() % 2000 + 1);
    for (auto& id : document) id = static_cast<int32_t>(random() % 50000);
    writer.add(document);
  }
  writer.finish();
  auto stream = std::make_shared<TokenStream>();
  stream->add_all(std::make_shared<const IndexedDataset>(prefix));
  return std::make_shared<const Dataset>(std::vector<Dataset::Part>{{stream, 1.0, "bench"}}, 1024,
                                         packing, 1);
}

void BM_Place(benchmark::State& state) {
  const auto dataset = make_dataset(Packing::kStream);
  int64_t sample = int64_t{1} << 40;
  for (auto _ : state) benchmark::DoNotOptimize(dataset->place(sample++));
}
BENCHMARK(BM_Place);

void BM_Samples(benchmark::State& state) {
  const auto dataset = make_dataset(state.range(0) == 0 ? Packing::kStream : Packing::kDocuments);
  int64_t sample = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(dataset->samples(sample, 8));
    sample += 8;
  }
  state.SetItemsProcessed(state.iterations() * 8 * 1024);  // tokens
}
BENCHMARK(BM_Samples)->ArgName("documents")->Arg(0)->Arg(1);

void BM_LoaderNext(benchmark::State& state) {
  Loader loader(make_dataset(Packing::kDocuments), consecutive_samples(8));
  for (auto _ : state) benchmark::DoNotOptimize(loader.next());
  state.SetItemsProcessed(state.iterations() * 8 * 1024);
}
BENCHMARK(BM_LoaderNext);

}  // namespace
}  // namespace trireme::data
