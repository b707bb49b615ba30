// Pixels side by side: a vector is 16 neighbouring columns of the grid, in one row of one image.
//
// Any number of images will do, one too, and nothing is transposed. A shift along a row would leave the alignment of vectors, so there
// is one copy of a row for each column shift that the kernel has (for 1 x 1 kernels just the row). Rows are padded to whole vectors
// and follow each other, so a tile is neighbouring vectors of one or of several rows.
#pragma once
#include "planes.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Every second lane of two vectors side by side.
struct EveryOther {
  static constexpr int from(int i) { return 2 * i; }
};

// A row of `width` floats, of which every `stride`th is wanted, the first one at `shift`: outside of the row are zeros.
struct Shift {
  std::int64_t stride, shift, begin, end;  // wanted ones [begin, end) lie in the row

  Shift(std::int64_t width, std::int64_t stride, std::int64_t shift)
      : stride(stride), shift(shift), begin(shift < 0 ? over(-shift) : 0), end(width > shift ? larger(begin, over(width - shift)) : begin) {}

  // Divisions take as long as a whole row, and most strides are one.
  std::int64_t over(std::int64_t n) const { return stride == 1 ? n : (n + stride - 1) / stride; }

  // The first `count` of them, a multiple of lanes.
  OPENWORK_INLINE void copy(const float* from, std::int64_t count, float* to) const {
    for (std::int64_t j = 0; j < count; j += lanes) {
      const float* first = from + j * stride + shift;
      if (begin - j >= lanes || end <= j) {
        store(to + j, Vec{});
      } else if (stride == 1) {
        store(to + j, load_between(first, begin - j, end - j));
      } else if (stride == 2) {
        const std::int64_t b = 2 * (begin - j), e = 2 * (end - j) - 1;
        store(to + j, shuffle<EveryOther>(load_between(first, b, e), load_between(first + lanes, b - lanes, e - lanes)));
      } else {
        for (std::int64_t i = 0; i < lanes; ++i) to[j + i] = j + i >= begin && j + i < end ? first[i * stride] : 0.0f;
      }
    }
  }
};

OPENWORK_INLINE void zero_row(std::int64_t count, float* to) {
  for (std::int64_t j = 0; j < count; j += lanes) store(to + j, Vec{});
}

struct Strips : Geometry {
  static constexpr std::int64_t images_together = 1;
  static constexpr bool packs = true;  // inputs are copied

  std::int64_t row_vectors() const { return (columns + pixel_vector - 1) / pixel_vector; }
  std::int64_t row_floats() const { return row_vectors() * pixel_vector; }
  std::int64_t copies() const { return backwards ? column_reach() + 1 : kernel_columns; }
  // Rows of a copy, in vectors. The last tile of a band may reach beyond them: what it makes of that is never unpacked.
  std::int64_t copy_vectors() const { return in_rows() * row_vectors(); }
  std::int64_t in_pitch() const { return (in.row_phases * copies() * copy_vectors()) | 1; }
  std::int64_t out_pitch() const { return (band * row_vectors() + tile - 1) / tile * tile | 1; }
  std::int64_t in_size() const { return (in.channels * in_pitch() + tile) * pixel_vector; }  // the last tile reads on
  std::int64_t chart_room() const { return 0; }

  std::int64_t tap_place(std::int64_t k) const {
    const std::int64_t x = column_tap(k), copy = backwards ? column_reach() - x / stride_columns : x;
    return channel_of(k) * in_pitch() + (tap_phase(row_tap(k)) * copies() + copy) * copy_vectors() + tap_row(row_tap(k)) * row_vectors();
  }
  std::int64_t tiles(std::int64_t b) const { return (band_rows(b) * row_vectors() + tile - 1) / tile; }
  std::int64_t in_step(std::int64_t t) const { return t * tile; }
  std::int64_t out_step(std::int64_t t) const { return t * tile; }

  struct Band {
    const Strips& g;
    std::int64_t b;

    Band(const Strips& g, std::int64_t b, std::int32_t*) : g(g), b(b) {}

    // Floats of row h: none outside the image, fewer in a last row that is shorter.
    static std::int64_t row_width(const Side& side, std::int64_t h) {
      return h < 0 || h >= side.height ? 0 : smaller(side.width, side.pixels - h * side.width);
    }

    void pack_inputs(const float* x, std::int64_t, std::int64_t, Order, float* planes) const {
      const Side side = g.in;  // in registers: what is written below could be anything, to the compiler
      const std::int64_t rows = g.in_rows(), floats = g.row_floats(), top = g.first_in_row() + b * g.band, copies = g.copies();
      float* to = planes;
      for (std::int64_t a = 0; a < side.row_phases; ++a)
        for (std::int64_t copy = 0; copy < copies; ++copy) {
          const std::int64_t shift = g.first_in_column() * side.column_stride + copy - side.column_pad;
          const Shift whole(side.width, side.column_stride, shift);
          for (std::int64_t row = 0; row < rows; ++row, to += floats) {
            const std::int64_t h = (top + row) * side.row_stride + a - side.row_pad, width = row_width(side, h);
            if (width == side.width) whole.copy(x + h * side.width, floats, to);
            else if (width <= 0) zero_row(floats, to);
            else Shift(width, side.column_stride, shift).copy(x + h * side.width, floats, to);
          }
        }
      zero_row(planes + g.in_pitch() * pixel_vector - to, to);
    }
    void pack_outputs(const float* y, std::int64_t, std::int64_t, float* planes) const {
      float* to = planes;
      for (std::int64_t row = 0; row < g.band_rows(b); ++row, to += g.row_floats()) {
        const std::int64_t h = g.first_row + b * g.band + row;
        Shift(row_width(g.out, h), 1, g.first_column).copy(y + h * g.out.width, g.row_floats(), to);
      }
      zero_row(planes + g.out_pitch() * pixel_vector - to, to);
    }
    template <class Finish>
    void unpack(const float* planes, const Finish& finish, float* y, std::int64_t, std::int64_t, Order) const {
      const Side side = g.out;
      const std::int64_t rows = g.band_rows(b), floats = g.row_floats(), top = g.first_row + b * g.band, stride = side.column_stride;
      for (std::int64_t a = 0; a < side.row_phases; ++a)
        for (std::int64_t p = 0; p < side.column_phases; ++p) {
          const float* from = planes + (a * side.column_phases + p) * g.out_pitch() * pixel_vector;
          const Shift whole(side.width, stride, g.first_column * stride + p - side.column_pad);
          for (std::int64_t row = 0; row < rows; ++row, from += floats) {
            const std::int64_t h = (top + row) * side.row_stride + a - side.row_pad, width = row_width(side, h);
            const Shift shift = width == side.width ? whole : Shift(width, stride, whole.shift);
            const std::int64_t to = h * side.width + shift.shift, end = smaller(g.columns, shift.end);
            for (std::int64_t j = shift.begin; j < end; j += lanes) {
              const std::int64_t count = smaller(lanes, end - j);
              if (stride == 1) {
                store_first(y + to + j, finish(load_first(from + j, count), to + j, count), count);
                continue;
              }
              const Vec v = finish(load_first(from + j, count));  // dX, around which nothing is carried
              for (std::int64_t i = 0; i < count; ++i) y[to + (j + i) * stride] = v[i];
            }
          }
        }
    }
  };
};

// The same where nothing has to be moved: 1 x 1 kernels on channels of whole tiles, one after the other in memory, which is aligned.
struct AsIs : Strips {
  static constexpr bool packs = false;

  std::int64_t in_pitch() const { return in.pixels / pixel_vector; }
  std::int64_t in_size() const { return 0; }
  std::int64_t tap_place(std::int64_t k) const { return k * in_pitch(); }
};

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
