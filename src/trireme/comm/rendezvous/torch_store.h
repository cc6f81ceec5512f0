// The rendezvous' key-value store as c10d's transports want one. For this room alone, which alone may include c10d.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "trireme/comm/rendezvous.h"

namespace trireme::comm {

/// Requests wait at most the store's own time-out (setTimeout(), or `timeout_s` until then). Thread-safe as far as c10d's stores are; what it
/// throws is Error{kDevice}. Two groups need a c10d::PrefixStore each.
c10::intrusive_ptr<c10d::Store> as_torch_store(std::shared_ptr<Rendezvous> rendezvous,
                                               double timeout_s);

}  // namespace trireme::comm
