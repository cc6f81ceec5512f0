// JSON in and out: nlohmann::json with errors that name the file.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "trireme/base/error.h"

namespace trireme {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

/// Parses JSON text; Error{code} naming `origin`, line and column.
Json parse_json(std::string_view text, const std::string& origin,
                ErrorCode code = ErrorCode::kData);
OrderedJson parse_ordered_json(std::string_view text, const std::string& origin,
                               ErrorCode code = ErrorCode::kData);

}  // namespace trireme
