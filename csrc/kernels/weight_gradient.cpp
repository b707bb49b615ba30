// dW at the nonzeros: for each kept weight (m, k) the sum over the batch of dY[b, m] X[b, k]. A sampled dense-dense product.
//
// It walks the same runs as the forward kernel. The row of dY stays in registers, each nonzero costs the aligned loads of its row
// of X; the lane sums of several nonzeros are made together by interleaving additions. The batch is met tile by tile in order
// and every weight belongs to one thread, so the bits do not depend on the number of threads.
#include "dots.h"
#include "scratch.h"
#include "tiles.h"
#include "walk.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

struct Gradient {
  Walk walk;
  const std::int32_t* column;
  float* value;  // in CSR order
};

// A feature-major tile of X.
template <int width>
struct FeatureDots {
  static constexpr int vectors = width / lanes;
  const float* x;
  OPENWORK_INLINE const float* input(std::int32_t column) const {
    return x + static_cast<std::size_t>(static_cast<std::uint32_t>(column)) * width;
  }
  static constexpr int at(int j) { return j * lanes; }
};

// One part of the rows and one tile.
template <int width>
void gradient(const Gradient& g, std::int64_t part, const float* x, const float* dy, bool accumulate) {
  constexpr int vectors = width / lanes;
  const Run* run = g.walk.runs + g.walk.parts[part].run;
  const std::int32_t* bucket = g.walk.buckets + part * g.walk.block_count * bucket_count;
  for (std::int64_t block = 0; block < g.walk.block_count; ++block, bucket += bucket_count)
    walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) {
      if (n == 0) return;
      const float* row = dy + static_cast<std::size_t>(r->row) * width;
      prefetch(g.column + r[8].first);
      prefetch(g.value + r[8].first);
      Vec d[vectors];
      OPENWORK_UNROLL
      for (int j = 0; j < vectors; ++j) d[j] = load(row + j * lanes);
      add_dots(FeatureDots<width>{x}, d, g.column + r->first, n > 0 ? static_cast<int>(n) : r->length, g.value + r->first,
               accumulate);
    });
}

void gradient(const Gradient& g, std::int64_t part, const float* x, const float* dy, std::int64_t width, bool accumulate) {
  if (width == 64) gradient<64>(g, part, x, dy, accumulate);
  else if (width == 32) gradient<32>(g, part, x, dy, accumulate);
  else gradient<16>(g, part, x, dy, accumulate);
}

// Tiles packed at once, which bounds the memory, and features packed as one piece of work.
constexpr std::int64_t tiles_at_once = 8;
constexpr std::int64_t pack_piece = 64;

}  // namespace

// gradient [nonzeros] is overwritten. tiled: x and dy are tiles (aligned to 64 bytes) rather than row-major.
KERNEL(weight_gradient, Address x_, Address dy_, std::int64_t batch, std::int64_t inputs, std::int64_t outputs,
       Address gradient_, Address column, Address runs, Address buckets, Address parts, std::int64_t part_count,
       std::int64_t block_count, bool tiled, int threads) {
  const Gradient g{{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count},
                   at<const std::int32_t>(column), at<float>(gradient_)};
  const auto* x = at<const float>(x_);
  const auto* dy = at<const float>(dy_);
  const std::int64_t tiles = (batch + tile_width - 1) / tile_width;
  const std::int64_t x_pieces = (inputs + pack_piece - 1) / pack_piece, dy_pieces = (outputs + pack_piece - 1) / pack_piece;
  const std::int64_t pieces = x_pieces + dy_pieces, stride = (inputs + outputs) * tile_width;
  float* packed = tiled ? nullptr : scratch<float>(Scratch::shared, smaller(tiles, tiles_at_once) * stride);

#pragma omp parallel num_threads(threads)
  for (std::int64_t begin = 0; begin < tiles; begin += tiles_at_once) {
    const std::int64_t end = smaller(tiles, begin + tiles_at_once);
    const auto samples = [&](std::int64_t tile) { return smaller(tile_width, batch - tile * tile_width); };
    if (!tiled) {
#pragma omp for schedule(static)
      for (std::int64_t i = 0; i < (end - begin) * pieces; ++i) {
        const std::int64_t tile = begin + i / pieces, piece = i % pieces, width = width_for(samples(tile));
        float* to = packed + (tile - begin) * stride;
        if (piece < x_pieces) {
          const std::int64_t from = piece * pack_piece;
          pack(x + tile * tile_width * inputs, inputs, samples(tile), from, smaller(inputs, from + pack_piece), to, width);
        } else {
          const std::int64_t from = (piece - x_pieces) * pack_piece;
          pack(dy + tile * tile_width * outputs, outputs, samples(tile), from, smaller(outputs, from + pack_piece),
               to + inputs * tile_width, width);
        }
      }
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t part = 0; part < part_count; ++part)
      for (std::int64_t tile = begin; tile < end; ++tile) {
        const float* tile_x = tiled ? x + tile * tile_width * inputs : packed + (tile - begin) * stride;
        const float* tile_dy = tiled ? dy + tile * tile_width * outputs : tile_x + inputs * tile_width;
        gradient(g, part, tile_x, tile_dy, tiled ? tile_width : width_for(samples(tile)), tile > 0);
      }
  }
}

}  // namespace openwork::OPENWORK_LEVEL
