#include "trireme/base/error.h"
#include "trireme/plan/published_run.h"

namespace trireme::plan {

namespace {

constexpr size_t kMostColumns = 4096;

std::vector<std::vector<std::string>> records_of(std::string_view text, const std::string& origin) {
  std::vector<std::vector<std::string>> records;
  std::vector<std::string> record;
  std::string cell;
  bool quoted = false;
  size_t line = 1;
  size_t quote_line = 1;
  const auto end_cell = [&] {
    record.push_back(std::move(cell));
    cell.clear();
    TRIREME_USER_CHECK(record.size() <= kMostColumns, kData, "check that this is CSV",
                       "{}:{}: more than {} columns", origin, line, kMostColumns);
  };
  const auto end_record = [&] {
    end_cell();
    if (record.size() > 1 || !record.front().empty()) records.push_back(std::move(record));
    record.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"') {
        cell += c;
      } else if (i + 1 < text.size() && text[i + 1] == '"') {
        cell += '"';
        ++i;
      } else {
        quoted = false;
      }
    } else if (c == '"' && cell.empty()) {
      quoted = true;
      quote_line = line;
    } else if (c == ',') {
      end_cell();
    } else if (c == '\n') {
      end_record();
    } else if (c != '\r') {
      cell += c;
    }
  }
  TRIREME_USER_CHECK(!quoted, kData, "close it with '\"'", "{}:{}: a quoted cell never ends",
                     origin, quote_line);
  if (!cell.empty() || !record.empty()) end_record();
  return records;
}

}  // namespace

std::vector<CsvRow> parse_csv(std::string_view text, const std::string& origin) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  const std::vector<std::vector<std::string>> records = records_of(text, origin);
  std::vector<CsvRow> rows;
  for (size_t r = 1; r < records.size(); ++r) {
    CsvRow row;
    for (size_t column = 0; column < records[0].size(); ++column)
      row[records[0][column]] = column < records[r].size() ? records[r][column] : "";
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace trireme::plan
