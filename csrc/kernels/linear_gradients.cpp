// All gradients of a linear layer with a sparse W in CSR, in one call: dX = dY W, dW at the nonzeros, and the sums of dY for the bias.
//
// dW is a sampled dense-dense product: for each kept weight (m, k) the sum over the batch of dY[b, m] X[b, k]. It walks the same runs
// as the forward kernel. The row of dY stays in registers, each nonzero costs the aligned loads of its row of X; the lane sums of
// several nonzeros are made together by interleaving additions. dX walks the transposed matrix.
//
// The batch is met tile by tile in order and every gradient belongs to one thread, so the bits do not depend on the number of
// threads.
#include "feature_tile.h"
#include "layer.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

struct WeightGradient {
  Walk walk;
  const std::int32_t* column;
  float* value;  // in CSR order

  // One part of the rows and one tile.
  template <int width>
  void part(std::int64_t part, const float* x, const float* dy, bool accumulate) const {
    constexpr int vectors = width / lanes;
    const Run* run = walk.runs + walk.parts[part].run;
    const std::int32_t* bucket = walk.buckets + part * walk.block_count * bucket_count;
    for (std::int64_t block = 0; block < walk.block_count; ++block, bucket += bucket_count)
      walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) {
        if (n == 0) return;
        const float* row = dy + static_cast<std::size_t>(r->row) * width;
        prefetch(column + r[8].first);
        prefetch(value + r[8].first);
        Vec d[vectors];
        OPENWORK_UNROLL
        for (int j = 0; j < vectors; ++j) d[j] = load(row + j * lanes);
        add_dots(FeatureDots<width>{x}, d, column + r->first, n > 0 ? static_cast<int>(n) : r->length, value + r->first,
                 accumulate);
      });
  }
};

// Adds up features [begin, end) of a tile over its samples.
inline void add_samples(const float* tile, std::int64_t width, std::int64_t begin, std::int64_t end, float* out, bool accumulate) {
  for (std::int64_t feature = begin; feature < end; feature += lanes) {
    const std::int64_t features = smaller(lanes, end - feature);
    Vec sum[lanes];
    for (int i = 0; i < lanes; ++i) {
      sum[i] = Vec{};
      if (i < features)
        for (std::int64_t sample = 0; sample < width; sample += lanes) sum[i] += load(tile + (feature + i) * width + sample);
    }
    Vec total = sums<lanes>(sum);
    if (accumulate) total += load_first(out + feature, features);
    store_first(out + feature, total, features);
  }
}

// What the layer saw, and where its gradients go; those that nobody wants are null.
struct Job {
  const float *x, *dy;  // row-major, or tiles
  const float* gate;    // the outputs of the layer if relu was applied to them, as dy lies; otherwise null
  float *dx, *dbias;    // dx lies as x does
  std::int64_t batch, inputs, outputs;
  bool tiled_x, tiled_dy;

  std::int64_t samples(std::int64_t tile) const { return smaller(tile_width, batch - tile * tile_width); }
  std::int64_t width(std::int64_t tile) const { return tiled_x || tiled_dy ? tile_width : width_for(samples(tile)); }

  // What of a tile is packed into a buffer: X if that is row-major, dY unless it can be taken as it is, dX on its way to row-major.
  bool packs_x, packs_dy, packs_dx;
  std::int64_t floats() const { return tile_width * (packs_x * inputs + packs_dy * outputs + packs_dx * inputs); }
  float* dy_in(float* buffer) const { return buffer + packs_x * inputs * tile_width; }
  float* dx_in(float* buffer) const { return dy_in(buffer) + packs_dy * outputs * tile_width; }

  const float* x_of(std::int64_t tile, const float* buffer) const {
    return packs_x ? buffer : x + tile * tile_width * inputs;
  }
  const float* dy_of(std::int64_t tile, float* buffer) const {
    return packs_dy ? dy_in(buffer) : dy + tile * tile_width * outputs;
  }
  float* dx_of(std::int64_t tile, float* buffer) const { return packs_dx ? dx_in(buffer) : dx + tile * tile_width * inputs; }

  void pack_x(std::int64_t tile, std::int64_t begin, std::int64_t end, float* buffer) const {
    pack(x + tile * tile_width * inputs, inputs, samples(tile), begin, end, buffer, width(tile));
  }
  void pack_dy(std::int64_t tile, std::int64_t begin, std::int64_t end, float* buffer) const {
    const std::int64_t offset = tile * tile_width * outputs;
    float* to = dy_in(buffer);
    if (tiled_dy) pass(dy + offset, gate + offset, begin, end, to, tile_width);
    else if (gate) pack<true>(dy + offset, gate + offset, outputs, samples(tile), begin, end, to, width(tile));
    else pack(dy + offset, outputs, samples(tile), begin, end, to, width(tile));
  }
  void deliver_dx(std::int64_t tile, std::int64_t begin, std::int64_t end, float* buffer) const {
    if (!packs_dx) return;
    unpack<Activation::none>(dx_in(buffer), width(tile), nullptr, begin, end, dx + tile * tile_width * inputs, inputs,
                             samples(tile));
  }
};

// Tiles packed at once, which bounds the memory.
constexpr std::int64_t tiles_at_once = 8;

}  // namespace

// dx (as x lies), dvalues [kept] and dbias [outputs] are overwritten; 0 where not wanted. gate: 0, or the outputs of a layer with relu.
// tiled_x, tiled_dy: x and dy are tiles (aligned to 64 bytes) rather than row-major. A walk is column ... block_count; that of the
// transposed matrix, its permutation and the values are needed for dx alone.
KERNEL(linear_gradients, Address x, Address dy, Address gate, Address dx, Address dvalues, Address dbias, std::int64_t batch,
       std::int64_t inputs, std::int64_t outputs, bool tiled_x, bool tiled_dy, Address column, std::int64_t kept, Address runs,
       Address buckets, Address parts, std::int64_t part_count, std::int64_t block_count, Address values, Address permutation,
       Address t_column, Address t_runs, Address t_buckets, Address t_parts, std::int64_t t_part_count,
       std::int64_t t_block_count, int threads) {
  const WeightGradient dw{{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count},
                          at<const std::int32_t>(column), at<float>(dvalues)};
  const Walk transposed{at<const Run>(t_runs), at<const std::int32_t>(t_buckets), at<const Part>(t_parts), t_part_count,
                        t_block_count};
  const Weave weave{at<const std::int32_t>(t_column), at<const float>(values), at<const std::int32_t>(permutation), kept};
  const Job job{at<const float>(x), at<const float>(dy), at<const float>(gate), at<float>(dx), at<float>(dbias),
                batch, inputs, outputs, tiled_x, tiled_dy,
                dvalues && !tiled_x, !tiled_dy || gate, dx && !tiled_x};
  const std::int64_t tiles = (batch + tile_width - 1) / tile_width, at_once = smaller(tiles, tiles_at_once);
  // The last tiles of a larger batch may be fewer than the others: no share is fixed for all of them.
  const Woven woven = Woven::of(dx ? kept : 0, Shares::of(at_once, dx ? t_part_count : 0, threads, kept, tiles == at_once));
  const std::int64_t x_pieces = job.packs_x ? (inputs + feature_piece - 1) / feature_piece : 0;
  const std::int64_t dy_pieces = job.packs_dy ? (outputs + feature_piece - 1) / feature_piece : 0;
  float* buffers = scratch<float>(Scratch::shared, at_once * job.floats());

#pragma omp parallel num_threads(threads)
  {
    const Word* words = woven.in_thread([&](std::int64_t part, Word* to) { weave.ordered_part(transposed, part, to); });
    for (std::int64_t begin = 0; begin < tiles; begin += tiles_at_once) {
      const std::int64_t end = smaller(tiles, begin + tiles_at_once);
      const auto buffer = [&](std::int64_t tile) { return buffers + (tile - begin) * job.floats(); };
      // By tiles, so that a thread that is given whole ones for dX has packed them itself.
      const std::int64_t pieces = x_pieces + dy_pieces;
#pragma omp for schedule(static)
      for (std::int64_t i = 0; i < (end - begin) * pieces; ++i) {
        const std::int64_t tile = begin + i / pieces, piece = i % pieces;
        if (piece < x_pieces) {
          job.pack_x(tile, piece * feature_piece, smaller(inputs, (piece + 1) * feature_piece), buffer(tile));
        } else {
          const std::int64_t from = (piece - x_pieces) * feature_piece;
          job.pack_dy(tile, from, smaller(outputs, from + feature_piece), buffer(tile));
        }
      }

      if (dx) {
        const auto multiply_part = [&](std::int64_t tile, std::int64_t part) {
          with_width(job.width(tile), [&](auto width) {
            multiply(FeatureTile<width>{}, transposed, words, part, job.dy_of(tile, buffer(tile)), job.dx_of(tile, buffer(tile)));
          });
        };
        const Shares shares = end - begin == at_once ? woven.shares : Shares::of(end - begin, t_part_count, threads);
        shares.deal(
            [&](std::int64_t i) {
              for (std::int64_t part = 0; part < t_part_count; ++part) multiply_part(begin + i, part);
              job.deliver_dx(begin + i, 0, inputs, buffer(begin + i));
            },
            [&](std::int64_t i, std::int64_t part) {
              multiply_part(begin + i, part);
              job.deliver_dx(begin + i, transposed.parts[part].row, transposed.parts[part + 1].row, buffer(begin + i));
            });
      }

      if (dvalues || dbias) {
#pragma omp for schedule(static, 1) nowait
        for (std::int64_t part = 0; part < part_count; ++part)
          for (std::int64_t tile = begin; tile < end; ++tile) {
            const float* dy_tile = job.dy_of(tile, buffer(tile));
            if (dvalues)
              with_width(job.width(tile), [&](auto width) {
                dw.part<width>(part, job.x_of(tile, buffer(tile)), dy_tile, tile > 0);
              });
            if (job.dbias)
              add_samples(dy_tile, job.width(tile), dw.walk.parts[part].row, dw.walk.parts[part + 1].row, job.dbias, tile > 0);
          }
      }
#pragma omp barrier
    }
  }
}

}  // namespace openwork::OPENWORK_LEVEL
