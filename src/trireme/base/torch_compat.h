// What differs between the torch releases that Trireme builds against (2.7 to 2.14), in one place.
//
// The one header of base/ that knows torch, and only its version; rooms of layer 1 and above may
// include it.
#pragma once

#if __has_include(<torch/headeronly/version.h>)
#include <torch/headeronly/version.h>
#else
#include <torch/csrc/api/include/torch/version.h>  // before 2.8
#endif

/// TRIREME_TORCH_AT_LEAST(2, 13): the torch being built against is 2.13 or later.
#define TRIREME_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) ||          \
   (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

static_assert(TRIREME_TORCH_AT_LEAST(2, 7), "Trireme needs torch 2.7 or later");
