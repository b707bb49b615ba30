// dW of a convolution at the nonzeros: for each kept weight the sum over images and pixels of dY times the X under its tap.
//
// X and dY are packed into planes (planes.h) a few bands at a time; then each thread walks its rows of the matrix over all tiles. The
// row of dY stays in registers, each nonzero costs the loads of its tile of X; sums over the lanes are made together (dots.h).
// Every weight belongs to one thread and meets the tiles in order, so the bits do not depend on the number of threads.
#include "dots.h"
#include "grouped.h"
#include "scratch.h"
#include "strips.h"
#include "walk.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

template <class Planes>
struct Job {
  const float *x, *dy;
  std::int64_t images;
  Planes planes;
  Walk walk;
  const std::int32_t* column;
  const std::int32_t* place;
  float* gradient;  // in CSR order

  std::int64_t in_size() const { return planes.in_size(); }
  std::int64_t size() const { return in_size() + planes.out.channels * planes.out_pitch() * pixel_vector; }
  std::int64_t items() const { return (images + Planes::images_together - 1) / Planes::images_together * planes.bands(); }
};

// A tile of X, or a strip of one.
template <int count>
struct TileDots {
  static constexpr int vectors = count;
  const std::int32_t* place;
  const float* x;
  OPENWORK_INLINE const float* input(std::int32_t column) const { return x + static_cast<std::size_t>(place[column]) * pixel_vector; }
  static constexpr int at(int j) { return j * pixel_vector; }
};

template <int count, class Planes>
void add_tile(const Job<Planes>& job, std::int64_t part, const float* x, const float* dy, bool accumulate) {
  for (int strip = 0; strip < pixel_vector; strip += lanes) {
    const TileDots<count> tile{job.place, x + strip};
    const Run* run = job.walk.runs + job.walk.parts[part].run;
    const std::int32_t* bucket = job.walk.buckets + part * job.walk.block_count * bucket_count;
    for (std::int64_t block = 0; block < job.walk.block_count; ++block, bucket += bucket_count)
      walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) {
        if (n == 0) return;
        prefetch(job.column + r[8].first);
        prefetch(job.gradient + r[8].first);
        const float* row = dy + strip + static_cast<std::size_t>(r->row) * job.planes.out_pitch() * pixel_vector;
        Vec d[count];
        OPENWORK_UNROLL
        for (int j = 0; j < count; ++j) d[j] = load(row + j * pixel_vector);
        add_dots(tile, d, job.column + r->first, n > 0 ? static_cast<int>(n) : r->length, job.gradient + r->first,
                 accumulate || strip > 0);
      });
  }
}

// Bands packed at once, which bounds the memory.
constexpr std::int64_t bands_at_once = 4;

// Band `number` of some images into a buffer; shared by the team.
template <class Planes>
void pack_item(const Job<Planes>& job, std::int64_t i, float* to) {
  const Planes& p = job.planes;
  const std::int64_t first_image = i / p.bands() * Planes::images_together;
  const std::int64_t images = smaller(Planes::images_together, job.images - first_image);
  const typename Planes::Band band(p, i % p.bands(), scratch<std::int32_t>(Scratch::own, p.chart_room()));
#pragma omp for schedule(static) nowait
  for (std::int64_t c = 0; c < p.in.channels; ++c)
    band.pack_inputs(job.x + (first_image * p.in.channels + c) * p.in.pixels, p.in.channels * p.in.pixels, images, Order::plain,
                     to + c * p.in_pitch() * pixel_vector);
#pragma omp single nowait
  for (std::int64_t f = p.in.channels * p.in_pitch() * pixel_vector; f < p.in_size(); ++f) to[f] = 0;
#pragma omp for schedule(static) nowait
  for (std::int64_t c = 0; c < p.out.channels; ++c)
    band.pack_outputs(job.dy + (first_image * p.out.channels + c) * p.out.pixels, p.out.channels * p.out.pixels, images,
                      to + job.in_size() + c * p.out_pitch() * pixel_vector);
}

template <class Planes>
void run(const Job<Planes>& job, int threads) {
  const Planes& p = job.planes;
  const std::int64_t items = job.items();
  float* packed = scratch<float>(Scratch::shared, smaller(items, bands_at_once) * job.size());

#pragma omp parallel num_threads(threads)
  for (std::int64_t begin = 0; begin < items; begin += bands_at_once) {
    const std::int64_t end = smaller(items, begin + bands_at_once);
    for (std::int64_t i = begin; i < end; ++i) pack_item(job, i, packed + (i - begin) * job.size());
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t part = 0; part < job.walk.part_count; ++part)
      for (std::int64_t i = begin; i < end; ++i) {
        const float* x = packed + (i - begin) * job.size();
        const float* dy = x + job.in_size();
        with_tile(p.tile, [&](auto count) {
          for (std::int64_t t = 0; t < p.tiles(i % p.bands()); ++t)
            add_tile<count>(job, part, x + p.in_step(t) * pixel_vector, dy + p.out_step(t) * pixel_vector, i > 0 || t > 0);
        });
      }
  }
}

}  // namespace

// gradient [kept] is overwritten; x, dy as in sparse_conv, of at least one image.
KERNEL(conv_weight_gradient, Address x, Address dy, std::int64_t images, Address geometry, Address gradient, Address column,
       Address runs, Address buckets, Address parts, std::int64_t part_count, std::int64_t block_count, int threads) {
  const Geometry g = *at<const Geometry>(geometry);
  auto* place = scratch<std::int32_t>(Scratch::weights, g.matrix_columns());
  const auto go = [&](auto planes) {
    for (std::int64_t k = 0; k < g.matrix_columns(); ++k) place[k] = static_cast<std::int32_t>(planes.tap_place(k));
    const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
    const Job<decltype(planes)> job{
        at<const float>(x), at<const float>(dy), images, planes, walk, at<const std::int32_t>(column), place, at<float>(gradient)};
    run(job, threads);
  };
  if (g.grouped) go(Grouped{g});
  else go(Strips{g});
}

}  // namespace openwork::OPENWORK_LEVEL
