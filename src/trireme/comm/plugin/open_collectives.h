// Back ends of the library that is in use. Internal to comm/: knows c10d.
#pragma once

#include <string>

#include "trireme/comm/plugin/collectives.h"

namespace trireme::comm {

/// A back end of the library that the type of device has. Throws what the library throws.
c10::intrusive_ptr<c10d::Backend> open_collectives(const std::string& type,
                                                   const CollectivesRequest& request);

}  // namespace trireme::comm
