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

// to[j] = from[j * stride + shift] for j < count where that is in a row of `width`, else 0; `count` a multiple of pixel_vector.
OPENWORK_INLINE void shifted_row(const float* from, std::int64_t width, std::int64_t stride, std::int64_t shift, std::int64_t count,
                                 float* to) {
  const std::int64_t begin = smaller(count, shift < 0 ? (-shift + stride - 1) / stride : 0);
  const std::int64_t end = larger(begin, smaller(count, width > shift ? (width - shift + stride - 1) / stride : 0));
  for (std::int64_t j = 0; j < count; j += lanes)
    if (j < begin || j + lanes > end) store(to + j, Vec{});
  std::int64_t j = begin;
  if (stride == 1) {
    for (; j + lanes <= end; j += lanes) store_unaligned(to + j, load_unaligned(from + j + shift));
    store_first(to + j, load_first(from + j + shift, end - j), end - j);
    return;
  }
  if (stride == 2)
    for (; j + lanes < end; j += lanes) {
      const float* two = from + j * 2 + shift;
      store_unaligned(to + j, shuffle<EveryOther>(load_unaligned(two), load_unaligned(two + lanes)));
    }
  for (; j < end; ++j) to[j] = from[j * stride + shift];
}

struct Strips : Geometry {
  static constexpr std::int64_t images_together = 1;

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
      float* to = planes;
      for (std::int64_t a = 0; a < g.in.row_phases; ++a)
        for (std::int64_t copy = 0; copy < g.copies(); ++copy)
          for (std::int64_t row = 0; row < g.in_rows(); ++row, to += g.row_floats()) {
            const std::int64_t h = (g.first_in_row() + b * g.band + row) * g.in.row_stride + a - g.in.row_pad;
            shifted_row(x + h * g.in.width, row_width(g.in, h), g.in.column_stride,
                        g.first_in_column() * g.in.column_stride + copy - g.in.column_pad, g.row_floats(), to);
          }
      for (; to < planes + g.in_pitch() * pixel_vector; to += lanes) store(to, Vec{});
    }
    void pack_outputs(const float* y, std::int64_t, std::int64_t, float* planes) const {
      float* to = planes;
      for (std::int64_t row = 0; row < g.band_rows(b); ++row, to += g.row_floats()) {
        const std::int64_t h = g.first_row + b * g.band + row;
        shifted_row(y + h * g.out.width, row_width(g.out, h), 1, g.first_column, g.row_floats(), to);
      }
      for (; to < planes + g.out_pitch() * pixel_vector; to += lanes) store(to, Vec{});
    }
    template <class Finish>
    void unpack(const float* planes, const Finish& finish, float* y, std::int64_t, std::int64_t, Order) const {
      for (std::int64_t a = 0; a < g.out.row_phases; ++a)
        for (std::int64_t p = 0; p < g.out.column_phases; ++p)
          for (std::int64_t row = 0; row < g.band_rows(b); ++row) {
            const float* from = planes + ((a * g.out.column_phases + p) * g.out_pitch() + row * g.row_vectors()) * pixel_vector;
            const std::int64_t h = (g.first_row + b * g.band + row) * g.out.row_stride + a - g.out.row_pad;
            const std::int64_t stride = g.out.column_stride, width = row_width(g.out, h);
            const std::int64_t shift = g.first_column * stride + p - g.out.column_pad;
            const std::int64_t to = h * g.out.width + shift;
            std::int64_t j = shift < 0 ? (-shift + stride - 1) / stride : 0;
            const std::int64_t end = smaller(g.columns, width > shift ? (width - shift + stride - 1) / stride : 0);
            for (; j < end; j += lanes) {
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
  };
};

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
