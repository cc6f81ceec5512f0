#include "trireme/comm/sum.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <array>

#include "trireme/base/error.h"

namespace trireme::comm {
namespace {

template <class Element>
void sum(const std::vector<const char*>& inputs, char* out, int64_t bytes) {
  constexpr int64_t kBlock = 2048;
  std::array<float, kBlock> total;
  auto* to = reinterpret_cast<Element*>(out);
  const int64_t elements = bytes / static_cast<int64_t>(sizeof(Element));
  for (int64_t first = 0; first < elements; first += kBlock) {
    const int64_t count = std::min(kBlock, elements - first);
    for (size_t input = 0; input < inputs.size(); ++input) {
      const auto* from = reinterpret_cast<const Element*>(inputs[input]) + first;
      if (input == 0) {
        for (int64_t i = 0; i < count; ++i) total[static_cast<size_t>(i)] = from[i];
      } else {
        for (int64_t i = 0; i < count; ++i)
          total[static_cast<size_t>(i)] += static_cast<float>(from[i]);
      }
    }
    for (int64_t i = 0; i < count; ++i)
      to[first + i] = static_cast<Element>(total[static_cast<size_t>(i)]);
  }
}

}  // namespace

void sum_pieces(c10::ScalarType dtype, const std::vector<const char*>& inputs, char* out,
                int64_t bytes) {
  if (dtype == c10::ScalarType::Float) return sum<float>(inputs, out, bytes);
  TRIREME_CHECK(dtype == c10::ScalarType::BFloat16, "a sum of {}", c10::toString(dtype));
  sum<c10::BFloat16>(inputs, out, bytes);
}

}  // namespace trireme::comm
