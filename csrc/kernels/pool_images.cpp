// Pooling of blocked images (blocked_images.cpp): the largest, or the mean, of the pixels under a window.
#include "planes.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

struct Window {
  std::int64_t rows, columns, row_stride, column_stride, row_pad, column_pad;
};

// NaN wins, as in PyTorch.
struct Largest {
  OPENWORK_INLINE static Vec join(Vec best, Vec v) { return ((v <= best) | (best != best)) ? best : v; }
};
struct Sum {
  OPENWORK_INLINE static Vec join(Vec sum, Vec v) { return sum + v; }
};

// One output row of one channel; `apart` floats lie between the rows of x. The part of a window that lies outside of the image does not count,
// and `scale` multiplies what comes out.
template <class Join>
void pool_row(const float* x, float* y, std::int64_t apart, std::int64_t height, std::int64_t width, std::int64_t row,
              std::int64_t columns, const Window& window, float scale) {
  const std::int64_t top = row * window.row_stride - window.row_pad;
  const std::int64_t h0 = larger(0, top), h1 = smaller(height, top + window.rows);
  for (std::int64_t column = 0; column < columns; ++column) {
    const std::int64_t left = column * window.column_stride - window.column_pad;
    const std::int64_t w0 = larger(0, left), w1 = smaller(width, left + window.columns);
    for (std::int64_t image = 0; image < pixel_vector; image += lanes) {
      Vec v = load(x + h0 * apart + w0 * pixel_vector + image);
      for (std::int64_t h = h0; h < h1; ++h)
        for (std::int64_t w = h == h0 ? w0 + 1 : w0; w < w1; ++w) v = Join::join(v, load(x + h * apart + w * pixel_vector + image));
      store(y + column * pixel_vector + image, v * scale);
    }
  }
}

}  // namespace

// Blocks [height][channels][width][16] to [rows][channels][columns][16]; every window holds a pixel.
KERNEL(pool_images, Address x, Address y, std::int64_t blocks, std::int64_t channels, std::int64_t height, std::int64_t width,
       std::int64_t rows, std::int64_t columns, std::int64_t window_rows, std::int64_t window_columns, std::int64_t row_stride,
       std::int64_t column_stride, std::int64_t row_pad, std::int64_t column_pad, bool mean, int threads) {
  const Window window{window_rows, window_columns, row_stride, column_stride, row_pad, column_pad};
  const std::int64_t apart = channels * width * pixel_vector;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < blocks * rows; ++i) {
    const std::int64_t block = i / rows, row = i % rows;
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      const float* from = at<const float>(x) + block * height * apart + channel * width * pixel_vector;
      float* to = at<float>(y) + (i * channels + channel) * columns * pixel_vector;
      const float scale = mean ? 1.0f / static_cast<float>(window_rows * window_columns) : 1.0f;
      if (mean) pool_row<Sum>(from, to, apart, height, width, row, columns, window, scale);
      else pool_row<Largest>(from, to, apart, height, width, row, columns, window, scale);
    }
  }
}

}  // namespace openwork::OPENWORK_LEVEL
