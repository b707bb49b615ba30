// Rows of the gradient of a dense weight, dY^T X: looked at once, to find where it is largest, and never stored whole.
#include "scratch.h"
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Entries computed side by side, in registers: so many rows times so many vectors.
constexpr int height = lanes == 16 ? 8 : 4, vectors = 3, width = vectors * lanes;

// Samples that are gone through at a time: X of them, a panel of `width` features, fits the first-level cache.
constexpr std::int64_t depth = 128;

// Of `samples` rows of x [samples][stride], the first `count` features to [samples][wide], zeros behind the last.
template <int wide>
void pack_panel(const float* x, std::int64_t samples, std::int64_t stride, std::int64_t count, float* panel) {
  for (std::int64_t s = 0; s < samples; ++s, x += stride, panel += wide) {
    if (count >= wide) {
      __builtin_memcpy(panel, x, wide * sizeof(float));
    } else {
      for (std::int64_t i = 0; i < wide; ++i) panel[i] = i < count ? x[i] : 0.0f;
    }
  }
}

// entries [rows][stride], `columns` of each, += dy [samples][height]^T x [samples][width]; `begins`: = instead.
void product(const float* x, const float* dy, std::int64_t samples, float* entries, std::int64_t stride, std::int64_t rows,
             std::int64_t columns, bool begins) {
  Vec sum[height][vectors];
  OPENWORK_UNROLL
  for (int r = 0; r < height; ++r) {
    OPENWORK_UNROLL
    for (int v = 0; v < vectors; ++v)
      sum[r][v] = !begins && r < rows && v * lanes < columns ? load_first(entries + r * stride + v * lanes, columns - v * lanes) : Vec{};
  }
  for (std::int64_t s = 0; s < samples; ++s, x += width, dy += height) {
    Vec of_x[vectors];
    OPENWORK_UNROLL
    for (int v = 0; v < vectors; ++v) of_x[v] = load(x + v * lanes);
    OPENWORK_UNROLL
    for (int r = 0; r < height; ++r) {
      const Vec of_dy = broadcast(dy[r]);
      OPENWORK_UNROLL
      for (int v = 0; v < vectors; ++v) sum[r][v] += of_dy * of_x[v];
    }
  }
  if (rows >= height && columns >= width) {
    OPENWORK_UNROLL
    for (int r = 0; r < height; ++r) {
      OPENWORK_UNROLL
      for (int v = 0; v < vectors; ++v) store_unaligned(entries + r * stride + v * lanes, sum[r][v]);
    }
    return;
  }
  OPENWORK_UNROLL
  for (int r = 0; r < height; ++r) {
    OPENWORK_UNROLL
    for (int v = 0; v < vectors; ++v)
      if (r < rows && v * lanes < columns) store_first(entries + r * stride + v * lanes, sum[r][v], columns - v * lanes);
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL

// Rows [first, last) of dy [samples, outputs]^T x [samples, inputs] into entries [last - first, inputs], or added to them. Every entry is
// one chain of multiply-adds in the order of the samples.
KERNEL(dense_gradient, openwork::Address x_, openwork::Address dy_, std::int64_t samples, std::int64_t inputs, std::int64_t outputs,
       std::int64_t first, std::int64_t last, bool add, openwork::Address entries_, int threads) {
  using namespace openwork;
  using namespace openwork::OPENWORK_LEVEL;
  const auto *x = at<const float>(x_), *dy = at<const float>(dy_);
  auto* entries = at<float>(entries_);
  const std::int64_t blocks = (last - first + height - 1) / height;
  // Each thread packs what it reads itself, and makes rows that lie together, which it is likely to read when they are looked through.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int share = 0; share < threads; ++share) {
    const std::int64_t begin = blocks * share / threads, end = blocks * (share + 1) / threads;
    if (begin == end) continue;
    float* const panel = scratch<float>(Scratch::own, depth * (width + (end - begin) * height));
    float* const strips = panel + depth * width;
    for (std::int64_t s = 0; s < samples; s += depth) {
      const std::int64_t here = smaller(depth, samples - s);
      const auto row = [=](std::int64_t block) { return block * height; };
      for (std::int64_t block = begin; block < end; ++block)
        pack_panel<height>(dy + s * outputs + first + row(block), here, outputs, last - first - row(block),
                           strips + (block - begin) * depth * height);
      for (std::int64_t column = 0; column < inputs; column += width) {
        pack_panel<width>(x + s * inputs + column, here, inputs, inputs - column, panel);
        for (std::int64_t block = begin; block < end; ++block)
          product(panel, strips + (block - begin) * depth * height, here, entries + row(block) * inputs + column, inputs,
                  last - first - row(block), inputs - column, s == 0 && !add);
      }
    }
  }
}
