#include "trireme/base/error.h"

namespace trireme::detail {

void fail_check(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(ErrorCode::kInternal, fmt::format("{} ({}:{}: {})", message, file, line, condition),
              "this is a defect of Trireme; please report it with the command that caused it");
}

}  // namespace trireme::detail
