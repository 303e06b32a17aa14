// JSON schemas as grammars.
#pragma once

#include <string_view>

#include "nibble/base/result.h"
#include "nibble/grammar/grammar.h"

namespace nibble {

// The documents that `schema`, the text of a JSON schema, allows, in the form of json_grammar.h:
// properties in the schema's order, then additional ones.
//
// Understood (spec serving section 4.5): type (also a list), properties, required,
// additionalProperties, items, prefixItems, minItems, maxItems, enum, const, anyOf, oneOf (as
// anyOf), allOf of objects, $ref inside the document, pattern, minLength, maxLength, minimum,
// maximum and the exclusive ones for integers, format date, date-time, uuid and ipv4; true and
// false. Annotations (title, description, default, ...) have no effect.
//
// Where a schema leaves something open, fewer documents are written than it allows: without
// additionalProperties an object with properties has no others, items behind prefixItems need an
// items schema, a schema with keywords of one type is of that type. All that is written validates,
// but for oneOf, where more than one may match.
//
// Other keywords and combinations: with `strict` kInvalidArgument "unsupported_schema" naming the
// JSON pointer; otherwise they are left out with a warning in the log. Errors besides:
// kInvalidArgument for malformed JSON, a keyword with a value of the wrong type, and a schema that
// nothing satisfies.
Result<Grammar> json_schema_grammar(std::string_view schema, bool strict);

}  // namespace nibble
