// A feature-major tile (tiles.h) as the loops over the nonzeros see it: multiply.h for products, dots.h for sums over the batch.
#pragma once
#include "dots.h"
#include "multiply.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Wide tiles are taken in strips, as the small levels have few registers.
template <int width>
struct FeatureTile {
  static constexpr int vectors = width / lanes <= 8 ? width / lanes : 8, strips = width / (vectors * lanes);
  static constexpr int vectors_per_line = 16 / lanes, pitch = width;
  static constexpr int at(int strip, int j) { return (strip * vectors + j) * lanes; }
  OPENWORK_INLINE static const float* input(Word word, const float* x) { return input_of<width>(word, x); }
};

template <int width>
struct FeatureDots {
  static constexpr int vectors = width / lanes;
  const float* x;
  OPENWORK_INLINE const float* input(std::int32_t column) const {
    return x + static_cast<std::size_t>(static_cast<std::uint32_t>(column)) * width;
  }
  static constexpr int at(int j) { return j * lanes; }
};

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
