#include "trireme/data/jinja/parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "trireme/data/jinja/lexer.h"

namespace trireme::data::jinja {

namespace {

using EKind = Expression::Kind;
using SKind = Statement::Kind;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  ParsedTemplate run() {
    try {
      ParsedTemplate result;
      result.body = parse_block({});
      result.has_generation = has_generation_;
      return result;
    } catch (const Problem& problem) {
      fail("line {}: {}", peek().line, problem.what);
    }
  }

 private:
  /// Counts how deep a rule is inside others, for as long as it lives.
  class Nested {
   public:
    explicit Nested(int& depth) : depth_(depth) {
      if (++depth_ > kMaxDepth) fail("more than {} levels inside each other", kMaxDepth);
    }
    ~Nested() { --depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    int& depth_;
  };

  // --- tokens ---

  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token take() {
    Token token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_operator(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kOperator && peek(ahead).text == text;
  }
  bool is_name(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kName && peek(ahead).text == text;
  }
  bool accept(std::string_view text) {
    if (!is_operator(text)) return false;
    take();
    return true;
  }
  bool accept_name(std::string_view text) {
    if (!is_name(text)) return false;
    take();
    return true;
  }
  std::string seen() const {
    switch (peek().kind) {
      case TokenKind::kBlockEnd:
      case TokenKind::kVariableEnd:
        return "the end of the tag";
      case TokenKind::kEnd:
        return "the end of the template";
      default:
        return fmt::format("'{}'", peek().text);
    }
  }
  void expect(std::string_view text) {
    if (!accept(text)) fail("'{}' is wanted, not {}", text, seen());
  }
  void expect_name(std::string_view text) {
    if (!accept_name(text)) fail("'{}' is wanted, not {}", text, seen());
  }
  std::string expect_any_name(const char* what) {
    if (peek().kind != TokenKind::kName) fail("{} is wanted, not {}", what, seen());
    return take().text;
  }
  void end_block() {
    if (peek().kind != TokenKind::kBlockEnd) fail("the end of the tag is wanted, not {}", seen());
    take();
  }

  // --- statements ---

  /// Statements up to a tag that begins with one of `ends`, which is left to be read.
  Block parse_block(std::initializer_list<std::string_view> ends) {
    const Nested nested(nesting_);
    Block block;
    while (true) {
      const Token& token = peek();
      if (token.kind == TokenKind::kEnd) {
        if (ends.size() > 0) fail("{{% {} %}} is missing", *(ends.end() - 1));
        return block;
      }
      if (token.kind == TokenKind::kBlockBegin) {
        for (const std::string_view end : ends) {
          if (is_name(end, 1)) {
            take();
            return block;
          }
        }
      }
      block.push_back(parse_statement());
    }
  }

  std::unique_ptr<Statement> make(SKind kind) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = peek().line;
    return statement;
  }

  std::unique_ptr<Statement> parse_statement() {
    if (peek().kind == TokenKind::kText) {
      auto statement = make(SKind::kText);
      statement->text = take().text;
      return statement;
    }
    if (peek().kind == TokenKind::kVariableBegin) {
      take();
      auto statement = make(SKind::kPrint);
      statement->expression = parse_tuple();
      if (peek().kind != TokenKind::kVariableEnd) fail("'}}}}' is wanted, not {}", seen());
      take();
      return statement;
    }
    take();
    const std::string tag = expect_any_name("the name of a statement");
    if (tag == "if") return parse_if();
    if (tag == "for") return parse_for();
    if (tag == "set") return parse_set();
    if (tag == "macro") return parse_macro();
    if (tag == "generation") {
      auto statement = make(SKind::kGeneration);
      end_block();
      has_generation_ = true;
      statement->body = parse_block({"endgeneration"});
      take();
      end_block();
      return statement;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) fail("{{% {} %}} outside of a loop", tag);
      auto statement = make(tag == "break" ? SKind::kBreak : SKind::kContinue);
      end_block();
      return statement;
    }
    fail("the statement {{% {} %}} is not covered", tag);
  }

  std::unique_ptr<Statement> parse_if() {
    auto statement = make(SKind::kIf);
    while (true) {
      ExpressionPtr condition = parse_tuple(false);
      end_block();
      Block body = parse_block({"elif", "else", "endif"});
      statement->branches.emplace_back(std::move(condition), std::move(body));
      const std::string tag = take().text;
      if (tag == "elif") continue;
      if (tag == "else") {
        end_block();
        statement->otherwise = parse_block({"endif"});
        take();
      }
      end_block();
      return statement;
    }
  }

  std::vector<std::string> parse_names() {
    std::vector<std::string> names;
    const bool parenthesis = accept("(");
    do {
      if (!names.empty() && peek().kind != TokenKind::kName) break;
      names.push_back(expect_any_name("a variable's name"));
    } while (accept(","));
    if (parenthesis) expect(")");
    return names;
  }

  std::unique_ptr<Statement> parse_for() {
    auto statement = make(SKind::kFor);
    statement->names = parse_names();
    expect_name("in");
    statement->expression = parse_tuple(false);
    if (accept_name("if")) statement->condition = parse_expression();
    if (is_name("recursive")) fail("a recursive loop is not covered");
    end_block();
    ++loops_;
    statement->body = parse_block({"else", "endfor"});
    --loops_;
    if (take().text == "else") {
      end_block();
      statement->otherwise = parse_block({"endfor"});
      take();
    }
    end_block();
    return statement;
  }

  std::unique_ptr<Statement> parse_set() {
    auto statement = make(SKind::kSet);
    statement->names = parse_names();
    if (accept(".")) {
      if (statement->names.size() != 1) fail("several targets with an attribute are not covered");
      statement->attribute = expect_any_name("an attribute");
    }
    if (accept("=")) {
      statement->expression = parse_tuple();
      end_block();
      return statement;
    }
    if (statement->names.size() != 1 || !statement->attribute.empty())
      fail("'=' is wanted, not {}", seen());
    statement->kind = SKind::kSetBlock;
    if (is_operator("|")) statement->expression = parse_filters(expression(EKind::kLiteral));
    end_block();
    statement->body = parse_block({"endset"});
    take();
    end_block();
    return statement;
  }

  std::unique_ptr<Statement> parse_macro() {
    if (loops_ > 0 || in_macro_) fail("a macro inside a loop or a macro is not covered");
    auto statement = make(SKind::kMacro);
    statement->text = expect_any_name("a macro's name");
    expect("(");
    while (!accept(")")) {
      if (!statement->names.empty()) expect(",");
      statement->names.push_back(expect_any_name("a parameter"));
      if (accept("=")) {
        statement->defaults.push_back(parse_expression());
      } else if (!statement->defaults.empty()) {
        fail("the parameter {} needs a default, as one before it has", statement->names.back());
      }
    }
    end_block();
    in_macro_ = true;
    statement->body = parse_block({"endmacro"});
    in_macro_ = false;
    take();
    end_block();
    return statement;
  }

  // --- expressions, from the loosest binding to the tightest ---

  ExpressionPtr expression(EKind kind, std::vector<ExpressionPtr> operands = {},
                           std::string name = "") {
    auto result = std::make_unique<Expression>();
    result->kind = kind;
    result->line = peek().line;
    result->name = std::move(name);
    result->operands = std::move(operands);
    return measured(std::move(result));
  }
  static ExpressionPtr measured(ExpressionPtr e) {
    for (const auto& operand : e->operands)
      if (operand != nullptr) e->depth = std::max(e->depth, 1 + operand->depth);
    for (const auto& [name, value] : e->named) e->depth = std::max(e->depth, 1 + value->depth);
    if (e->depth > kMaxDepth) fail("an expression of more than {} levels", kMaxDepth);
    return e;
  }
  ExpressionPtr two(EKind kind, ExpressionPtr a, ExpressionPtr b, std::string name = "") {
    std::vector<ExpressionPtr> operands;
    operands.push_back(std::move(a));
    operands.push_back(std::move(b));
    return expression(kind, std::move(operands), std::move(name));
  }
  ExpressionPtr literal(Value value) {
    ExpressionPtr result = expression(EKind::kLiteral);
    result->literal = std::move(value);
    return result;
  }

  bool at_tuple_end() const {
    return peek().kind == TokenKind::kVariableEnd || peek().kind == TokenKind::kBlockEnd ||
           is_operator(")") || is_name("in");
  }

  /// a, b, c without parentheses, or one expression.
  ExpressionPtr parse_tuple(bool with_conditional = true) {
    const auto parse_one = [&] { return with_conditional ? parse_expression() : parse_or(); };
    ExpressionPtr first = parse_one();
    if (!is_operator(",")) return first;
    std::vector<ExpressionPtr> items;
    items.push_back(std::move(first));
    while (accept(",")) {
      if (at_tuple_end()) break;
      items.push_back(parse_one());
    }
    return expression(EKind::kTuple, std::move(items));
  }

  ExpressionPtr parse_expression() {
    const Nested nested(nesting_);
    ExpressionPtr value = parse_or();
    while (accept_name("if")) {
      ExpressionPtr condition = parse_or();
      std::vector<ExpressionPtr> operands;
      operands.push_back(std::move(condition));
      operands.push_back(std::move(value));
      operands.push_back(accept_name("else") ? parse_expression() : nullptr);
      value = expression(EKind::kConditional, std::move(operands));
    }
    return value;
  }

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (accept_name("or")) left = two(EKind::kOr, std::move(left), parse_and());
    return left;
  }

  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (accept_name("and")) left = two(EKind::kAnd, std::move(left), parse_not());
    return left;
  }

  ExpressionPtr parse_not() {
    if (!accept_name("not")) return parse_compare();
    const Nested nested(nesting_);
    std::vector<ExpressionPtr> operand;
    operand.push_back(parse_not());
    return expression(EKind::kUnary, std::move(operand), "not");
  }

  ExpressionPtr parse_compare() {
    std::vector<ExpressionPtr> operands;
    std::vector<std::string> operators;
    operands.push_back(parse_sum());
    while (true) {
      std::string name;
      if (peek().kind == TokenKind::kOperator &&
          (is_operator("==") || is_operator("!=") || is_operator("<") || is_operator("<=") ||
           is_operator(">") || is_operator(">="))) {
        name = take().text;
      } else if (is_name("in")) {
        name = take().text;
      } else if (is_name("not") && is_name("in", 1)) {
        take();
        take();
        name = "not in";
      } else {
        break;
      }
      operators.push_back(std::move(name));
      operands.push_back(parse_sum());
    }
    if (operators.empty()) return std::move(operands[0]);
    ExpressionPtr result = expression(EKind::kCompare, std::move(operands));
    result->operators = std::move(operators);
    return result;
  }

  using Rule = ExpressionPtr (Parser::*)();
  ExpressionPtr parse_binary(std::initializer_list<std::string_view> operators, Rule next) {
    ExpressionPtr left = (this->*next)();
    while (std::any_of(operators.begin(), operators.end(),
                       [&](std::string_view name) { return is_operator(name); })) {
      std::string name = take().text;
      left = two(EKind::kBinary, std::move(left), (this->*next)(), std::move(name));
    }
    return left;
  }
  ExpressionPtr parse_sum() { return parse_binary({"+", "-"}, &Parser::parse_concatenation); }
  ExpressionPtr parse_concatenation() { return parse_binary({"~"}, &Parser::parse_product); }
  ExpressionPtr parse_product() {
    return parse_binary({"*", "/", "//", "%"}, &Parser::parse_power);
  }
  ExpressionPtr parse_power() { return parse_binary({"**"}, &Parser::parse_filtered_unary); }
  ExpressionPtr parse_filtered_unary() { return parse_unary(true); }

  ExpressionPtr parse_unary(bool with_filters) {
    ExpressionPtr result;
    if (is_operator("-") || is_operator("+")) {
      const Nested nested(nesting_);
      std::string name = take().text;
      std::vector<ExpressionPtr> operand;
      operand.push_back(parse_unary(false));
      result = expression(EKind::kUnary, std::move(operand), std::move(name));
    } else {
      result = parse_primary();
    }
    result = parse_postfix(std::move(result));
    return with_filters ? parse_filters(std::move(result)) : std::move(result);
  }

  ExpressionPtr parse_primary() {
    const Nested nested(nesting_);
    const Token token = peek();
    switch (token.kind) {
      case TokenKind::kName:
        take();
        if (token.text == "true" || token.text == "True") return literal(true);
        if (token.text == "false" || token.text == "False") return literal(false);
        if (token.text == "none" || token.text == "None") return literal(Value::None{});
        return expression(EKind::kName, {}, token.text);
      case TokenKind::kString: {
        std::string text;
        while (peek().kind == TokenKind::kString) text += take().text;
        return literal(std::move(text));
      }
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return parse_number();
      default:
        break;
    }
    if (accept("(")) {
      if (accept(")")) return expression(EKind::kTuple);
      ExpressionPtr inside = parse_tuple();
      expect(")");
      return inside;
    }
    if (accept("[")) {
      std::vector<ExpressionPtr> items;
      while (!accept("]")) {
        if (!items.empty()) expect(",");
        if (accept("]")) break;
        items.push_back(parse_expression());
      }
      return expression(EKind::kList, std::move(items));
    }
    if (accept("{")) {
      std::vector<ExpressionPtr> items;
      while (!accept("}")) {
        if (!items.empty()) expect(",");
        if (accept("}")) break;
        items.push_back(parse_expression());
        expect(":");
        items.push_back(parse_expression());
      }
      return expression(EKind::kDict, std::move(items));
    }
    fail("an expression is wanted, not {}", seen());
  }

  ExpressionPtr parse_number() {
    const Token token = take();
    const char* end = token.text.data() + token.text.size();
    if (token.kind == TokenKind::kInteger) {
      int64_t value = 0;
      if (std::from_chars(token.text.data(), end, value).ec != std::errc())
        fail("the number {} is too large", token.text);
      return literal(value);
    }
    double value = 0;
    if (std::from_chars(token.text.data(), end, value).ec != std::errc())
      fail("the number {} is too large or too small", token.text);
    return literal(value);
  }

  ExpressionPtr parse_postfix(ExpressionPtr value) {
    while (true) {
      if (accept(".")) {
        if (peek().kind == TokenKind::kInteger) {
          value = two(EKind::kSubscript, std::move(value), parse_number());
          continue;
        }
        std::vector<ExpressionPtr> operand;
        operand.push_back(std::move(value));
        std::string name = expect_any_name("an attribute");
        value = expression(EKind::kAttribute, std::move(operand), std::move(name));
      } else if (accept("[")) {
        value = parse_subscript(std::move(value));
      } else if (accept("(")) {
        std::vector<ExpressionPtr> operands;
        operands.push_back(std::move(value));
        value = parse_arguments(expression(EKind::kCall, std::move(operands)));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr parse_subscript(ExpressionPtr value) {
    std::vector<ExpressionPtr> operands;
    operands.push_back(std::move(value));
    if (!is_operator(":")) operands.push_back(parse_expression());
    if (accept("]")) return expression(EKind::kSubscript, std::move(operands));
    if (is_operator(",")) fail("a subscript of several indices is not covered");
    if (operands.size() == 1) operands.push_back(nullptr);
    while (operands.size() < 4) {
      const bool more = accept(":");
      operands.push_back(more && !is_operator(":") && !is_operator("]") ? parse_expression()
                                                                        : nullptr);
    }
    expect("]");
    return expression(EKind::kSlice, std::move(operands));
  }

  /// The rest of a call, behind its "(".
  ExpressionPtr parse_arguments(ExpressionPtr call) {
    bool first = true;
    while (!accept(")")) {
      if (!first) expect(",");
      first = false;
      if (accept(")")) break;
      if (is_operator("*") || is_operator("**")) fail("unpacked arguments are not covered");
      if (peek().kind == TokenKind::kName && is_operator("=", 1)) {
        std::string name = take().text;
        take();
        call->named.emplace_back(std::move(name), parse_expression());
      } else {
        if (!call->named.empty()) fail("an argument without a name follows one with a name");
        call->operands.push_back(parse_expression());
      }
    }
    return measured(std::move(call));
  }

  ExpressionPtr parse_filters(ExpressionPtr value) {
    while (true) {
      std::vector<ExpressionPtr> operand;
      if (accept("|")) {
        std::string name = expect_any_name("a filter's name");
        operand.push_back(std::move(value));
        value = expression(EKind::kFilter, std::move(operand), std::move(name));
        if (accept("(")) value = parse_arguments(std::move(value));
      } else if (is_name("is")) {
        take();
        const bool negated = accept_name("not");
        std::string name = expect_any_name("a test's name");
        operand.push_back(std::move(value));
        value = expression(EKind::kTest, std::move(operand), std::move(name));
        if (accept("(")) {
          value = parse_arguments(std::move(value));
        } else if (begins_test_argument()) {
          value->operands.push_back(parse_postfix(parse_primary()));
          value = measured(std::move(value));
        }
        if (negated) {
          std::vector<ExpressionPtr> test;
          test.push_back(std::move(value));
          value = expression(EKind::kUnary, std::move(test), "not");
        }
      } else if (is_operator("(")) {
        value = parse_postfix(std::move(value));
      } else {
        return value;
      }
    }
  }

  bool begins_test_argument() const {
    switch (peek().kind) {
      case TokenKind::kString:
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return true;
      case TokenKind::kName:
        if (is_name("is")) fail("a chain of tests is not covered");
        return !is_name("else") && !is_name("or") && !is_name("and");
      default:
        return is_operator("[") || is_operator("{");
    }
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  bool in_macro_ = false;
  bool has_generation_ = false;
};

}  // namespace

ParsedTemplate parse_template(std::string_view source) {
  return Parser(tokenize_template(source)).run();
}

}  // namespace trireme::data::jinja
