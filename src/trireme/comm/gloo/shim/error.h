// See gloo/algorithm.h. CMake puts it where Gloo has it, in gloo/common/.
#pragma once

#include <chrono>
#include <stdexcept>
