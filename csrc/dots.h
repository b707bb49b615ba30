// Dot products of one row of dY, kept in registers, with the inputs of several nonzeros: what dW at the nonzeros is made of.
//
// A `Tile` says what lies where: vectors (registers of the row), input(column) (the inputs of a nonzero) and at(j) (where vector j of
// them is, in floats).
#pragma once
#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// The dot products for `n` nonzeros, n at most `group`; the rest of the group is padding.
template <int group, class Tile>
OPENWORK_INLINE Vec dots(const Tile& tile, const Vec (&dy)[Tile::vectors], const std::int32_t* column, int n) {
  Vec product[group];
  OPENWORK_UNROLL
  for (int i = 0; i < group; ++i) {
    if (i >= n) {
      product[i] = Vec{};
      continue;
    }
    const float* in = tile.input(column[i]);
    product[i] = dy[0] * load(in + Tile::at(0));
    OPENWORK_UNROLL
    for (int j = 1; j < Tile::vectors; ++j) product[i] = dy[j] * load(in + Tile::at(j)) + product[i];
  }
  return sums<group>(product);
}

// Four sums at a time cost less than a whole vector's worth when few are left.
constexpr int small_group = 4;
constexpr int whole_group_from = lanes - small_group + 1;

// Writes (or adds) the dot products of a run of nonzeros.
template <class Tile>
OPENWORK_INLINE void add_dots(const Tile& tile, const Vec (&dy)[Tile::vectors], const std::int32_t* column, int length, float* out,
                              bool accumulate) {
  OPENWORK_UNROLL
  for (int u = 0; u < length;) {
    const int left = length - u;
    Vec total;
    int taken;
    if (left >= lanes) {
      total = dots<lanes>(tile, dy, column + u, lanes);
      taken = lanes;
    } else if (left >= whole_group_from) {
      total = dots<lanes>(tile, dy, column + u, left);
      taken = left;
    } else if (left >= small_group) {
      total = dots<small_group>(tile, dy, column + u, small_group);
      taken = small_group;
    } else {
      total = dots<small_group>(tile, dy, column + u, left);
      taken = left;
    }
    if (accumulate) total += load_first(out + u, taken);
    store_first(out + u, total, taken);
    u += taken;
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
