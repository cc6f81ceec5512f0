// A world whose groups use a device's own collectives, where there are some. Internal to comm/: knows c10d.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "trireme/comm/group.h"

namespace trireme::comm {

/// `host` meets, exchanges host bytes, and makes the groups of devices without collectives of their own
/// (collectives_library.h). `store` as make_gloo_world() has it; keys begin with "collectives/". Transfers longer than
/// `timeout_s` end the run. Error{kConfig}, on every rank, from make_group() where the members' collectives differ.
std::unique_ptr<World> make_plugin_world(std::unique_ptr<World> host,
                                         c10::intrusive_ptr<c10d::Store> store, double timeout_s);

}  // namespace trireme::comm
