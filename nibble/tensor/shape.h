// The extents of a tensor, slowest dimension first.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace nibble {

class Shape {
 public:
  Shape() = default;  // a scalar
  Shape(std::initializer_list<int64_t> dims) : dims_(dims) {}
  explicit Shape(std::vector<int64_t> dims) : dims_(std::move(dims)) {}

  int rank() const { return static_cast<int>(dims_.size()); }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  const std::vector<int64_t>& dims() const { return dims_; }

  // The product of all extents; 1 for a scalar. The caller has made sure that it fits.
  int64_t num_elements() const {
    int64_t n = 1;
    for (const int64_t d : dims_) n *= d;
    return n;
  }

  bool operator==(const Shape&) const = default;

  // "[7168, 128]", "[]".
  std::string to_string() const;

 private:
  std::vector<int64_t> dims_;
};

}  // namespace nibble
