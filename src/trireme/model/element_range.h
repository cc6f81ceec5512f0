// A stretch of a part's flat buffers.
#pragma once

#include <cstdint>

namespace trireme::model {

/// Elements [first, last) of a part's parameters, which lie one after the other in the order of ModelSpec::parameters.
struct ElementRange {
  int64_t first = 0;
  int64_t last = 0;
  int64_t count() const { return last - first; }
  bool operator==(const ElementRange&) const = default;
};

}  // namespace trireme::model
