// Published training runs as rows of CSV, and what the planner makes of them. Pure: the caller reads files.
//
// The columns are those of the ground truth's shared schema; any may be missing or blank. docs/planner.md says what is taken for a
// blank.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/plan/prediction.h"

namespace trireme::plan {

/// Cells by column.
using CsvRow = std::map<std::string, std::string>;

/// RFC 4180: quoted cells with commas, doubled quotes and line breaks; the first record has the columns' names. Cells beyond the
/// columns are dropped, missing ones are blank. Error{kData} naming `origin` if a quote never ends or there are more than
/// 4096 columns.
std::vector<CsvRow> parse_csv(std::string_view text, const std::string& origin);

struct PublishedRun {
  std::string row_id;
  std::string source;  ///< what the row's id begins with, else the file's name
  PlannedRun run;
  std::optional<double> step_s;      ///< measured
  std::optional<double> peak_bytes;  ///< measured, where it is a peak
  bool out_of_memory = false;        ///< it did not fit
};

/// Why a row is not used; `counts` is false for one that is not meant to be (quality C and D).
struct Refusal {
  std::string reason;
  bool counts = true;
};

/// Whether a file's first row looks like the shared schema.
bool has_run_schema(const std::vector<CsvRow>& rows);

/// The row as model, cluster and strategy, with calibrations that do not come from `without`; or why not, in `refusal`.
std::optional<PublishedRun> read_published_run(const CsvRow& row, const std::string& file,
                                               const ProfileLibrary& library,
                                               const std::string& without, Refusal& refusal);

}  // namespace trireme::plan
