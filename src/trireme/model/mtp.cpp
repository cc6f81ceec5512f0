#include "trireme/model/mtp.h"

#include "trireme/base/error.h"
#include "trireme/base/json.h"

namespace trireme::model {

ModelSpec without_mtp(const ModelSpec& spec) {
  if (spec.num_mtp_layers == 0) return spec;
  ModelSpec result = spec;
  size_t parts = spec.parts.size();
  while (parts > 0 && spec.is_mtp(static_cast<int>(parts) - 1)) --parts;
  size_t parameters = spec.parameters.size();
  while (parameters > 0 && spec.is_mtp(spec.parameters[parameters - 1].part)) --parameters;
  for (size_t i = 0; i < parameters; ++i) {
    TRIREME_CHECK(!spec.is_mtp(spec.parameters[i].part), "{} lies before the head",
                  spec.parameters[i].name);
  }
  result.parts.erase(result.parts.begin() + static_cast<std::ptrdiff_t>(parts), result.parts.end());
  result.parameters.erase(result.parameters.begin() + static_cast<std::ptrdiff_t>(parameters),
                          result.parameters.end());
  result.layers.erase(result.layers.end() - spec.num_mtp_layers, result.layers.end());
  result.num_mtp_layers = 0;
  OrderedJson config = parse_ordered_json(spec.config_json, "config.json", ErrorCode::kInternal);
  for (const char* key : {"num_nextn_predict_layers", "num_mtp_layers"}) {
    if (config.contains(key)) config[key] = 0;
  }
  result.config_json = config.dump(2) + "\n";
  return result;
}

}  // namespace trireme::model
