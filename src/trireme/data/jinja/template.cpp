#include "trireme/data/jinja/template.h"

#include <algorithm>
#include <exception>

#include "trireme/base/error.h"
#include "trireme/data/jinja/builtins.h"
#include "trireme/data/jinja/parser.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data::jinja {

namespace {

constexpr int64_t kMaxSteps = 20'000'000;
constexpr int64_t kBytesPerStep = 64;

using EKind = Expression::Kind;
using SKind = Statement::Kind;

/// Names that are set in a template, a loop or a macro. Lives as long as what it belongs to.
class Scope {
 public:
  explicit Scope(const Scope* parent = nullptr) : parent_(parent) {}
  void set(const std::string& name, Value value) {
    for (auto& [known, old] : values_) {
      if (known != name) continue;
      old = std::move(value);
      return;
    }
    values_.emplace_back(name, std::move(value));
  }
  const Value* find(const std::string& name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent_) {
      for (const auto& [known, value] : scope->values_)
        if (known == name) return &value;
    }
    return nullptr;
  }

 private:
  const Scope* parent_;
  std::vector<std::pair<std::string, Value>> values_;
};

enum class Flow { kNormal, kBreak, kContinue };

class Renderer {
 public:
  explicit Renderer(int64_t now) : now_(now) {}
  ~Renderer() {
    // A namespace may hold itself.
    for (const auto& space : namespaces_) space->items.clear();
  }
  Renderer(const Renderer&) = delete;
  Renderer& operator=(const Renderer&) = delete;

  Text render(const Block& body, std::vector<std::pair<std::string, Value>> variables) {
    Scope globals;
    define_functions(globals);
    for (auto& [name, value] : variables) globals.set(name, std::move(value));
    Scope scope(&globals);
    template_scope_ = &scope;
    Text out;
    run(body, scope, out);
    return out;
  }

  int line() const { return line_; }

 private:
  class Deeper {
   public:
    explicit Deeper(int& depth) : depth_(depth) {
      if (++depth_ > 4 * kMaxDepth) fail("more than {} calls inside each other", 4 * kMaxDepth);
    }
    ~Deeper() { --depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    int& depth_;
  };

  void step(int line) {
    line_ = line;
    if (++steps_ > kMaxSteps) fail("the template does not come to an end in {} steps", kMaxSteps);
  }

  static Value function(const char* name, std::function<Value(const Arguments&)> call) {
    return std::make_shared<const Function>(Function{name, std::move(call)});
  }

  void define_functions(Scope& scope) {
    scope.set("range", function("range", make_range));
    scope.set("raise_exception", function("raise_exception", [](const Arguments& a) -> Value {
                throw Problem{to_text(a.bind("raise_exception", {"message"})[0]).bytes(), true};
              }));
    scope.set("strftime_now", function("strftime_now", [this](const Arguments& a) {
                return format_time(now_, a);
              }));
    scope.set("namespace", function("namespace", [this](const Arguments& a) -> Value {
                auto space = std::make_shared<Mapping>();
                space->is_namespace = true;
                fill(a, *space);
                namespaces_.push_back(space);
                return space;
              }));
    scope.set("dict", function("dict", [](const Arguments& a) -> Value {
                Mapping items;
                fill(a, items);
                return Value::dict(std::move(items.items));
              }));
  }

  static void fill(const Arguments& a, Mapping& mapping) {
    if (a.positional.size() > 1) fail("namespace() and dict() take at most one dict");
    if (!a.positional.empty()) {
      if (!a.positional[0].is_dict()) fail("a dict is wanted, not {}", a.positional[0].type_name());
      mapping.items = a.positional[0].mapping().items;
    }
    for (const auto& [name, value] : a.named) mapping.set(name, value);
  }

  // --- statements ---

  void print(const Text& text, Text& out) {
    out.append(text);
    written_ += text.size();
    if (written_ > kMaxTextBytes) fail("the template prints more than {} bytes", kMaxTextBytes);
  }

  Flow run(const Block& block, Scope& scope, Text& out) {
    const Deeper deeper(depth_);
    for (const auto& statement : block) {
      const Flow flow = run(*statement, scope, out);
      if (flow != Flow::kNormal) return flow;
    }
    return Flow::kNormal;
  }

  Flow run(const Statement& s, Scope& scope, Text& out) {
    step(s.line);
    switch (s.kind) {
      case SKind::kText:
        print(Text(s.text), out);
        break;
      case SKind::kPrint:
        print(to_text(evaluate(*s.expression, scope)), out);
        break;
      case SKind::kIf:
        for (const auto& [condition, body] : s.branches)
          if (evaluate(*condition, scope).truth()) return run(body, scope, out);
        return run(s.otherwise, scope, out);
      case SKind::kFor:
        run_loop(s, scope, out);
        break;
      case SKind::kSet:
        assign(s, evaluate(*s.expression, scope), scope);
        break;
      case SKind::kSetBlock: {
        Text body;
        Scope inside(&scope);
        const Flow flow = run(s.body, inside, body);
        if (flow != Flow::kNormal) return flow;
        Value value(std::move(body));
        if (s.expression != nullptr) value = filter_block(*s.expression, value, scope);
        scope.set(s.names[0], std::move(value));
        break;
      }
      case SKind::kMacro:
        // A macro may be called as long as the template is rendered, and so lives its scope.
        template_scope_->set(
            s.text, function(s.text.c_str(),
                             [this, &s](const Arguments& a) -> Value { return call_macro(s, a); }));
        break;
      case SKind::kGeneration: {
        Text body;
        Scope inside(&scope);
        const Flow flow = run(s.body, inside, body);
        out.append(body.marked(kGenerated));
        return flow;
      }
      case SKind::kBreak:
        return Flow::kBreak;
      case SKind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNormal;
  }

  void assign(const Statement& s, Value value, Scope& scope) {
    if (!s.attribute.empty()) {
      const Value* target = scope.find(s.names[0]);
      if (target == nullptr || !target->is_namespace())
        fail("{}.{} can be set in a namespace() only", s.names[0], s.attribute);
      target->mapping().set(s.attribute, std::move(value));
      return;
    }
    unpack(s.names, std::move(value), scope);
  }

  static void unpack(const std::vector<std::string>& names, Value value, Scope& scope) {
    if (names.size() == 1) return scope.set(names[0], std::move(value));
    const auto items = elements(value);
    if (items.size() != names.size()) fail("{} values for {} names", items.size(), names.size());
    for (size_t i = 0; i < names.size(); ++i) scope.set(names[i], items[i]);
  }

  void run_loop(const Statement& s, Scope& scope, Text& out) {
    std::vector<Value> items = elements(evaluate(*s.expression, scope));
    std::exception_ptr error_behind;  // of the condition: raised when the loop gets there
    if (s.condition != nullptr) items = those_that_hold(s, std::move(items), scope, error_behind);
    if (items.empty()) {
      if (error_behind != nullptr) std::rethrow_exception(error_behind);
      run(s.otherwise, scope, out);
      return;
    }
    const auto loop = std::make_shared<Mapping>();
    loop->is_namespace = true;
    namespaces_.push_back(loop);
    const auto count = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < count; ++i) {
      step(s.line);
      describe_loop(*loop, items, i);
      Scope inside(&scope);
      inside.set("loop", loop);
      unpack(s.names, items[static_cast<size_t>(i)], inside);
      if (run(s.body, inside, out) == Flow::kBreak) {
        error_behind = nullptr;
        break;
      }
    }
    loop->items.clear();
    if (namespaces_.back() == loop) namespaces_.pop_back();
    if (error_behind != nullptr) std::rethrow_exception(error_behind);
  }

  /// Those before the first one that the condition fails on.
  std::vector<Value> those_that_hold(const Statement& s, std::vector<Value> items, Scope& scope,
                                     std::exception_ptr& error_behind) {
    std::vector<Value> kept;
    try {
      for (Value& item : items) {
        Scope inside(&scope);
        unpack(s.names, item, inside);
        if (evaluate(*s.condition, inside).truth()) kept.push_back(std::move(item));
      }
    } catch (const Problem&) {
      error_behind = std::current_exception();
    }
    return kept;
  }

  static void describe_loop(Mapping& loop, const std::vector<Value>& items, int64_t i) {
    const auto count = static_cast<int64_t>(items.size());
    const auto neighbour = [&](int64_t at) {
      return at >= 0 && at < count ? items[static_cast<size_t>(at)] : Value();
    };
    loop.set("index", i + 1);
    loop.set("index0", i);
    loop.set("revindex", count - i);
    loop.set("revindex0", count - i - 1);
    loop.set("first", i == 0);
    loop.set("last", i == count - 1);
    loop.set("length", count);
    loop.set("previtem", neighbour(i - 1));
    loop.set("nextitem", neighbour(i + 1));
    loop.set("cycle", function("cycle", [i](const Arguments& a) -> Value {
               if (a.positional.empty()) fail("loop.cycle() of nothing");
               return a.positional[static_cast<size_t>(i) % a.positional.size()];
             }));
  }

  Value call_macro(const Statement& s, const Arguments& given) {
    const Deeper deeper(depth_);
    std::vector<const char*> names;
    for (const std::string& name : s.names) names.push_back(name.c_str());
    std::vector<Value> values = given.bind(s.text, names);
    Scope scope(template_scope_);
    const size_t first_default = s.names.size() - s.defaults.size();
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i].is_undefined() && i >= first_default)
        values[i] = evaluate(*s.defaults[i - first_default], scope);
      scope.set(s.names[i], values[i]);
    }
    Text out;
    run(s.body, scope, out);
    return out;
  }

  // --- expressions ---

  Arguments arguments_of(const Expression& e, Scope& scope) {
    Arguments arguments;
    for (size_t i = 1; i < e.operands.size(); ++i)
      arguments.positional.push_back(evaluate(*e.operands[i], scope));
    for (const auto& [name, value] : e.named)
      arguments.named.emplace_back(name, evaluate(*value, scope));
    return arguments;
  }

  /// The filters of a {% set %} block, whose innermost operand is the block.
  Value filter_block(const Expression& e, const Value& body, Scope& scope) {
    if (e.kind == EKind::kLiteral) return body;
    if (e.kind != EKind::kFilter) fail("a set block with more than filters is not covered");
    return call_filter(e.name, filter_block(*e.operands[0], body, scope), arguments_of(e, scope));
  }

  Value evaluate(const Expression& e, Scope& scope) {
    step(e.line);
    const Deeper deeper(depth_);
    Value value = evaluate_kind(e, scope);
    // What is long takes time, too.
    if (value.is_text()) steps_ += static_cast<int64_t>(value.text().size()) / kBytesPerStep;
    if (value.is_list()) steps_ += static_cast<int64_t>(value.items().size());
    return value;
  }

  Value evaluate_kind(const Expression& e, Scope& scope) {
    const auto operand = [&](size_t i) { return evaluate(*e.operands[i], scope); };
    switch (e.kind) {
      case EKind::kLiteral:
        return e.literal;
      case EKind::kName: {
        const Value* value = scope.find(e.name);
        return value != nullptr ? *value : Value(Value::Undefined{e.name});
      }
      case EKind::kList:
      case EKind::kTuple: {
        std::vector<Value> items;
        for (size_t i = 0; i < e.operands.size(); ++i) items.push_back(operand(i));
        return Value::list(std::move(items), e.kind == EKind::kTuple);
      }
      case EKind::kDict: {
        std::vector<std::pair<std::string, Value>> items;
        for (size_t i = 0; i < e.operands.size(); i += 2) {
          const Value key = operand(i);
          if (!key.is_text()) fail("a dict's key of type {} is not covered", key.type_name());
          items.emplace_back(key.bytes(), operand(i + 1));
        }
        return Value::dict(std::move(items));
      }
      case EKind::kUnary: {
        const Value value = operand(0);
        if (e.name == "not") return !value.truth();
        if (value.is_undefined()) fail("'{}' is undefined", value.undefined_name());
        if (value.is_float()) return e.name == "-" ? -value.number() : value.number();
        return e.name == "-" ? binary("-", int64_t{0}, value) : Value(value.integer());
      }
      case EKind::kBinary: {
        const Value left = operand(0);
        return binary(e.name, left, operand(1));
      }
      case EKind::kCompare: {
        Value left = operand(0);
        for (size_t i = 0; i < e.operators.size(); ++i) {
          Value right = operand(i + 1);
          if (!holds(e.operators[i], left, right)) return false;
          left = std::move(right);
        }
        return true;
      }
      case EKind::kAnd: {
        Value left = operand(0);
        return left.truth() ? operand(1) : left;
      }
      case EKind::kOr: {
        Value left = operand(0);
        return left.truth() ? left : operand(1);
      }
      case EKind::kConditional:
        if (operand(0).truth()) return operand(1);
        return e.operands[2] == nullptr ? Value() : operand(2);
      case EKind::kAttribute:
        return get_attribute(operand(0), e.name);
      case EKind::kSubscript: {
        const Value object = operand(0);
        return get_item(object, operand(1));
      }
      case EKind::kSlice: {
        const Value object = operand(0);
        const auto bound = [&](size_t i) {
          return e.operands[i] == nullptr ? Value() : operand(i);
        };
        return get_slice(object, bound(1), bound(2), bound(3));
      }
      case EKind::kCall:
        return call(e, scope);
      case EKind::kFilter: {
        const Value value = operand(0);
        return call_filter(e.name, value, arguments_of(e, scope));
      }
      case EKind::kTest: {
        const Value value = operand(0);
        return call_test(e.name, value, arguments_of(e, scope));
      }
    }
    return {};
  }

  static bool holds(const std::string& name, const Value& a, const Value& b) {
    if (name == "==") return equal(a, b);
    if (name == "!=") return !equal(a, b);
    if (name == "in") return contains(b, a);
    if (name == "not in") return !contains(b, a);
    for (const Value* value : {&a, &b})
      if (value->is_undefined()) fail("'{}' is undefined", value->undefined_name());
    const int order = compare(a, b);
    if (name == "<") return order < 0;
    if (name == "<=") return order <= 0;
    return name == ">" ? order > 0 : order >= 0;
  }

  Value call(const Expression& e, Scope& scope) {
    const Expression& callee = *e.operands[0];
    if (callee.kind == EKind::kAttribute) {
      const Value object = evaluate(*callee.operands[0], scope);
      if (!object.is_namespace()) return call_method(object, callee.name, arguments_of(e, scope));
      return call_value(get_attribute(object, callee.name), callee.name, e, scope);
    }
    const std::string name = callee.kind == EKind::kName ? callee.name : "a value";
    return call_value(evaluate(callee, scope), name, e, scope);
  }

  Value call_value(const Value& value, const std::string& name, const Expression& e, Scope& scope) {
    if (value.is_undefined()) fail("the function {}() is not covered", name);
    if (!value.is_function()) fail("{} is {} and cannot be called", name, value.type_name());
    const Value keep = value;
    const Value result = keep.function().call(arguments_of(e, scope));
    line_ = e.line;
    return result;
  }

  const int64_t now_;
  Scope* template_scope_ = nullptr;
  std::vector<std::shared_ptr<Mapping>> namespaces_;
  int64_t steps_ = 0;
  size_t written_ = 0;
  int depth_ = 0;
  int line_ = 1;
};

}  // namespace

Template::Template(std::string_view source, std::string origin) : origin_(std::move(origin)) {
  TRIREME_USER_CHECK(is_valid_utf8(source), kData, "save it as UTF-8", "{} is not UTF-8", origin_);
  try {
    parsed_ = std::make_unique<const ParsedTemplate>(parse_template(source));
  } catch (const Problem& problem) {
    throw Error(ErrorCode::kData, fmt::format("{}, {}", origin_, problem.what),
                "rewrite that part of the template, and give it as data.chat_template");
  }
}

Template::~Template() = default;
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;

bool Template::has_generation() const {
  return parsed_->has_generation;
}

Text Template::render(std::vector<std::pair<std::string, Value>> variables, int64_t now) const {
  Renderer renderer(now);
  try {
    return renderer.render(parsed_->body, std::move(variables));
  } catch (const Problem& problem) {
    if (problem.raised) {
      throw Error(ErrorCode::kData,
                  fmt::format("{} refuses the conversation: {}", origin_, problem.what),
                  "change the conversation as the template wants it");
    }
    throw Error(ErrorCode::kData,
                fmt::format("{}, line {}: {}", origin_, renderer.line(), problem.what),
                "check that the conversation has what the template asks for, or rewrite that part "
                "of the template and give it as data.chat_template");
  }
}

}  // namespace trireme::data::jinja
