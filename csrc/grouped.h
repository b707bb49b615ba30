// Images side by side: a vector is one pixel of 16 images.
//
// Shifts are whole vectors, so every pixel is held once. Made for batches; packing and unpacking transpose 16 pixels of 16 images in
// registers, or only copy where the tensors in memory are in this order too: `blocked`, [16 images][row][channel][column][image]. There
// the rows of all channels lie together because bands are what is read and written: one stretch of memory each. A tile is neighbouring
// pixels of one row.
#pragma once
#include "planes.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Where the pixels [begin, end) of a channel are in its planes (-1: nowhere, no tap uses them), and which places of the planes are no
// pixel: margins, which hold zeros.
struct Chart {
  std::int64_t begin, end, blanks;
  std::int64_t width, channels;
  std::int32_t* where;
  std::int32_t* blank;

  // Of the part of `side` that lies in `rows` x `columns` of the grid from (first_row, first_column) on. `place` says where a pixel is
  // among `size` places; `memory` has room for a number for each pixel and each place.
  template <class Place>
  Chart(const Side& side, std::int64_t first_row, std::int64_t rows, std::int64_t first_column, std::int64_t columns, Place place,
        std::int64_t size, std::int32_t* memory) {
    const std::int64_t h0 = larger(0, first_row * side.row_stride - side.row_pad);
    const std::int64_t h1 = larger(h0, smaller(side.height, (first_row + rows) * side.row_stride - side.row_pad));
    begin = smaller(h0 * side.width, side.pixels);
    end = smaller(h1 * side.width, side.pixels);
    width = side.width;
    channels = side.channels;
    where = memory;
    blank = memory + (end - begin);
    for (std::int64_t i = 0; i < size; ++i) blank[i] = 0;
    std::int64_t row = begin / side.width, column = begin % side.width;
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t h = row + side.row_pad, w = column + side.column_pad;
      const std::int64_t a = h % side.row_stride, b = w % side.column_stride, c = w / side.column_stride - first_column;
      const bool used = a < side.row_phases && b < side.column_phases && c >= 0 && c < columns;
      where[p - begin] = used ? static_cast<std::int32_t>(place(a, h / side.row_stride - first_row, b, c)) : -1;
      if (used) blank[where[p - begin]] = 1;
      if (++column == side.width) column = 0, ++row;
    }
    blanks = 0;
    for (std::int64_t i = 0; i < size; ++i)
      if (!blank[i]) blank[blanks++] = static_cast<std::int32_t>(i);
  }

  void clear_blanks(float* planes) const {
    for (std::int64_t i = 0; i < blanks; ++i)
      for (std::int64_t image = 0; image < pixel_vector; image += lanes) store(planes + blank[i] * pixel_vector + image, Vec{});
  }

  // Calls body(place in the planes, floats from the start of a blocked channel) for every pixel.
  template <class Body>
  OPENWORK_INLINE void for_blocked(Body body) const {
    const std::int32_t* at = where;
    for (std::int64_t row = begin / width; row < end / width; ++row)
      for (std::int64_t column = 0; column < width; ++column, ++at) body(*at, (row * channels * width + column) * pixel_vector);
  }

  // Pixels of one blocked channel into its planes.
  void copy(const float* x, float* planes) const {
    clear_blanks(planes);
    for_blocked([&](std::int32_t at, std::int64_t from) __attribute__((always_inline)) {
      if (at < 0) return;
      for (std::int64_t image = 0; image < pixel_vector; image += lanes)
        store(planes + at * pixel_vector + image, load(x + from + image));
    });
  }

  // Pixels of one channel of `images` images, whose starts are `stride` floats apart, into its planes.
  void pack(const float* x, std::int64_t stride, std::int64_t images, float* planes) const {
    clear_blanks(planes);
    for (std::int64_t image = 0; image < pixel_vector; image += lanes) {
      float* to = planes + image;
      for (std::int64_t p = begin; p < end; p += lanes) {
        const std::int64_t count = smaller(lanes, end - p);
        const float* from = x + image * stride + p;
        const std::int32_t* at = where + (p - begin);
        Vec block[lanes];
        if (count == lanes && images - image >= lanes) {
          OPENWORK_UNROLL
          for (int i = 0; i < lanes; ++i) block[i] = load_unaligned(from + i * stride);
          transpose(block);
          OPENWORK_UNROLL
          for (int i = 0; i < lanes; ++i)
            if (at[i] >= 0) store(to + at[i] * pixel_vector, block[i]);
        } else {
          for (int i = 0; i < lanes; ++i) block[i] = image + i < images ? load_first(from + i * stride, count) : Vec{};
          transpose(block);
          for (int i = 0; i < count; ++i)
            if (at[i] >= 0) store(to + at[i] * pixel_vector, block[i]);
        }
      }
    }
  }

  // The planes of one channel into its blocked outputs, past the caches if asked.
  template <class Finish>
  void deliver(const float* planes, const Finish& finish, float* y, bool past_caches) const {
    for_blocked([&](std::int32_t at, std::int64_t to) __attribute__((always_inline)) {
      for (std::int64_t image = 0; image < pixel_vector; image += lanes) {
        const Vec v = finish(load(planes + at * pixel_vector + image), to + image, lanes);
        if (past_caches) store_past_caches(y + to + image, v);
        else store(y + to + image, v);
      }
    });
  }

  // The planes of one channel into `images` images.
  template <class Finish>
  void unpack(const float* planes, const Finish& finish, float* y, std::int64_t stride, std::int64_t images) const {
    for (std::int64_t image = 0; image < images; image += lanes) {
      const float* from = planes + image;
      for (std::int64_t p = begin; p < end; p += lanes) {
        const std::int64_t count = smaller(lanes, end - p), to = image * stride + p;
        const std::int32_t* at = where + (p - begin);
        Vec block[lanes];
        if (count == lanes && images - image >= lanes) {
          OPENWORK_UNROLL
          for (int i = 0; i < lanes; ++i) block[i] = load(from + at[i] * pixel_vector);
          transpose(block);
          OPENWORK_UNROLL
          for (int i = 0; i < lanes; ++i) store_unaligned(y + to + i * stride, finish(block[i], to + i * stride, lanes));
        } else {
          for (int i = 0; i < lanes; ++i) block[i] = i < count ? load(from + at[i] * pixel_vector) : Vec{};
          transpose(block);
          for (int i = 0; i < lanes && image + i < images; ++i)
            store_first(y + to + i * stride, finish(block[i], to + i * stride, count), count);
        }
      }
    }
  }
};

struct Grouped : Geometry {
  static constexpr std::int64_t images_together = pixel_vector;
  static constexpr bool packs = true;  // inputs are copied

  std::int64_t row_tiles() const { return (columns + tile - 1) / tile; }
  std::int64_t out_columns() const { return row_tiles() * tile; }
  std::int64_t in_columns() const { return out_columns() + column_reach(); }

  // Vectors of the planes of an input channel, and of one plane of an output channel. Odd, because planes at a distance of a power
  // of two would compete for the same places of the cache.
  std::int64_t in_pitch() const { return (in.phases() * in_rows() * in_columns()) | 1; }
  std::int64_t out_pitch() const { return (band * out_columns()) | 1; }
  std::int64_t in_size() const { return in.channels * in_pitch() * pixel_vector; }

  // Vectors from the first one of a channel to a pixel, at a place relative to the band.
  std::int64_t in_place(std::int64_t a, std::int64_t row, std::int64_t b, std::int64_t column) const {
    return ((a * in_rows() + row) * in.column_phases + b) * in_columns() + column;
  }
  std::int64_t out_place(std::int64_t a, std::int64_t row, std::int64_t b, std::int64_t column) const {
    return (a * out.column_phases + b) * out_pitch() + row * out_columns() + column;
  }
  // From the first vector of all to what the first tile reads for matrix column k.
  std::int64_t tap_place(std::int64_t k) const {
    const std::int64_t x = column_tap(k), column = x / stride_columns;
    return channel_of(k) * in_pitch() + in_place(tap_phase(row_tap(k)), tap_row(row_tap(k)), backwards ? 0 : x % stride_columns,
                                                 backwards ? column_reach() - column : column);
  }

  std::int64_t tiles(std::int64_t b) const { return band_rows(b) * row_tiles(); }
  std::int64_t in_step(std::int64_t t) const { return in_place(0, t / row_tiles(), 0, t % row_tiles() * tile); }
  std::int64_t out_step(std::int64_t t) const { return t * tile; }

  // Numbers that the charts of a band take.
  std::int64_t chart_room() const {
    const std::int64_t pixels = in_rows() * in.row_stride * in.width + band * out.row_stride * out.width;
    return pixels + in_pitch() + out.phases() * out_pitch();
  }

  struct Band {
    Chart inputs, outputs;

    Band(const Grouped& g, std::int64_t b, std::int32_t* memory)
        : inputs(
              g.in, g.first_in_row() + b * g.band, g.in_rows(), g.first_in_column(), g.in_columns(),
              [&](auto a, auto row, auto p, auto column) { return g.in_place(a, row, p, column); }, g.in_pitch(), memory),
          outputs(
              g.out, g.first_row + b * g.band, g.band_rows(b), g.first_column, g.columns,
              [&](auto a, auto row, auto p, auto column) { return g.out_place(a, row, p, column); }, g.out.phases() * g.out_pitch(),
              inputs.blank + g.in_pitch()) {}

    void pack_inputs(const float* x, std::int64_t stride, std::int64_t images, Order order, float* planes) const {
      if (order == Order::plain) inputs.pack(x, stride, images, planes);
      else inputs.copy(x, planes);
    }
    // As if they had been computed: what dW needs of dY.
    void pack_outputs(const float* y, std::int64_t stride, std::int64_t images, float* planes) const {
      outputs.pack(y, stride, images, planes);
    }
    template <class Finish>
    void unpack(const float* planes, const Finish& finish, float* y, std::int64_t stride, std::int64_t images, Order order) const {
      if (order == Order::plain) outputs.unpack(planes, finish, y, stride, images);
      else outputs.deliver(planes, finish, y, order == Order::blocked_past_caches);
    }
  };
};

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
