// An answer's LaTeX without what only changes its look.
#include <string>
#include <string_view>
#include <utility>

#include "nibble/eval/extract.h"
#include "nibble/eval/math_equal.h"

namespace nibble {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

// Replaces a command only where its name ends: \le is not the beginning of \left.
void replace_command(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos;) {
    const size_t behind = at + from.size();
    if (behind < text.size() && is_letter(text[behind])) {
      at = behind;
      continue;
    }
    text.replace(at, from.size(), to);
    at += to.size();
  }
}

}  // namespace

std::string normalize_math(std::string_view raw) {
  std::string text(trim(raw));
  for (const auto& [open, close] :
       {std::pair{"$$", "$$"}, {"$", "$"}, {"\\(", "\\)"}, {"\\[", "\\]"}}) {
    const std::string_view o = open, c = close;
    if (text.size() >= o.size() + c.size() && text.starts_with(o) && text.ends_with(c)) {
      text = text.substr(o.size(), text.size() - o.size() - c.size());
    }
  }
  for (const std::string_view name :
       {"\\left", "\\right", "\\bigl", "\\bigr", "\\Bigl", "\\Bigr", "\\big", "\\Big", "\\bigg",
        "\\Bigg", "\\displaystyle", "\\limits", "\\degree"}) {
    replace_command(text, name, "");
  }
  for (const std::string_view name :
       {"\\textbf", "\\textit", "\\textrm", "\\mathrm", "\\mathbf", "\\mathit", "\\mbox",
        "\\operatorname", "\\boldsymbol", "\\bm"}) {
    replace_command(text, name, "\\text");
  }
  replace_all(text, "\\text {", "\\text{");
  for (const std::string_view name : {"\\dfrac", "\\tfrac", "\\cfrac"}) {
    replace_command(text, name, "\\frac");
  }
  for (const std::string_view name : {"\\leq", "\\leqslant"}) replace_command(text, name, "\\le");
  for (const std::string_view name : {"\\geq", "\\geqslant"}) replace_command(text, name, "\\ge");
  replace_all(text, "\xe2\x89\xa4", "\\le ");
  replace_all(text, "\xe2\x89\xa5", "\\ge ");
  replace_command(text, "\\lt", "<");
  replace_command(text, "\\gt", ">");
  replace_command(text, "\\cdot", "*");
  replace_command(text, "\\times", "*");
  replace_command(text, "\\div", "/");
  replace_command(text, "\\lvert", "|");
  replace_command(text, "\\rvert", "|");
  replace_command(text, "\\quad", " ");
  replace_command(text, "\\qquad", " ");
  // Thin spaces; "\\ " is the end of a matrix row and a blank, not a spaced backslash.
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) {
      const char next = text[i + 1];
      if (next == '\\') {
        result += "\\\\";
        ++i;
        continue;
      }
      if (next == '!') {
        ++i;
        continue;
      }
      if (next == ',' || next == ';' || next == ':' || next == ' ') {
        result += ' ';
        ++i;
        continue;
      }
      if (next == '$') {
        ++i;
        continue;
      }
      if (next == '%') {
        result += '%';
        ++i;
        continue;
      }
    }
    result +=
        text[i] == '\n' || text[i] == '\t' || text[i] == '\r' || text[i] == '~' ? ' ' : text[i];
  }
  text = std::move(result);
  for (const std::string_view degree : {"^\\circ", "^{\\circ}", "^ \\circ", "\xc2\xb0"}) {
    replace_all(text, degree, "");
  }
  replace_all(text, "{,}", ",");
  replace_all(text, "{:}", ":");
  replace_all(text, "\xe2\x88\x92", "-");
  std::erase(text, '$');
  text = std::string(trim(text));
  if (text.size() > 1 && text.back() == '.') text.pop_back();
  return text;
}

}  // namespace nibble
