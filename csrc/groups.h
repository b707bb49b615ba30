// Groups of rows that share columns: one activation, once in a register, feeds several rows.
//
// The rows are taken `rows` at a time. What a column contributes to a group is an entry: where its inputs are, and a weight for each
// row of its pattern (bit r: row r of the group has the column). Columns are cut into blocks whose activations stay in the cache;
// entries stand in the order [block][group], ascending columns where a pattern repeats, so an output is one chain of
// multiply-adds whatever threads and tiles do.
#pragma once
#include "layer.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Vector accumulators a group can use, leaving registers for inputs and weights.
constexpr int accumulators = lanes == 16 ? 16 : 8;

// Vectors of a tile that a group of `rows` rows computes at once; it passes over the tile in strips of this many.
template <int rows, int width>
constexpr int strip_vectors = accumulators / rows < width / lanes ? accumulators / rows : width / lanes;

// Weights (floats) fetched ahead of their use.
constexpr int weights_ahead = 512;

template <int rows, int vectors>
struct Sums {
  Vec row[rows][vectors];

  template <int width>
  OPENWORK_INLINE void begin(const float* y, bool first) {
    OPENWORK_UNROLL
    for (int r = 0; r < rows; ++r) {
      OPENWORK_UNROLL
      for (int j = 0; j < vectors; ++j) row[r][j] = first ? Vec{} : load(y + r * width + j * lanes);
    }
  }

  // One entry: inputs times the weights of the rows in `pattern`, which stand side by side.
  template <unsigned pattern>
  OPENWORK_INLINE void add(const float* in, const float* weight) {
    Vec input[vectors];
    OPENWORK_UNROLL
    for (int j = 0; j < vectors; ++j) input[j] = load(in + j * lanes);
    OPENWORK_UNROLL
    for (int r = 0; r < rows; ++r) {
      if (!(pattern >> r & 1)) continue;
      const Vec w = broadcast(weight[__builtin_popcount(pattern & ((1u << r) - 1))]);
      OPENWORK_UNROLL
      for (int j = 0; j < vectors; ++j) row[r][j] = w * input[j] + row[r][j];
    }
  }

  template <int width>
  OPENWORK_INLINE void end(float* y) const {
    OPENWORK_UNROLL
    for (int r = 0; r < rows; ++r) {
      OPENWORK_UNROLL
      for (int j = 0; j < vectors; ++j) store(y + r * width + j * lanes, row[r][j]);
    }
  }
};

template <int width>
OPENWORK_INLINE const float* input_at(const float* x, std::int32_t column) {
  return x + static_cast<std::size_t>(static_cast<std::uint32_t>(column)) * width;
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
