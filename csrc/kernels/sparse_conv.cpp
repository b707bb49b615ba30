// Y = activation(conv(X, W) + bias + carried) with a sparse W, and dX from dY with the same weights; see planes.h.
//
// Work is dealt out by bands of grid rows. A thread packs the inputs of its band, multiplies tile by tile, and unpacks the outputs,
// all in buffers of its own; bands that cannot be dealt out evenly are shared by rows of the matrix.
#include "grouped.h"
#include "multiply.h"
#include "scratch.h"
#include "strips.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Outputs of more bytes are written past the caches: little of them would be there when they are read.
constexpr std::int64_t large_bytes = 16 << 20;

template <class Planes>
struct Job {
  const float* x;
  float* y;
  const float* bias;
  const float* carried;  // in the order of y
  Activation activation;
  Order x_order, y_order;
  std::int64_t images;
  Planes planes;
  Walk walk;
  const Word* words;

  std::int64_t out_size() const { return planes.out.channels * planes.out.phases() * planes.out_pitch() * pixel_vector; }
  std::int64_t buffer_size() const { return planes.in_size() + out_size(); }
  std::int64_t items() const { return (images + Planes::images_together - 1) / Planes::images_together * planes.bands(); }
};

// A band of some images, in a buffer of buffer_size floats; `memory` has room for its charts.
template <class Planes>
struct Item {
  const Job<Planes>& job;
  std::int64_t first_image, images, number;
  float *in, *out;
  typename Planes::Band band;

  Item(const Job<Planes>& job, std::int64_t index, float* buffer, std::int32_t* memory)
      : job(job), first_image(index / job.planes.bands() * Planes::images_together),
        images(smaller(Planes::images_together, job.images - first_image)), number(index % job.planes.bands()), in(buffer),
        out(buffer + job.planes.in_size()), band(job.planes, number, memory) {}

  // Of a channel of the first image, in floats.
  std::int64_t start(const Side& side, std::int64_t channel, Order order) const {
    const std::int64_t apart = order == Order::plain ? side.pixels : side.width * pixel_vector;
    return first_image * side.channels * side.pixels + channel * apart;
  }

  void pack(std::int64_t channel) const {
    const Side& side = job.planes.in;
    band.pack_inputs(job.x + start(side, channel, job.x_order), side.channels * side.pixels, images, job.x_order,
                     in + channel * job.planes.in_pitch() * pixel_vector);
  }
  void multiply_part(std::int64_t part) const {
    with_tile(job.planes.tile, [&](auto count) {
      const PixelTile<count> tile{job.planes.out_pitch() * pixel_vector};
      for (std::int64_t t = 0; t < job.planes.tiles(number); ++t)
        multiply(tile, job.walk, job.words, part, in + job.planes.in_step(t) * pixel_vector, out + job.planes.out_step(t) * pixel_vector);
    });
  }
  void unpack(std::int64_t channel) const {
    const Side& side = job.planes.out;
    const std::int64_t to = start(side, channel, job.y_order);
    with(job.activation, [&](auto activation) {
      const Finish<activation> finish{job.bias ? job.bias[channel] : 0.0f, job.carried ? job.carried + to : nullptr};
      band.unpack(out + channel * side.phases() * job.planes.out_pitch() * pixel_vector, finish, job.y + to,
                  side.channels * side.pixels, images, job.y_order);
    });
  }
};

template <class Planes>
void place_taps(const Planes& planes, std::int32_t* places) {
  for (std::int64_t k = 0; k < planes.matrix_columns(); ++k) places[k] = static_cast<std::int32_t>(planes.tap_place(k));
}

// `woven` has room for the words if they are not there yet, and for a place per matrix column behind them.
template <class Planes>
void run(const Job<Planes>& job, Weave weave, Word* woven, std::int32_t* places, int threads) {
  const Geometry& g = job.planes;
  const std::int64_t items = job.items(), alone = items - items % threads;
  float* shared = alone < items ? scratch<float>(Scratch::shared, job.buffer_size()) : nullptr;
  if (woven) place_taps(job.planes, places);

#pragma omp parallel num_threads(threads)
  {
    if (woven) {
#pragma omp for schedule(static)
      for (std::int64_t part = 0; part < job.walk.part_count; ++part) weave.part(job.walk, part, woven);
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (std::int64_t i = 0; i < alone; ++i) {
      float* buffer = scratch<float>(Scratch::own, job.buffer_size() + job.planes.chart_room());
      const Item<Planes> item(job, i, buffer, reinterpret_cast<std::int32_t*>(buffer + job.buffer_size()));
      for (std::int64_t channel = 0; channel < g.in.channels; ++channel) item.pack(channel);
      for (std::int64_t part = 0; part < job.walk.part_count; ++part) item.multiply_part(part);
      for (std::int64_t channel = 0; channel < g.out.channels; ++channel) item.unpack(channel);
      flush();
    }
    for (std::int64_t i = alone; i < items; ++i) {
      const Item<Planes> item(job, i, shared, scratch<std::int32_t>(Scratch::own, job.planes.chart_room()));
#pragma omp for schedule(static)
      for (std::int64_t channel = 0; channel < g.in.channels; ++channel) item.pack(channel);
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t part = 0; part < job.walk.part_count; ++part) item.multiply_part(part);
#pragma omp for schedule(static)
      for (std::int64_t channel = 0; channel < g.out.channels; ++channel) item.unpack(channel);
    }
    flush();
  }
}

}  // namespace

// x and y are contiguous [images][channels][height][width], or blocked (grouped.h) where the geometry is grouped; carried is in the order
// of y. The rows of the matrix are (output channel, its phases), its columns (input channel, taps). bias and carried may be 0. Words
// woven before, or values [kept] that are woven first; permutation as in `Weave`.
KERNEL(sparse_conv, Address x, Address y, std::int64_t images, Address geometry, Address words_, Address values, Address permutation,
       Address bias, Address carried, int activation, bool x_blocked, bool y_blocked, Address column, std::int64_t kept, Address runs,
       Address buckets, Address parts, std::int64_t part_count, std::int64_t block_count, int threads) {
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  const Geometry g = *at<const Geometry>(geometry);
  const std::int64_t length = stream_length(kept, part_count);
  Word* woven = words_ ? nullptr : scratch<Word>(Scratch::weights, length + (g.matrix_columns() + 1) / 2);
  auto* places = woven ? reinterpret_cast<std::int32_t*>(woven + length) : nullptr;
  const Word* words = words_ ? at<const Word>(words_) : woven;
  const Weave weave{at<const std::int32_t>(column), at<const float>(values), at<const std::int32_t>(permutation), kept, places};
  const bool past_caches = !carried && images * g.out.channels * g.out.pixels * std::int64_t{4} > large_bytes;
  const Order y_order = !y_blocked ? Order::plain : past_caches ? Order::blocked_past_caches : Order::blocked;
  const auto go = [&](auto planes) {
    const Job<decltype(planes)> job{
        at<const float>(x), at<float>(y), at<const float>(bias), at<const float>(carried), static_cast<Activation>(activation),
        x_blocked ? Order::blocked : Order::plain, y_order, images, planes, walk, words};
    run(job, weave, woven, places, threads);
  };
  if (g.grouped) go(Grouped{g});
  else go(Strips{g});
}

// The weight stream of `values` [kept] for one geometry, as sparse_conv reads it: words [stream_length]. places: one for each
// matrix column, overwritten.
KERNEL(weave_conv, Address geometry, Address values, Address words, Address places_, Address column, std::int64_t kept, Address runs,
       Address buckets, Address parts, std::int64_t part_count, std::int64_t block_count) {
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  const Geometry g = *at<const Geometry>(geometry);
  auto* places = at<std::int32_t>(places_);
  if (g.grouped) place_taps(Grouped{g}, places);
  else place_taps(Strips{g}, places);
  const Weave weave{at<const std::int32_t>(column), at<const float>(values), nullptr, kept, places};
  for (std::int64_t part = 0; part < part_count; ++part) weave.part(walk, part, at<Word>(words));
}

}  // namespace openwork::OPENWORK_LEVEL
