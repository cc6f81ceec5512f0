#include "trireme/train/train_state.h"

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::train {

Json to_json(const TrainState& state) {
  Json loads = Json::object();
  for (const auto& [layer, load] : state.expert_load) loads[std::to_string(layer)] = load;
  return {{"version", 1},
          {"step", state.step},
          {"tokens", state.tokens},
          {"updates", state.updates},
          {"micro_batches", state.micro_batches},
          {"skips", state.skips},
          {"precision", state.precision},
          {"data", state.data},
          {"expert_load", loads},
          {"arithmetic", state.arithmetic}};
}

TrainState train_state_from_json(const Json& json, const std::string& origin) {
  try {
    TrainState state;
    state.step = json.at("step").get<int64_t>();
    state.tokens = json.at("tokens").get<int64_t>();
    state.updates = json.at("updates").get<int64_t>();
    state.micro_batches = json.at("micro_batches").get<int64_t>();
    state.skips = json.at("skips").get<int64_t>();
    state.precision = json.at("precision").get<std::string>();
    state.data = json.at("data").get<std::string>();
    state.arithmetic = json.value("arithmetic", "");
    if (const auto loads = json.find("expert_load"); loads != json.end()) {
      for (const auto& [layer, load] : loads->items())
        state.expert_load[std::stoi(layer)] = load.get<std::vector<int64_t>>();
    }
    return state;
  } catch (const std::logic_error& error) {
    throw Error(ErrorCode::kData,
                fmt::format("{}: the run's state has a layer of another name", origin),
                "resume from another checkpoint with --resume PATH");
  } catch (const Json::exception& error) {
    throw Error(ErrorCode::kData,
                fmt::format("{}: the run's state is not complete: {}", origin, error.what()),
                "resume from another checkpoint with --resume PATH");
  }
}

std::string state_name(const optim::StateTensor& state) {
  return checkpoint::kOptimizerPrefix + state.key + "." + state.parameter;
}

namespace {

/// Error{kData} if Muon's state of a stack of experts is missing because the run was begun when AdamW updated those.
void check_muon_of_experts(const checkpoint::Checkpoint& checkpoint, const std::string& name,
                           const model::ModelSpec& spec) {
  const std::string momentum = std::string(checkpoint::kOptimizerPrefix) + "momentum_buffer.";
  if (!name.starts_with(momentum) || checkpoint.has(name)) return;
  const std::string parameter = name.substr(momentum.size());
  const int index = spec.parameter_index(parameter);
  if (index < 0 || !spec.parameters[static_cast<size_t>(index)].is_expert()) return;
  TRIREME_USER_CHECK(
      !checkpoint.has(std::string(checkpoint::kOptimizerPrefix) + "exp_avg." + parameter), kData,
      "choose another out; model.init = \"" + checkpoint.path().string() +
          "\" starts a new run from these weights",
      "{} is of a run that updated experts with AdamW; Muon now updates every expert's matrices, "
      "and has no tensor '{}' to go on from",
      checkpoint.path().string(), name);
}

/// Every rank checks the tensors whose middles lie in its stretch of the checkpoint's bytes.
void verify_together(const checkpoint::Checkpoint& checkpoint, comm::World& world) {
  const std::vector<checkpoint::TensorEntry>& tensors = checkpoint.manifest().tensors;
  const auto bytes_of = [](const checkpoint::TensorEntry& entry) {
    uint64_t bytes = checkpoint::dtype_size(entry.info.dtype);
    for (const int64_t extent : entry.info.shape) bytes *= static_cast<uint64_t>(extent);
    return bytes;
  };
  uint64_t all = 0;
  for (const checkpoint::TensorEntry& entry : tensors) all += bytes_of(entry);
  const auto ranks = static_cast<uint64_t>(world.size());
  std::string damage;
  uint64_t before = 0;
  for (const checkpoint::TensorEntry& entry : tensors) {
    const uint64_t middle = before + bytes_of(entry) / 2;
    before += bytes_of(entry);
    if (middle * ranks / std::max<uint64_t>(all, 1) != static_cast<uint64_t>(world.rank()))
      continue;
    try {
      checkpoint.check_tensor(entry);
    } catch (const Error& error) {
      damage = Json{{"what", error.what()}, {"hint", error.hint()}}.dump();
      break;
    }
  }
  for (const std::string& found : world.exchange(damage)) {
    if (found.empty()) continue;
    const Json error = parse_json(found, "a rank's message");
    throw Error(ErrorCode::kData, error.at("what"), error.at("hint"));
  }
}

}  // namespace

void restore(const checkpoint::Checkpoint& checkpoint, nn::ParameterStore& store,
             optim::Optimizer& optimizer, comm::World& world) {
  const bool alone = world.size() == 1;
  if (!alone) verify_together(checkpoint, world);
  const auto tensor_of = [&](const std::string& name, const model::ParameterSpec& parameter) {
    check_muon_of_experts(checkpoint, name, store.spec());
    const at::Tensor theirs = checkpoint.tensor(name, alone);
    TRIREME_USER_CHECK(theirs.sizes() == at::IntArrayRef(parameter.whole_shape()), kData,
                       "the checkpoint is of another model", "{}: tensor {} has another shape",
                       checkpoint.path().string(), name);
    return nn::stretch(theirs, parameter);
  };
  for (int i = 0; i < store.num_parameters(); ++i) {
    const model::ParameterSpec& parameter = store.spec().parameters[static_cast<size_t>(i)];
    if (!store.has_part(parameter.part)) continue;
    store.set(i, tensor_of(parameter.name, parameter));
  }
  for (const optim::StateTensor& ours : optimizer.state()) {
    const auto index = static_cast<size_t>(store.spec().parameter_index(ours.parameter));
    const at::Tensor theirs = tensor_of(state_name(ours), store.spec().parameters[index]);
    at::Tensor target = ours.tensor.view({-1});
    target.copy_(theirs.reshape({-1}).narrow(0, ours.first, target.numel()));
  }
  store.refresh_compute();
}

}  // namespace trireme::train
