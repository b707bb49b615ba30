// Planes of vectors: how a convolution sees images, so that no copy per kernel tap and no gather is needed.
//
// Pixels are laid out so that the inputs of a tap, whatever its shift, are whole aligned vectors. A nonzero (output, input, row tap,
// column tap) is then one offset: that of its input plane plus that of its shift. A convolution is a sparse matrix times tiles of
// neighbouring vectors, the very product of a linear layer (multiply.h). There are two such layouts, grouped.h and strips.h.
//
// Both tensors of a convolution are laid on one grid, that of its outputs. A pixel at row h of a tensor is at grid row
// (h + row_pad) / row_stride, in row phase (h + row_pad) % row_stride; columns alike. The inputs of a convolution of stride 2 have 2
// phases an axis, its outputs one; in the product backwards the roles are exchanged. Neighbours on the grid are neighbours in
// memory in every phase, so strides cost nothing in the product.
//
// The grid is computed in bands of rows: as many as keep a band of inputs and outputs in the second-level cache.
#pragma once
#include "activation.h"
#include "stream.h"
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr std::int64_t pixel_vector = 16;  // floats that a tap moves together: one cache line

// How a tensor lies in memory: as PyTorch has it, or with 16 images side by side (grouped.h); outputs that no cache will hold until they are
// read are written past them.
enum class Order { plain, blocked, blocked_past_caches };

// One of the tensors, [images][channels][height][width]. `pixels` may be less than height * width: the last row is then shorter.
struct Side {
  std::int64_t channels, height, width, pixels;
  std::int64_t row_stride, column_stride, row_phases, column_phases, row_pad, column_pad;

  std::int64_t phases() const { return row_phases * column_phases; }
};

// The order is that of openwork.kernels.planes.Geometry.
struct Geometry {
  Side in, out;
  std::int64_t kernel_rows, kernel_columns, stride_rows, stride_columns;
  std::int64_t backwards;                // the taps point from outputs to inputs: dX from dY
  std::int64_t first_row, first_column;  // of the grid
  std::int64_t rows, columns;
  std::int64_t band;  // grid rows computed together
  std::int64_t tile;  // vectors computed together
  std::int64_t grouped;
  std::int64_t as_is;  // channels are read, and where possible written, where they lie: AsIs in strips.h

  // Rows and columns of the grid before or behind a tile that its taps reach.
  std::int64_t row_reach() const { return (kernel_rows - 1) / stride_rows; }
  std::int64_t column_reach() const { return (kernel_columns - 1) / stride_columns; }
  std::int64_t first_in_row() const { return first_row - (backwards ? row_reach() : 0); }
  std::int64_t first_in_column() const { return first_column - (backwards ? column_reach() : 0); }

  std::int64_t bands() const { return (rows + band - 1) / band; }
  std::int64_t band_rows(std::int64_t b) const { return smaller(band, rows - b * band); }
  std::int64_t in_rows() const { return band + row_reach(); }
  std::int64_t matrix_columns() const { return in.channels * kernel_rows * kernel_columns; }

  // Matrix column `k` is (channel, row tap, column tap).
  std::int64_t channel_of(std::int64_t k) const { return k / kernel_columns / kernel_rows; }
  std::int64_t row_tap(std::int64_t k) const { return k / kernel_columns % kernel_rows; }
  std::int64_t column_tap(std::int64_t k) const { return k % kernel_columns; }
  // The phase and the row that a row tap reads, relative to the first row of the band.
  std::int64_t tap_phase(std::int64_t y) const { return backwards ? 0 : y % stride_rows; }
  std::int64_t tap_row(std::int64_t y) const { return backwards ? row_reach() - y / stride_rows : y / stride_rows; }
};

// A tile: one accumulator a vector, as many strips as it takes registers to hold 16 floats.
template <int count>
struct PixelTile {
  static constexpr int vectors = count, vectors_per_line = 1, strips = pixel_vector / lanes;
  std::int64_t pitch;
  static constexpr int at(int strip, int j) { return j * pixel_vector + strip * lanes; }
  OPENWORK_INLINE static const float* input(Word word, const float* x) { return input_of<pixel_vector>(word, x); }
};

// What happens to the sums of a channel on their way out: plus the bias, plus what is carried around the convolution (may be null), through
// the activation.
template <Activation activation>
struct Finish {
  float bias;
  const float* carried;

  OPENWORK_INLINE Vec operator()(Vec sum) const { return apply<activation>(sum + bias); }
  // `count` sums that go to y + to.
  OPENWORK_INLINE Vec operator()(Vec sum, std::int64_t to, std::int64_t count) const {
    sum += bias;
    return apply<activation>(carried ? sum + load_first(carried + to, count) : sum);
  }
};

// Calls body with the tile size as a compile-time constant.
template <class Body>
OPENWORK_INLINE void with_tile(std::int64_t tile, Body body) {
  if (tile == 8) body(std::integral_constant<int, 8>{});
  else if (tile == 7) body(std::integral_constant<int, 7>{});
  else body(std::integral_constant<int, 4>{});
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
