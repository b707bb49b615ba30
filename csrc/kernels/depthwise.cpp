// Y = activation(conv(X, W) + bias + carried) where each output channel sees one input channel: a handful of dense taps.
//
// In PyTorch's order a channel is first copied, row by row, so that the inputs of every tap are neighbours: with zeros around it, and
// columns that a stride keeps apart in planes of their own (phases). In blocks a vector is one pixel of 16 images, and nothing is
// copied. Each output is one chain of multiply-adds in ascending order of the taps.
#include "scratch.h"
#include "strips.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Output rows computed together: they share the inputs of a small kernel.
constexpr int together = lanes == 16 ? 4 : 2;

struct Depthwise {
  const float* x;
  float* y;
  const float* weight;   // [channels][kernel_rows][kernel_columns]
  const float* bias;     // may be null
  const float* carried;  // in the order of y; may be null
  std::int64_t channels, per_input;  // output channels, in all and of an input channel
  std::int64_t height, width, rows, columns;
  std::int64_t kernel_rows, kernel_columns, row_stride, column_stride, row_pad, column_pad;

  std::int64_t inputs() const { return channels / per_input; }
  std::int64_t taps() const { return kernel_rows * kernel_columns; }
  bool is(std::int64_t side, std::int64_t stride) const {
    return kernel_rows == side && kernel_columns == side && row_stride == stride && column_stride == stride;
  }
};

// What a band of output rows reads of an input channel: [phase][row][pitch], rows and columns from the first tap of its first output on.
struct Plane : Depthwise {
  std::int64_t phases, in_rows, pitch, size;

  Plane(const Depthwise& d, std::int64_t band)
      : Depthwise(d), phases(smaller(column_stride, kernel_columns)), in_rows((band - 1) * row_stride + kernel_rows),
        pitch((whole(columns) + (kernel_columns - 1) / column_stride + lanes - 1) / lanes * lanes), size(phases * in_rows * pitch) {}

  static std::int64_t whole(std::int64_t count) { return (count + lanes - 1) / lanes * lanes; }

  // For the band that begins at output row `first`.
  void fill(const float* channel, std::int64_t first, float* plane) const {
    const Plane p = *this;  // in registers: what is written below could be anything, to the compiler
    for (std::int64_t phase = 0; phase < p.phases; ++phase) {
      const Shift shift(p.width, p.column_stride, phase - p.column_pad);
      for (std::int64_t row = 0; row < p.in_rows; ++row, plane += p.pitch) {
        const std::int64_t h = first * p.row_stride + row - p.row_pad;
        if (h < 0 || h >= p.height) zero_row(p.pitch, plane);
        else shift.copy(channel + h * p.width, p.pitch, plane);
      }
    }
  }
};

// 16 columns of neighbouring output rows, for a square kernel and one stride both ways.
template <int side, int stride, int count>
OPENWORK_INLINE void add_taps(const Plane& plane, const float* from, const float* weight, Vec (&sum)[count]) {
  const std::int64_t phase = plane.in_rows * plane.pitch;
  OPENWORK_UNROLL
  for (int i = 0; i < (count - 1) * stride + side; ++i, from += plane.pitch) {
    OPENWORK_UNROLL
    for (int k = 0; k < side; ++k) {
      const Vec in = load_unaligned(from + k % stride * phase + k / stride);
      OPENWORK_UNROLL
      for (int r = 0; r < count; ++r) {
        const int tap = i - r * stride;
        if (tap >= 0 && tap < side) sum[r] = broadcast(weight[tap * side + k]) * in + sum[r];
      }
    }
  }
}

// The same for any kernel, one row at a time.
OPENWORK_INLINE void add_taps(const Plane& plane, const float* from, const float* weight, Vec& sum) {
  for (std::int64_t tap = 0; tap < plane.kernel_rows; ++tap, from += plane.pitch)
    for (std::int64_t k = 0; k < plane.kernel_columns; ++k, ++weight)
      sum = broadcast(*weight) * load_unaligned(from + k % plane.column_stride * plane.in_rows * plane.pitch + k / plane.column_stride) + sum;
}

// Output rows [row, row + count).
template <int side, int stride, int count, class Finish>
OPENWORK_INLINE void convolve_rows(const Plane& plane, const float* from, const float* weight, std::int64_t row, const Finish& finish,
                                   float* y) {
  from += row * plane.row_stride * plane.pitch;
  for (std::int64_t column = 0; column < plane.columns; column += lanes) {
    Vec sum[count] = {};
    if constexpr (side > 0) add_taps<side, stride>(plane, from + column, weight, sum);
    else add_taps(plane, from + column, weight, sum[0]);
    const std::int64_t left = smaller(lanes, plane.columns - column);
    OPENWORK_UNROLL
    for (int r = 0; r < count; ++r) {
      const std::int64_t to = (row + r) * plane.columns + column;
      store_first(y + to, finish(sum[r], to, left), left);
    }
  }
}

// `count` rows of a channel of one image. side 0: any kernel.
template <int side, int stride, class Finish>
void convolve(const Plane plane, const float* from, const float* weight, std::int64_t count, const Finish finish, float* y) {
  std::int64_t row = 0;
  if constexpr (side > 0)
    for (; row + together <= count; row += together) convolve_rows<side, stride, together>(plane, from, weight, row, finish, y);
  for (; row < count; ++row) convolve_rows<side, stride, 1>(plane, from, weight, row, finish, y);
}

template <class Finish>
void convolve(const Plane& plane, const float* from, const float* weight, std::int64_t count, const Finish& finish, float* y) {
  if (plane.is(3, 1)) convolve<3, 1>(plane, from, weight, count, finish, y);
  else if (plane.is(3, 2)) convolve<3, 2>(plane, from, weight, count, finish, y);
  else if (plane.is(5, 1)) convolve<5, 1>(plane, from, weight, count, finish, y);
  else if (plane.is(5, 2)) convolve<5, 2>(plane, from, weight, count, finish, y);
  else convolve<0, 0>(plane, from, weight, count, finish, y);
}

// Channels that are copied before the first of them is computed: reading what was written a moment ago, in other vectors, waits.
constexpr std::int64_t copied_ahead = 4;

// Rows that a band has at least. Smaller images are dealt out by channels.
constexpr std::int64_t least_band = 7;

template <Activation activation>
void run_plain(const Depthwise& d, std::int64_t images, int threads) {
  // As the bands of the convolutions around are dealt out: what a thread reads, it made itself.
  const std::int64_t shares = images % threads ? larger(1, smaller(threads, d.rows / least_band)) : 1;
  const std::int64_t band = (d.rows + shares - 1) / shares, bands = (d.rows + band - 1) / band;
  const Plane plane(d, band);
  const std::int64_t inputs = d.inputs(), batches = (inputs + copied_ahead - 1) / copied_ahead;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < images * bands * batches; ++i) {
    const std::int64_t image = i / batches / bands, row = i / batches % bands * band, count = smaller(band, d.rows - row);
    const std::int64_t begin = i % batches * copied_ahead, end = smaller(inputs, begin + copied_ahead);
    float* copies = scratch<float>(Scratch::own, copied_ahead * plane.size);
    for (std::int64_t c = begin; c < end; ++c)
      plane.fill(d.x + (image * inputs + c) * d.height * d.width, row, copies + (c - begin) * plane.size);
    for (std::int64_t channel = begin * d.per_input; channel < end * d.per_input; ++channel) {
      const std::int64_t start = ((image * d.channels + channel) * d.rows + row) * d.columns;
      const Finish<activation> finish{d.bias ? d.bias[channel] : 0.0f, d.carried ? d.carried + start : nullptr};
      convolve(plane, copies + (channel / d.per_input - begin) * plane.size, d.weight + channel * d.taps(), count, finish, d.y + start);
    }
  }
}

// One output row of a channel of 16 images; `apart` floats lie between the rows of x. Taps outside of the image are left out. side: its
// columns of taps, 0 for any number.
template <int side, class Finish>
void convolve_blocked(const Depthwise d, const float* x, std::int64_t apart, const float* weight, std::int64_t row, const Finish finish,
                      float* y) {
  const std::int64_t top = row * d.row_stride - d.row_pad;
  const std::int64_t h0 = larger(0, top), h1 = larger(h0, smaller(d.height, top + d.kernel_rows));
  for (std::int64_t column = 0; column < d.columns; ++column) {
    const std::int64_t left = column * d.column_stride - d.column_pad;
    const std::int64_t w0 = larger(0, left), w1 = smaller(d.width, left + d.kernel_columns);
    for (std::int64_t image = 0; image < pixel_vector; image += lanes) {
      Vec sum{};
      for (std::int64_t h = h0; h < h1; ++h) {
        const float* from = x + h * apart + left * pixel_vector + image;
        const float* w = weight + (h - top) * d.kernel_columns;
        if (side > 0 && w1 - w0 == side) {
          OPENWORK_UNROLL
          for (int k = 0; k < side; ++k) sum = broadcast(w[k]) * load(from + k * pixel_vector) + sum;
        } else {
          for (std::int64_t k = w0 - left; k < w1 - left; ++k) sum = broadcast(w[k]) * load(from + k * pixel_vector) + sum;
        }
      }
      const std::int64_t to = column * pixel_vector + image;
      store(y + to, finish(sum, to, lanes));
    }
  }
}

template <Activation activation>
void run_blocked(const Depthwise& d, std::int64_t blocks, int threads) {
  const std::int64_t plane = d.width * pixel_vector, apart = d.inputs() * plane;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < blocks * d.rows; ++i) {
    const float* x = d.x + i / d.rows * d.height * apart;
    for (std::int64_t channel = 0; channel < d.channels; ++channel) {
      const std::int64_t start = (i * d.channels + channel) * d.columns * pixel_vector;
      const Finish<activation> finish{d.bias ? d.bias[channel] : 0.0f, d.carried ? d.carried + start : nullptr};
      const float* from = x + channel / d.per_input * plane;
      const float* weight = d.weight + channel * d.taps();
      if (d.kernel_columns == 3) convolve_blocked<3>(d, from, apart, weight, i % d.rows, finish, d.y + start);
      else convolve_blocked<0>(d, from, apart, weight, i % d.rows, finish, d.y + start);
    }
  }
}

}  // namespace

// x and y are contiguous [images][channels][height][width], or both blocked (grouped.h), with `images` counting the blocks. An input
// channel makes `per_input` output channels, one behind the other. carried may be y. bias and carried may be 0.
KERNEL(depthwise, Address x, Address y, std::int64_t images, Address weight, Address bias, Address carried, int activation, bool blocked,
       std::int64_t channels, std::int64_t per_input, std::int64_t height, std::int64_t width, std::int64_t rows, std::int64_t columns,
       std::int64_t kernel_rows, std::int64_t kernel_columns, std::int64_t row_stride, std::int64_t column_stride, std::int64_t row_pad,
       std::int64_t column_pad, int threads) {
  const Depthwise d{at<const float>(x), at<float>(y), at<const float>(weight), at<const float>(bias), at<const float>(carried), channels,
                    per_input, height, width, rows, columns, kernel_rows, kernel_columns, row_stride, column_stride, row_pad, column_pad};
  with(static_cast<Activation>(activation), [&](auto a) {
    if (blocked) run_blocked<a>(d, images, threads);
    else run_plain<a>(d, images, threads);
  });
}

}  // namespace openwork::OPENWORK_LEVEL
