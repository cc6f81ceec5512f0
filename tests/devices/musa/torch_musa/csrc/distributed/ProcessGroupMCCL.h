// In torch_musa's place, where it is not: its collectives are a port of these, name for name.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace c10d {
using ProcessGroupMCCL = ProcessGroupNCCL;
}
