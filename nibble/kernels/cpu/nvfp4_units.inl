// Where a panel keeps a block of 16 columns (panel_isa.h).

namespace nibble {
namespace {

struct Nvfp4Unit {
  const uint8_t* codes;   // 128 bytes
  const uint8_t* scales;  // 16 bytes
};

// Block `b` of `blocks` in a panel.
inline Nvfp4Unit nvfp4_unit(const uint8_t* panel, int64_t blocks, int64_t b) {
  const int64_t first = b / kNvfp4GroupBlocks * kNvfp4GroupBlocks;
  const int64_t in_group = blocks - first < kNvfp4GroupBlocks ? blocks - first : kNvfp4GroupBlocks;
  const uint8_t* const group = panel + first * kNvfp4UnitBytes;
  return {group + 128 * (b - first), group + 128 * in_group + 16 * (b - first)};
}

}  // namespace
}  // namespace nibble
