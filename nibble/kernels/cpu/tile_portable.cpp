// The tile products in plain loops: what they are, for tests on machines without AMX.
#define NIBBLE_TILE_AHEAD 0
#include <type_traits>

#include "nibble/kernels/cpu/tile_attention.h"
#include "nibble/kernels/cpu/tile_isa.h"
// After the declarations, in this order.
#include "nibble/kernels/cpu/nvfp4_units.inl"
//
#include "nibble/kernels/cpu/tile_rows.inl"
//
#include "nibble/kernels/cpu/tile_simd_portable.inl"
//
#include "nibble/kernels/cpu/tile_isa.inl"
//
#include "nibble/kernels/cpu/tile_attention.inl"

namespace nibble {

const TileIsa kTileIsaPortable = {tile_quantize,          tile_quantize_planes, tile_multiply,
                                  tile_expand_floats,     tile_expand_rows,     tile_expand_columns,
                                  tile_multiply_expanded, tile_round,           tile_attend};

}  // namespace nibble
