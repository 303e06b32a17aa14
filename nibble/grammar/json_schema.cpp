#include "nibble/grammar/json_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "nibble/base/error.h"
#include "nibble/base/log.h"
#include "nibble/grammar/code_points.h"
#include "nibble/grammar/json_grammar.h"
#include "nibble/grammar/regex.h"
#include "nibble/grammar/schema_formats.h"
#include "nibble/grammar/schema_text.h"

namespace nibble {
namespace {

constexpr int kMaxSchemas = 50000;  // put in place, so that merging can't multiply without end

// Which types each keyword speaks of; a schema without `type` is of those its keywords speak of.
struct KeywordType {
  const char* keyword;
  const char* type;
};
constexpr KeywordType kKeywordTypes[] = {{"properties", "object"},
                                         {"required", "object"},
                                         {"additionalProperties", "object"},
                                         {"items", "array"},
                                         {"prefixItems", "array"},
                                         {"minItems", "array"},
                                         {"maxItems", "array"},
                                         {"pattern", "string"},
                                         {"minLength", "string"},
                                         {"maxLength", "string"},
                                         {"format", "string"},
                                         {"minimum", "integer"},
                                         {"maximum", "integer"},
                                         {"exclusiveMinimum", "integer"},
                                         {"exclusiveMaximum", "integer"}};
constexpr const char* kTypes[] = {"object",  "array",   "string", "number",
                                  "integer", "boolean", "null"};

bool has(const Schema& schema, const char* keyword) { return schema.contains(keyword); }

class SchemaCompiler {
 public:
  SchemaCompiler(const Schema& root, bool strict)
      : root_(root), strict_(strict), rules_(builder_) {}

  Result<Grammar> compile() {
    builder_.define(0, NIBBLE_TRY(emit(root_, "", GrammarBuilder::kReturn, 0)));
    // References are compiled once each, here, so that they may refer to each other.
    while (!pending_.empty()) {
      const auto [pointer, schema, rule] = pending_.front();
      pending_.pop_front();
      builder_.define(rule, NIBBLE_TRY(emit(*schema, pointer, GrammarBuilder::kReturn, 0)));
    }
    return std::move(builder_).build();
  }

 private:
  struct Pending {
    std::string pointer;
    const Schema* schema;
    int32_t rule;
  };

  // An unsupported part: the error when strict, otherwise a warning and success.
  Status refuse(std::string_view pointer, std::string_view what) {
    auto error = unsupported_schema(pointer, what);
    if (strict_) return error;
    log_warning(error.value().message + "; left out");
    return {};
  }

  Result<int32_t> emit(const Schema& schema, const std::string& pointer, int32_t next, int depth) {
    if (depth > kMaxSchemaDepth || ++num_schemas_ > kMaxSchemas || builder_.too_large()) {
      return unsupported_schema(pointer, "the schema is too large or deep");
    }
    if (schema.is_boolean()) return schema.get<bool>() ? rules_.value(next) : GrammarBuilder::kFail;
    if (!schema.is_object()) {
      return malformed_schema(pointer, "a schema is an object, true or false");
    }
    if (has(schema, "$ref") && is_alone(schema, "$ref")) return reference(schema, pointer, next);
    if (has(schema, "$ref") || has(schema, "allOf")) {
      Schema flat = NIBBLE_TRY(flatten(schema, pointer, depth));
      return emit(flat, pointer, next, depth + 1);
    }
    for (const char* keyword : {"anyOf", "oneOf"}) {
      if (has(schema, keyword)) return alternatives(schema, keyword, pointer, next, depth);
    }
    if (has(schema, "enum") || has(schema, "const")) return values(schema, pointer, next);
    return typed(schema, pointer, next, depth);
  }

  // Whether `keyword` is all that the schema says.
  static bool is_alone(const Schema& schema, std::string_view keyword) {
    return std::all_of(schema.items().begin(), schema.items().end(), [&](const auto& item) {
      return item.key() == keyword || is_annotation(item.key());
    });
  }

  Result<std::string> reference_text(const Schema& schema, const std::string& pointer) {
    const Schema& reference = schema["$ref"];
    if (!reference.is_string()) return malformed_schema(pointer, "$ref is not a text");
    return reference.get<std::string>();
  }

  Result<int32_t> reference(const Schema& schema, const std::string& pointer, int32_t next) {
    const std::string text = NIBBLE_TRY(reference_text(schema, pointer));
    const auto found = references_.find(text);
    if (found != references_.end()) return builder_.call(found->second, next);
    const Schema* target = NIBBLE_TRY(resolve_reference(root_, text, pointer));
    const int32_t rule = builder_.add_rule();
    references_[text] = rule;
    pending_.push_back({text.substr(1), target, rule});
    return builder_.call(rule, next);
  }

  // The schema with its allOf and, beside other keywords, its $ref put in.
  Result<Schema> flatten(const Schema& schema, const std::string& pointer, int depth) {
    if (depth > kMaxSchemaDepth || ++num_schemas_ > kMaxSchemas) {
      return unsupported_schema(pointer, "references inside allOf that don't end");
    }
    if (!schema.is_object()) return schema;
    Schema merged = schema;
    merged.erase("allOf");
    merged.erase("$ref");
    if (has(schema, "$ref")) {
      const std::string text = NIBBLE_TRY(reference_text(schema, pointer));
      const Schema* target = NIBBLE_TRY(resolve_reference(root_, text, pointer));
      const Schema flat = NIBBLE_TRY(flatten(*target, text.substr(1), depth + 1));
      merged = NIBBLE_TRY(merge_schemas(flat, merged, pointer));
    }
    if (has(schema, "allOf")) {
      if (!schema["allOf"].is_array()) return malformed_schema(pointer, "allOf is not a list");
      for (size_t i = 0; i < schema["allOf"].size(); ++i) {
        const std::string here = child_pointer(child_pointer(pointer, "allOf"), std::to_string(i));
        const Schema part = NIBBLE_TRY(flatten(schema["allOf"][i], here, depth + 1));
        merged = NIBBLE_TRY(merge_schemas(merged, part, here));
      }
    }
    return merged;
  }

  Result<int32_t> alternatives(const Schema& schema, const char* keyword,
                               const std::string& pointer, int32_t next, int depth) {
    const Schema& list = schema[keyword];
    if (!list.is_array() || list.empty()) {
      return malformed_schema(pointer, fmt::format("{} is not a list of schemas", keyword));
    }
    Schema rest = schema;
    rest.erase(keyword);
    const bool alone = is_alone(schema, keyword);
    std::vector<int32_t> firsts;
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string here = child_pointer(child_pointer(pointer, keyword), std::to_string(i));
      if (alone) {
        firsts.push_back(NIBBLE_TRY(emit(list[i], here, next, depth + 1)));
        continue;
      }
      Schema both = Schema::object();
      both["allOf"] = Schema::array({rest, list[i]});
      firsts.push_back(NIBBLE_TRY(emit(both, here, next, depth + 1)));
    }
    return builder_.any_of(firsts);
  }

  // enum and const: one of the values that the schema's type allows.
  Result<int32_t> values(const Schema& schema, const std::string& pointer, int32_t next) {
    std::vector<Schema> allowed;
    if (has(schema, "enum")) {
      if (!schema["enum"].is_array()) return malformed_schema(pointer, "enum is not a list");
      allowed.assign(schema["enum"].begin(), schema["enum"].end());
    } else {
      allowed.push_back(schema["const"]);
    }
    if (has(schema, "enum") && has(schema, "const")) {
      std::erase_if(allowed, [&](const Schema& value) { return value != schema["const"]; });
    }
    for (const auto& [keyword, value] : schema.items()) {
      if (keyword == "enum" || keyword == "const" || keyword == "type" || is_annotation(keyword)) {
        continue;
      }
      NIBBLE_TRY(refuse(child_pointer(pointer, keyword), "beside enum or const"));
    }
    if (has(schema, "type")) {
      const std::set<std::string> types = NIBBLE_TRY(types_of(schema, pointer));
      std::erase_if(allowed, [&](const Schema& value) { return !is_of(value, types); });
    }
    std::vector<std::string> scalars;
    std::vector<int32_t> firsts;
    for (const Schema& value : allowed) {
      if (value.is_structured()) {
        firsts.push_back(literal(value, next));
      } else {
        scalars.push_back(scalar(value));
      }
    }
    firsts.push_back(builder_.one_of(std::move(scalars), next));
    return builder_.any_of(firsts);
  }

  static std::string scalar(const Schema& value) {
    return value.is_string() ? '"' + json_escaped(value.get_ref<const std::string&>()) + '"'
                             : value.dump();
  }

  // The schema's brackets bound the depth.
  int32_t literal(const Schema& value, int32_t next) {
    if (!value.is_structured()) return builder_.literal(scalar(value), next);
    const bool is_object = value.is_object();
    int32_t first = builder_.literal(is_object ? "}" : "]", next);
    if (!value.empty()) first = rules_.whitespace(first);
    bool is_last = true;
    for (auto item = value.rbegin(); item != value.rend(); ++item) {
      if (!is_last) first = builder_.literal(",", rules_.whitespace(first));
      is_last = false;
      first = literal(*item, first);
      if (is_object) {
        first = builder_.literal('"' + json_escaped(item.key()) + '"', rules_.colon(first));
      }
    }
    return builder_.literal(is_object ? "{" : "[", rules_.whitespace(first));
  }

  static bool is_of(const Schema& value, const std::set<std::string>& types) {
    const auto allows = [&](const char* type) { return types.contains(type); };
    if (value.is_number()) {
      const bool is_whole =
          value.is_number_integer() || std::trunc(value.get<double>()) == value.get<double>();
      return allows("number") || (is_whole && allows("integer"));
    }
    return (value.is_object() && allows("object")) || (value.is_array() && allows("array")) ||
           (value.is_string() && allows("string")) || (value.is_boolean() && allows("boolean")) ||
           (value.is_null() && allows("null"));
  }

  // Without `type`: those the keywords speak of, or none when there are no such keywords.
  Result<std::set<std::string>> types_of(const Schema& schema, const std::string& pointer) {
    std::set<std::string> types;
    if (!has(schema, "type")) {
      for (const auto& [keyword, type] : kKeywordTypes) {
        if (has(schema, keyword)) types.insert(type);
      }
      return types;
    }
    const Schema& type = schema["type"];
    const Schema list = type.is_array() ? type : Schema::array({type});
    for (const Schema& name : list) {
      const bool is_known =
          name.is_string() && std::find(std::begin(kTypes), std::end(kTypes),
                                        name.get<std::string>()) != std::end(kTypes);
      if (!is_known) {
        return malformed_schema(child_pointer(pointer, "type"),
                                "expected object, array, string, number, integer, boolean or null");
      }
      types.insert(name.get<std::string>());
    }
    return types;
  }

  Status check_keywords(const Schema& schema, const std::string& pointer) {
    for (const auto& [keyword, value] : schema.items()) {
      if (keyword == "type" || is_annotation(keyword)) continue;
      if (keyword == "uniqueItems" && value == false) continue;
      const bool is_known =
          std::any_of(std::begin(kKeywordTypes), std::end(kKeywordTypes),
                      [&, k = std::string_view(keyword)](const KeywordType& known) {
                        return k == known.keyword;
                      });
      if (is_known) continue;
      NIBBLE_TRY(refuse(child_pointer(pointer, keyword), "this keyword is not supported"));
    }
    return {};
  }

  Result<int32_t> typed(const Schema& schema, const std::string& pointer, int32_t next, int depth) {
    NIBBLE_TRY(check_keywords(schema, pointer));
    const std::set<std::string> types = NIBBLE_TRY(types_of(schema, pointer));
    if (types.empty()) return has(schema, "type") ? GrammarBuilder::kFail : rules_.value(next);
    std::vector<int32_t> firsts;
    for (const std::string& type : types) {
      if (type == "object") {
        firsts.push_back(NIBBLE_TRY(object(schema, pointer, next, depth)));
      } else if (type == "array") {
        firsts.push_back(NIBBLE_TRY(array(schema, pointer, next, depth)));
      } else if (type == "string") {
        firsts.push_back(NIBBLE_TRY(string(schema, pointer, next)));
      } else if (type == "number") {
        NIBBLE_TRY(check_number(schema, pointer));
        firsts.push_back(rules_.number(next));
      } else if (type == "integer") {
        firsts.push_back(NIBBLE_TRY(integer(schema, pointer, next)));
      } else if (type == "boolean") {
        firsts.push_back(builder_.one_of({"true", "false"}, next));
      } else {
        firsts.push_back(builder_.literal("null", next));
      }
    }
    return builder_.any_of(firsts);
  }

  Status check_number(const Schema& schema, const std::string& pointer) {
    for (const char* bound : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
      if (has(schema, bound)) {
        NIBBLE_TRY(refuse(child_pointer(pointer, bound), "bounds are supported for integers only"));
      }
    }
    return {};
  }

  // The bound as a whole number: of minima the least that holds, of maxima the largest.
  Result<std::optional<int64_t>> bound(const Schema& schema, const std::string& pointer,
                                       const char* keyword, bool is_minimum, bool is_exclusive) {
    if (!has(schema, keyword)) return std::nullopt;
    const Schema& value = schema[keyword];
    if (!value.is_number()) {
      return malformed_schema(child_pointer(pointer, keyword), "expected a number");
    }
    constexpr double kLimit = 1e18;
    const auto number = value.get<double>();
    if (!(std::abs(number) <= kLimit)) return number < 0 ? -kUnbounded : kUnbounded;
    const auto rounded = is_minimum ? std::ceil(number) : std::floor(number);
    // Integers beyond 2^53 keep their digits.
    const int64_t whole =
        value.is_number_integer() ? value.get<int64_t>() : static_cast<int64_t>(rounded);
    const bool is_met = value.is_number_integer() || rounded == number;
    return is_exclusive && is_met ? whole + (is_minimum ? 1 : -1) : whole;
  }

  Result<int32_t> integer(const Schema& schema, const std::string& pointer, int32_t next) {
    int64_t min = -kUnbounded;
    int64_t max = kUnbounded;
    const auto low = NIBBLE_TRY(bound(schema, pointer, "minimum", true, false));
    const auto above = NIBBLE_TRY(bound(schema, pointer, "exclusiveMinimum", true, true));
    const auto high = NIBBLE_TRY(bound(schema, pointer, "maximum", false, false));
    const auto below = NIBBLE_TRY(bound(schema, pointer, "exclusiveMaximum", false, true));
    if (!low && !above && !high && !below) return rules_.integer(next);
    min = std::max({min, low.value_or(min), above.value_or(min)});
    max = std::min({max, high.value_or(max), below.value_or(max)});
    return rules_.integer_in(min, max, next);
  }

  // A count such as minItems: a whole number from 0 on, or `otherwise`.
  Result<int64_t> count(const Schema& schema, const std::string& pointer, const char* keyword,
                        int64_t otherwise) {
    if (!has(schema, keyword)) return otherwise;
    const Schema& value = schema[keyword];
    const bool is_count = value.is_number() && value.get<double>() >= 0 &&
                          value.get<double>() <= 1e15 &&
                          std::trunc(value.get<double>()) == value.get<double>();
    if (!is_count) {
      return malformed_schema(child_pointer(pointer, keyword),
                              "expected a whole number, 0 or more");
    }
    return static_cast<int64_t>(value.get<double>());
  }

  Result<int32_t> string(const Schema& schema, const std::string& pointer, int32_t next) {
    const int64_t min_length = NIBBLE_TRY(count(schema, pointer, "minLength", 0));
    const int64_t max_length = NIBBLE_TRY(count(schema, pointer, "maxLength", kUnbounded));
    std::optional<std::string> pattern;
    if (has(schema, "pattern")) {
      if (!schema["pattern"].is_string()) {
        return malformed_schema(child_pointer(pointer, "pattern"), "expected a text");
      }
      pattern = schema["pattern"].get<std::string>();
    }
    if (has(schema, "format")) {
      const std::string here = child_pointer(pointer, "format");
      if (!schema["format"].is_string()) return malformed_schema(here, "expected a text");
      const auto format = format_pattern(schema["format"].get<std::string>());
      if (!format) {
        NIBBLE_TRY(refuse(here, fmt::format("format '{}' is not supported (date, date-time, uuid "
                                            "and ipv4 are)",
                                            schema["format"].get<std::string>())));
      } else if (pattern) {
        NIBBLE_TRY(refuse(here, "format beside pattern"));
      } else {
        pattern = *format;
      }
    }
    if (!pattern) return rules_.string(min_length, max_length, next);
    if (min_length > 0 || max_length != kUnbounded) {
      NIBBLE_TRY(refuse(pointer, "minLength or maxLength beside pattern or format"));
    }
    auto first =
        regex_node(builder_, *pattern, RegexTarget::kJsonString, builder_.literal("\"", next));
    if (!first) {
      NIBBLE_TRY(refuse(child_pointer(pointer, "pattern"), first.error().message));
      return rules_.string(min_length, max_length, next);
    }
    return builder_.literal("\"", *first);
  }

  Result<int32_t> array(const Schema& schema, const std::string& pointer, int32_t next, int depth) {
    const int64_t min = NIBBLE_TRY(count(schema, pointer, "minItems", 0));
    const int64_t max = NIBBLE_TRY(count(schema, pointer, "maxItems", kUnbounded));
    Schema prefix = Schema::array();
    if (has(schema, "prefixItems")) prefix = schema["prefixItems"];
    if (!prefix.is_array()) {
      return malformed_schema(child_pointer(pointer, "prefixItems"), "expected a list");
    }
    const auto num_prefix = static_cast<int64_t>(prefix.size());
    // Without an items schema a list ends with its prefix, if it may.
    Schema items = num_prefix > 0 && min <= num_prefix ? Schema(false) : Schema(true);
    if (has(schema, "items")) items = schema["items"];
    const int32_t item = builder_.add_rule();
    builder_.define(item, NIBBLE_TRY(emit(items, child_pointer(pointer, "items"),
                                          GrammarBuilder::kReturn, depth + 1)));
    if (prefix.empty()) return rules_.array_of(item, min, max, next);

    const int32_t close = builder_.literal("]", next);
    const int32_t more = builder_.add_rule();
    builder_.define(
        more,
        builder_.literal(",", rules_.whitespace(builder_.call(item, GrammarBuilder::kReturn))));
    const int64_t max_more = max == kUnbounded ? kUnbounded : max - num_prefix;
    // Built from the end: `first` is what may follow `i` items.
    int32_t first = builder_.repeat(more, std::max<int64_t>(min - num_prefix, 0), max_more,
                                    rules_.whitespace(close));
    for (int64_t i = num_prefix - 1; i >= 0; --i) {
      const std::string here =
          child_pointer(child_pointer(pointer, "prefixItems"), std::to_string(i));
      int32_t one = NIBBLE_TRY(emit(prefix[static_cast<size_t>(i)], here, first, depth + 1));
      if (i > 0) one = builder_.literal(",", rules_.whitespace(one));
      if (i >= max) one = GrammarBuilder::kFail;
      const int32_t end = i > 0 ? rules_.whitespace(close) : close;
      first = i >= min ? builder_.split(one, end) : one;
    }
    return builder_.literal("[", rules_.whitespace(first));
  }

  struct Property {
    std::string name;
    int32_t rule;  // "name": value
    bool is_required;
  };

  Result<std::vector<Property>> properties(const Schema& schema, const std::string& pointer,
                                           int depth) {
    Schema all = Schema::object();
    if (has(schema, "properties")) all = schema["properties"];
    if (!all.is_object()) {
      return malformed_schema(child_pointer(pointer, "properties"), "expected an object");
    }
    std::set<std::string> required;
    if (has(schema, "required")) {
      for (const Schema& name : schema["required"]) {
        if (!schema["required"].is_array() || !name.is_string()) {
          return malformed_schema(child_pointer(pointer, "required"), "expected a list of names");
        }
        required.insert(name.get<std::string>());
        if (all.contains(name.get<std::string>())) continue;
        // A required name without a schema of its own is an additional property.
        all[name.get<std::string>()] =
            has(schema, "additionalProperties") ? schema["additionalProperties"] : Schema(true);
      }
    }
    std::vector<Property> result;
    for (const auto& [name, property] : all.items()) {
      const std::string here = child_pointer(child_pointer(pointer, "properties"), name);
      const int32_t rule = builder_.add_rule();
      const int32_t value = NIBBLE_TRY(emit(property, here, GrammarBuilder::kReturn, depth + 1));
      builder_.define(rule, builder_.literal('"' + json_escaped(name) + '"', rules_.colon(value)));
      result.push_back({name, rule, required.contains(name)});
    }
    return result;
  }

  Result<int32_t> object(const Schema& schema, const std::string& pointer, int32_t next,
                         int depth) {
    const std::vector<Property> all = NIBBLE_TRY(properties(schema, pointer, depth));
    const bool has_additional = has(schema, "additionalProperties");
    if (all.empty() && !has_additional && !has(schema, "properties")) return rules_.object(next);

    const int32_t close = builder_.literal("}", next);
    // `empty` and `some` are what may follow the properties so far when there are none, or some.
    // Behind the last declared one: additional ones, or the end.
    int32_t empty = close;
    int32_t some = rules_.whitespace(close);
    if (has_additional && schema["additionalProperties"] != false) {
      const int32_t more = builder_.loop();
      std::vector<std::string> names;
      for (const Property& property : all) names.push_back(property.name);
      const int32_t value =
          NIBBLE_TRY(emit(schema["additionalProperties"],
                          child_pointer(pointer, "additionalProperties"), more, depth + 1));
      const int32_t member = rules_.key_other_than(std::move(names), rules_.colon(value));
      builder_.close_loop(more, builder_.literal(",", rules_.whitespace(member)), some);
      some = more;
      empty = builder_.split(member, close);
    }
    for (size_t i = all.size(); i > 0; --i) {
      const Property& property = all[i - 1];
      const int32_t first = builder_.call(property.rule, some);
      const int32_t later = builder_.literal(",", rules_.whitespace(first));
      empty = property.is_required ? first : builder_.split(first, empty);
      some = property.is_required ? later : builder_.split(later, some);
    }
    return builder_.literal("{", rules_.whitespace(empty));
  }

  const Schema& root_;
  bool strict_;
  GrammarBuilder builder_;
  JsonRules rules_;
  std::map<std::string, int32_t> references_;
  std::deque<Pending> pending_;
  int num_schemas_ = 0;
};

}  // namespace

Result<Grammar> json_schema_grammar(std::string_view schema, bool strict) {
  const Schema root = NIBBLE_TRY(parse_schema(schema));
  return SchemaCompiler(root, strict).compile();
}

}  // namespace nibble
