// A convolution band by band: a thread packs the inputs of its band, multiplies tile by tile, and unpacks the outputs, all in buffers of
// its own. Bands that cannot be dealt out evenly are shared by parts of the matrix.
//
// How the weights are held, a kernel says with a type:
//
//   part_count                          parts that threads compute by themselves
//   row_alignment                       rows come in so many at a time: a last group may need room for rows that the matrix does not have
//   multiply(tile, part, inputs, sums)  the rows of a part, for one PixelTile
#pragma once
#include "grouped.h"
#include "scratch.h"
#include "strips.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Outputs of more bytes are written past the caches: little of them would be there when they are read.
constexpr std::int64_t large_bytes = 16 << 20;

// What a convolution reads and writes besides its weights: contiguous [images][channels][height][width], or blocked (grouped.h) where the
// geometry is grouped. bias and carried, in the order of y, may be null.
struct Images {
  const float* x;
  float* y;
  const float* bias;
  const float* carried;
  Activation activation;
  Order x_order, y_order;
  std::int64_t count;

  static Images of(Address x, Address y, Address bias, Address carried, int activation, bool x_blocked, bool y_blocked,
                   std::int64_t count, const Geometry& g) {
    const bool past_caches = !carried && count * g.out.channels * g.out.pixels * std::int64_t{4} > large_bytes;
    const Order y_order = !y_blocked ? Order::plain : past_caches ? Order::blocked_past_caches : Order::blocked;
    return {at<const float>(x), at<float>(y), at<const float>(bias), at<const float>(carried), static_cast<Activation>(activation),
            x_blocked ? Order::blocked : Order::plain, y_order, count};
  }
};

template <class Planes, class Weights>
struct Job : Images {
  Planes planes;
  Weights weights;

  Job(const Images& images, const Planes& planes, const Weights& weights) : Images(images), planes(planes), weights(weights) {}

  std::int64_t out_rows() const {
    constexpr std::int64_t unit = Weights::row_alignment;
    return (planes.out.channels * planes.out.phases() + unit - 1) / unit * unit;
  }
  // Whether sums are made where the outputs go. Not if something is carried: it may lie there.
  bool writes_in_place() const {
    const bool at_line = reinterpret_cast<Address>(y) % (pixel_vector * sizeof(float)) == 0;
    return !Planes::packs && !carried && at_line && out_rows() == planes.out.channels;
  }
  std::int64_t out_apart() const { return writes_in_place() ? planes.out.pixels : planes.out_pitch() * pixel_vector; }
  std::int64_t out_size() const { return out_rows() * planes.out_pitch() * pixel_vector; }
  std::int64_t buffer_size() const { return planes.in_size() + out_size(); }
  std::int64_t items() const { return (count + Planes::images_together - 1) / Planes::images_together * planes.bands(); }
};

// A band of some images, in a buffer of buffer_size floats; `memory` has room for its charts.
template <class Planes, class Weights>
struct Item {
  const Job<Planes, Weights>& job;
  std::int64_t first_image, images, number;
  const float* in;
  float *copy, *out;  // of the inputs; sums
  typename Planes::Band band;

  Item(const Job<Planes, Weights>& job, std::int64_t index, float* buffer, std::int32_t* memory)
      : job(job), first_image(index / job.planes.bands() * Planes::images_together),
        images(smaller(Planes::images_together, job.count - first_image)), number(index % job.planes.bands()), in(buffer),
        copy(buffer), out(buffer + job.planes.in_size()), band(job.planes, number, memory) {
    if constexpr (!Planes::packs) {
      const std::int64_t pixel = number * job.planes.band * job.planes.row_floats();
      in = job.x + start(job.planes.in, 0, Order::plain) + pixel;
      if (job.writes_in_place()) out = job.y + start(job.planes.out, 0, Order::plain) + pixel;
    }
  }

  // Of a channel of the first image, in floats.
  std::int64_t start(const Side& side, std::int64_t channel, Order order) const {
    const std::int64_t apart = order == Order::plain ? side.pixels : side.width * pixel_vector;
    return first_image * side.channels * side.pixels + channel * apart;
  }

  void pack(std::int64_t channel) const {
    if constexpr (!Planes::packs) return;
    const Side& side = job.planes.in;
    band.pack_inputs(job.x + start(side, channel, job.x_order), side.channels * side.pixels, images, job.x_order,
                     copy + channel * job.planes.in_pitch() * pixel_vector);
  }
  void multiply_part(std::int64_t part) const {
    with_tile(job.planes.tile, [&](auto count) {
      const PixelTile<count> tile{job.out_apart()};
      for (std::int64_t t = 0; t < job.planes.tiles(number); ++t)
        job.weights.multiply(tile, part, in + job.planes.in_step(t) * pixel_vector, out + job.planes.out_step(t) * pixel_vector);
    });
  }
  void unpack(std::int64_t channel) const {
    const Side& side = job.planes.out;
    const std::int64_t to = start(side, channel, job.y_order);
    with(job.activation, [&](auto activation) {
      const Finish<activation> finish{job.bias ? job.bias[channel] : 0.0f, job.carried ? job.carried + to : nullptr};
      band.unpack(out + channel * side.phases() * job.out_apart(), finish, job.y + to, side.channels * side.pixels, images, job.y_order);
    });
  }
};

// Where the inputs of each matrix column are, in vectors from those of the first.
template <class Planes>
void place_taps(const Planes& planes, std::int32_t* places) {
  for (std::int64_t k = 0; k < planes.matrix_columns(); ++k) places[k] = static_cast<std::int32_t>(planes.tap_place(k));
}

// Calls body with the planes that a geometry asks for.
template <class Body>
OPENWORK_INLINE void with_planes(const Geometry& g, Body body) {
  if (g.grouped) body(Grouped{g});
  else if (g.as_is) body(AsIs{{g}});
  else body(Strips{g});
}

// With as many bands as can be dealt out evenly, where that moves nothing that words or places point to.
OPENWORK_INLINE Geometry dealt(Geometry g, std::int64_t images, int threads) {
  if (g.as_is && images % threads) {
    const std::int64_t shares = (g.bands() + threads - 1) / threads * threads;
    g.band = (g.rows + shares - 1) / shares;
  }
  return g;
}

// prepare() is called by every thread first.
template <class Planes, class Weights, class Prepare>
void run(const Job<Planes, Weights>& job, Prepare prepare, int threads) {
  const Geometry& g = job.planes;
  const std::int64_t items = job.items(), alone = items - items % threads, parts = job.weights.part_count;
  float* shared = alone < items ? scratch<float>(Scratch::shared, job.buffer_size()) : nullptr;

#pragma omp parallel num_threads(threads)
  {
    prepare();
    // Contiguous shares: what a thread makes here, it reads itself in the next layer, whose bands are dealt out alike.
#pragma omp for schedule(static) nowait
    for (std::int64_t i = 0; i < alone; ++i) {
      float* buffer = scratch<float>(Scratch::own, job.buffer_size() + job.planes.chart_room());
      const Item<Planes, Weights> item(job, i, buffer, reinterpret_cast<std::int32_t*>(buffer + job.buffer_size()));
      for (std::int64_t channel = 0; channel < g.in.channels; ++channel) item.pack(channel);
      for (std::int64_t part = 0; part < parts; ++part) item.multiply_part(part);
      for (std::int64_t channel = 0; channel < g.out.channels; ++channel) item.unpack(channel);
      flush();
    }
    for (std::int64_t i = alone; i < items; ++i) {
      const Item<Planes, Weights> item(job, i, shared, scratch<std::int32_t>(Scratch::own, job.planes.chart_room()));
      if constexpr (Planes::packs) {
#pragma omp for schedule(static)
        for (std::int64_t channel = 0; channel < g.in.channels; ++channel) item.pack(channel);
      }
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t part = 0; part < parts; ++part) item.multiply_part(part);
#pragma omp for schedule(static)
      for (std::int64_t channel = 0; channel < g.out.channels; ++channel) item.unpack(channel);
    }
    flush();
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
