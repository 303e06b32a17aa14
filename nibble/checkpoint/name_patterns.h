// Many tensor names told in few lines: numbers become ranges.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// Names that differ only in the numbers between their dots: "model.layers.3.mlp.up_proj.weight"
// and "model.layers.4.mlp.up_proj.weight" are "model.layers.{3-4}.mlp.up_proj.weight".
class NamePattern {
 public:
  // The name with its numbers replaced by '*': names with equal keys belong to one pattern.
  static std::string key(std::string_view name);

  // All names added have the same key.
  void add(std::string_view name);

  int64_t count() const { return count_; }

  // "model.layers.{3-60}.mlp.experts.{0-255}.up_proj.weight"; ranges with gaps as "{0-2,5,7-9}".
  // The names are among those that the ranges span; count() says whether they are all of them.
  std::string to_string() const;

 private:
  std::string key_;
  std::vector<std::set<int64_t>> numbers_;  // of each '*'
  int64_t count_ = 0;
};

// One line per pattern, in order of keys: the name itself, or the pattern and "(12 tensors)".
std::vector<std::string> summarize_names(const std::vector<std::string>& names);

}  // namespace nibble
