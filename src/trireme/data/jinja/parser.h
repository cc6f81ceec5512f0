// Templates as trees. Private to this folder.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trireme/data/jinja/value.h"

namespace trireme::data::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    kLiteral,      ///< literal
    kName,         ///< name
    kList,         ///< operands
    kTuple,        ///< operands
    kDict,         ///< operands: key, value, key, value ...
    kUnary,        ///< name is "-", "+" or "not"
    kBinary,       ///< name is the operator
    kCompare,      ///< operands[0] operators[0] operands[1] operators[1] ...
    kAnd,          ///< two operands
    kOr,           ///< two operands
    kConditional,  ///< condition, then, else (may be null)
    kAttribute,    ///< operands[0].name
    kSubscript,    ///< operands[0][operands[1]]
    kSlice,   ///< operands[0][operands[1]:operands[2]:operands[3]], each of the three may be null
    kCall,    ///< operands[0](operands[1] ..., named ...)
    kFilter,  ///< operands[0] | name(operands[1] ..., named ...)
    kTest     ///< operands[0] is name(operands[1] ...)
  };
  Kind kind = Kind::kLiteral;
  int line = 1;
  int depth = 1;
  std::string name;
  Value literal;
  std::vector<ExpressionPtr> operands;
  std::vector<std::string> operators;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct Statement {
  enum class Kind {
    kText,        ///< text
    kPrint,       ///< expression
    kIf,          ///< branches; otherwise
    kFor,         ///< names over expression, where condition; body; otherwise
    kSet,         ///< names (or names[0].attribute) = expression
    kSetBlock,    ///< names[0] = body, filtered by expression (its innermost operand is the body)
    kMacro,       ///< text(names with defaults): body
    kGeneration,  ///< body
    kBreak,
    kContinue
  };
  Kind kind = Kind::kText;
  int line = 1;
  std::string text;
  std::string attribute;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<std::string> names;
  std::vector<ExpressionPtr> defaults;  ///< of the last names
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  Block body;
  Block otherwise;
};

struct ParsedTemplate {
  Block body;
  bool has_generation = false;  ///< holds a {% generation %} block
};

/// A Problem, with the line in front, that names what is not covered.
ParsedTemplate parse_template(std::string_view source);

}  // namespace trireme::data::jinja
