#include "trireme/train/train_state.h"

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

namespace {

std::string state_name(const optim::StateTensor& state) {
  return checkpoint::kOptimizerPrefix + state.key + "." + state.parameter;
}

}  // namespace

std::vector<checkpoint::NamedTensor> state_tensors(const nn::ParameterStore& store,
                                                   const optim::Optimizer& optimizer) {
  std::vector<checkpoint::NamedTensor> tensors;
  for (int i = 0; i < store.num_parameters(); ++i) {
    tensors.push_back({store.spec().parameters[static_cast<size_t>(i)].name, store.master(i)});
  }
  for (const optim::StateTensor& state : optimizer.state())
    tensors.push_back({state_name(state), state.tensor});
  return tensors;
}

void restore(const checkpoint::Checkpoint& checkpoint, nn::ParameterStore& store,
             optim::Optimizer& optimizer) {
  for (const checkpoint::NamedTensor& ours : state_tensors(store, optimizer)) {
    const at::Tensor theirs = checkpoint.tensor(ours.name);
    TRIREME_USER_CHECK(theirs.sizes() == ours.tensor.sizes(), kData,
                       "the checkpoint is of another model", "{}: tensor {} has another shape",
                       checkpoint.path().string(), ours.name);
    at::Tensor target = ours.tensor;
    target.copy_(theirs);
  }
  store.refresh_compute();
}

}  // namespace trireme::train
