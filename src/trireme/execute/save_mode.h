// plan's recomputation in the words of nn/. Internal to this room.
#pragma once

#include "trireme/nn/part.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

inline nn::SaveMode to_save_mode(plan::Recompute recompute) {
  switch (recompute) {
    case plan::Recompute::kNone:
      return nn::SaveMode::kAll;
    case plan::Recompute::kSelective:
      return nn::SaveMode::kSelective;
    case plan::Recompute::kFull:
      return nn::SaveMode::kInputOnly;
  }
  return nn::SaveMode::kAll;
}

}  // namespace trireme::execute
