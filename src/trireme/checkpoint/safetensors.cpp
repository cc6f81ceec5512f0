#include "trireme/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>

#include "trireme/base/error.h"

namespace trireme::checkpoint {

static_assert(std::endian::native == std::endian::little,
              "tensor data is written as it lies in memory");

namespace {

using Json = nlohmann::json;

struct DtypeRow {
  Dtype dtype;
  const char* name;
  int64_t size;
};
constexpr std::array<DtypeRow, 11> kDtypes = {{{Dtype::kBool, "BOOL", 1},
                                               {Dtype::kU8, "U8", 1},
                                               {Dtype::kI8, "I8", 1},
                                               {Dtype::kF8E4m3, "F8_E4M3", 1},
                                               {Dtype::kI16, "I16", 2},
                                               {Dtype::kF16, "F16", 2},
                                               {Dtype::kBf16, "BF16", 2},
                                               {Dtype::kI32, "I32", 4},
                                               {Dtype::kF32, "F32", 4},
                                               {Dtype::kF64, "F64", 8},
                                               {Dtype::kI64, "I64", 8}}};

const DtypeRow& row(Dtype dtype) {
  return kDtypes.at(static_cast<size_t>(dtype));
}

/// Reads the header's JSON event by event: two names that are equal are two events, not one value,
/// and a hostile header cannot make a deep document.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(SafetensorsHeader& header) : header_(header) {}
  const std::string& problem() const { return problem_; }

  bool start_object(size_t) override {
    if (level_ == Level::kNothing) return enter(Level::kTop);
    if (level_ == Level::kTop) return enter(in_metadata_ ? Level::kMetadata : Level::kTensor);
    return unexpected("an object");
  }
  bool key(std::string& name) override {
    if (level_ == Level::kTop) {
      if (!names_.insert(name).second)
        return fail(fmt::format("the name '{}' appears twice", name));
      in_metadata_ = name == "__metadata__";
      tensor_ = TensorInfo{};
      tensor_.name = name;
      fields_.clear();
      return true;
    }
    key_ = name;
    if (level_ == Level::kMetadata) {
      return header_.metadata.contains(name)
                 ? fail(fmt::format("the metadata key '{}' appears twice", name))
                 : true;
    }
    if (name != "dtype" && name != "shape" && name != "data_offsets") {
      return fail(fmt::format("tensor '{}' has the unknown key '{}'", tensor_.name, name));
    }
    if (!fields_.insert(name).second) {
      return fail(fmt::format("tensor '{}' has the key '{}' twice", tensor_.name, name));
    }
    return true;
  }
  bool end_object() override {
    if (level_ == Level::kTensor) {
      if (fields_.size() != 3) {
        return fail(fmt::format("tensor '{}' lacks dtype, shape or data_offsets", tensor_.name));
      }
      if (offsets_.size() != 2) {
        return fail(fmt::format("tensor '{}' has {} data_offsets", tensor_.name, offsets_.size()));
      }
      tensor_.begin = offsets_[0];
      tensor_.end = offsets_[1];
      header_.tensors.push_back(std::move(tensor_));
    }
    level_ = level_ == Level::kTop ? Level::kEnd : Level::kTop;
    return true;
  }
  bool start_array(size_t) override {
    if (level_ != Level::kTensor || key_ == "dtype") return unexpected("an array");
    if (key_ == "data_offsets") offsets_.clear();
    level_ = Level::kNumbers;
    return true;
  }
  bool end_array() override {
    level_ = Level::kTensor;
    return true;
  }
  bool number_unsigned(uint64_t value) override {
    if (level_ != Level::kNumbers) return unexpected("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return fail(fmt::format("tensor '{}': {} in {} is too large", tensor_.name, value, key_));
    }
    if (key_ == "shape") {
      tensor_.shape.push_back(static_cast<int64_t>(value));
    } else {
      offsets_.push_back(value);
    }
    return true;
  }
  bool string(std::string& value) override {
    if (level_ == Level::kMetadata) {
      header_.metadata.emplace(key_, value);
      return true;
    }
    if (level_ != Level::kTensor || key_ != "dtype") return unexpected("a string");
    for (const DtypeRow& known : kDtypes) {
      if (value == known.name) {
        tensor_.dtype = known.dtype;
        return true;
      }
    }
    return fail(fmt::format("tensor '{}' has the unknown dtype '{}'", tensor_.name, value));
  }
  bool number_integer(int64_t value) override { return unexpected(fmt::format("{}", value)); }
  bool number_float(double, const std::string& text) override { return unexpected(text); }
  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool binary(Json::binary_t&) override { return unexpected("binary data"); }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return fail(fmt::format("its header is not JSON (at byte {} of it)", position));
  }

 private:
  enum class Level { kNothing, kTop, kTensor, kMetadata, kNumbers, kEnd };

  bool enter(Level level) {
    level_ = level;
    return true;
  }
  bool fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }
  bool unexpected(const std::string& what) {
    return fail(tensor_.name.empty()
                    ? fmt::format("its header has {} where an object belongs", what)
                    : fmt::format("'{}' has {} in a wrong place", tensor_.name, what));
  }

  SafetensorsHeader& header_;
  Level level_ = Level::kNothing;
  bool in_metadata_ = false;
  TensorInfo tensor_;
  std::string key_;
  std::set<std::string> names_;
  std::set<std::string> fields_;
  std::vector<uint64_t> offsets_;
  std::string problem_;
};

/// Bytes of a tensor, or nothing where the product, taken in order, leaves int64.
std::optional<uint64_t> byte_count(const TensorInfo& tensor) {
  int64_t bytes = dtype_size(tensor.dtype);
  for (const int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return static_cast<uint64_t>(bytes);
}

}  // namespace

const char* dtype_name(Dtype dtype) {
  return row(dtype).name;
}
int64_t dtype_size(Dtype dtype) {
  return row(dtype).size;
}

int64_t TensorInfo::numel() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

const TensorInfo* SafetensorsHeader::find(std::string_view name) const {
  for (const TensorInfo& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size,
                                           const std::string& origin) {
  const char* const hint = "the file is damaged or not safetensors; copy or download it again";
  const auto require = [&](bool condition, const std::string& problem) {
    TRIREME_USER_CHECK(condition, kData, hint, "{}: {}", origin, problem);
  };
  require(file_size >= 8 && head.size() >= 8, "too short for a safetensors file");
  uint64_t length = 0;
  std::memcpy(&length, head.data(), 8);
  require(length >= 2 && length <= kMaxHeaderBytes,
          fmt::format("its header says {} bytes", length));
  require(length <= file_size - 8 && length <= head.size() - 8,
          fmt::format("truncated: its header says {} bytes, the file has {}", length, file_size));

  SafetensorsHeader header;
  header.data_start = 8 + length;
  const char* text = reinterpret_cast<const char*>(head.data()) + 8;
  require(text[0] == '{', "its header does not begin with '{'");
  HeaderReader reader(header);
  const bool parsed = Json::sax_parse(text, text + length, &reader);
  require(parsed, reader.problem().empty() ? "its header is not JSON" : reader.problem());

  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  const uint64_t data_bytes = file_size - header.data_start;
  uint64_t position = 0;
  for (const TensorInfo& tensor : header.tensors) {
    require(tensor.begin <= tensor.end,
            fmt::format("tensor '{}' ends before it begins", tensor.name));
    require(tensor.begin == position,
            fmt::format("tensor '{}' begins at {}, the data before it ends at {}", tensor.name,
                        tensor.begin, position));
    const std::optional<uint64_t> bytes = byte_count(tensor);
    require(bytes == tensor.bytes(),
            fmt::format("tensor '{}' has {} bytes, its dtype and shape need {}", tensor.name,
                        tensor.bytes(), bytes ? std::to_string(*bytes) : "more than 2^63"));
    require(tensor.end <= data_bytes,
            fmt::format("truncated: tensor '{}' ends at byte {}, the data has {}", tensor.name,
                        tensor.end, data_bytes));
    position = tensor.end;
  }
  require(position == data_bytes,
          fmt::format("{} bytes follow the last tensor", data_bytes - position));
  return header;
}

std::string make_safetensors_header(std::vector<TensorInfo>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  uint64_t position = 0;
  std::string text = "{";
  if (!metadata.empty()) {
    text += "\"__metadata__\":" + nlohmann::json(metadata).dump();
  }
  for (TensorInfo& tensor : tensors) {
    const std::optional<uint64_t> bytes = byte_count(tensor);
    TRIREME_CHECK(bytes.has_value(), "tensor '{}' is too large", tensor.name);
    tensor.begin = position;
    position += *bytes;
    tensor.end = position;
    // Written piece by piece: a document with all tensors as members would be searched linearly per
    // insertion.
    if (text.size() > 1) text += ',';
    text += nlohmann::json(tensor.name).dump() + ":{\"dtype\":\"" + dtype_name(tensor.dtype) +
            "\",\"shape\":" + nlohmann::json(tensor.shape).dump() +
            fmt::format(",\"data_offsets\":[{},{}]}}", tensor.begin, tensor.end);
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  uint64_t length = text.size();
  std::string head(8, '\0');
  std::memcpy(head.data(), &length, 8);
  return head + text;
}

}  // namespace trireme::checkpoint
