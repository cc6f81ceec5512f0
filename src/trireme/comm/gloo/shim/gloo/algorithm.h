// Of Gloo's headers, which the wheel does not ship, what ProcessGroupGloo.hpp names. Declarations of our own; the code is in
// libtorch_cpu.so. This folder is on the include path of comm/ alone.
#pragma once

namespace gloo {
class Algorithm;
}  // namespace gloo
