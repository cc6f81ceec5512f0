#include "trireme/base/error.h"

namespace trireme::detail {

void fail_check(std::source_location where, const char* condition, const std::string& message) {
  throw Error(ErrorCode::kInternal, fmt::format("{} (must hold: {})", message, condition),
              "this is a defect of Trireme; please report it with the command that caused it",
              where);
}

}  // namespace trireme::detail
