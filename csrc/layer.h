// A whole layer, by tiles: the inputs of a tile of the batch, times the weights, with bias and activation.
//
// Activations are row-major, as PyTorch holds them, or tiles [ceil(batch / 64)][features][64], as a chain of sparse layers hands
// them on. Row-major ones are packed and unpacked by the thread that computes with them, while they are in its cache.
//
// As many tiles as can be dealt out evenly go whole to one thread each, always the same one, so that the next layer finds them in
// its cache; the team shares each of the others by rows, so that a small batch keeps all threads busy too.
#pragma once
#include <type_traits>

#include "scratch.h"
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Rows of a packed output tile are a multiple of this, so a group of rows that sticks out at the end has a place to go.
constexpr std::int64_t row_alignment = 16;

struct Layer {
  const float* x;  // [batch][inputs], or tiles
  float* y;        // [batch][outputs], or tiles
  std::int64_t batch, inputs, outputs;
  const float* bias;  // may be null
  Activation activation;
  const std::int32_t* parts;  // [part_count + 1] first rows, multiples of row_alignment except the last, which is `outputs`
  std::int64_t part_count;
  std::int64_t part_stride = 1;  // integers from one first row to the next
  bool tiled_x = false, tiled_y = false;

  std::int64_t tiles() const { return (batch + tile_width - 1) / tile_width; }
  std::int64_t samples(std::int64_t tile) const { return smaller(tile_width, batch - tile * tile_width); }
  std::int64_t width(std::int64_t tile) const { return tiled_x || tiled_y ? tile_width : width_for(samples(tile)); }
  std::int64_t first_row(std::int64_t part) const { return parts[part * part_stride]; }

  // Behind the inputs of a packed tile stands one more, always zero, for entries that only fill up a step. A tile that comes from
  // outside has none: kernels with such entries take row-major inputs.
  std::int64_t packed_inputs() const { return tiled_x ? 0 : inputs + 1; }
  std::int64_t packed_outputs() const { return tiled_y ? 0 : (outputs + row_alignment - 1) / row_alignment * row_alignment; }
  std::int64_t packed_features() const { return packed_inputs() + packed_outputs(); }

  // Where the inputs and outputs of a tile are, given the buffer that they are packed in.
  const float* inputs_of(std::int64_t tile, const float* packed) const {
    return tiled_x ? x + tile * tile_width * inputs : packed;
  }
  float* outputs_of(std::int64_t tile, float* packed) const {
    return tiled_y ? y + tile * tile_width * outputs : packed + packed_inputs() * width(tile);
  }

  void pack_features(std::int64_t tile, std::int64_t begin, std::int64_t end, float* to) const {
    const std::int64_t wide = width(tile);
    pack(x + tile * tile_width * inputs, inputs, samples(tile), begin, end, to, wide);
    if (end == inputs)
      for (std::int64_t i = 0; i < wide; i += lanes) store(to + inputs * wide + i, Vec{});
  }
  void deliver(std::int64_t tile, std::int64_t begin, std::int64_t end, float* from) const {
    with(activation, [&](auto a) {
      if (tiled_y) finish<a>(from, tile_width, bias, begin, end);
      else unpack<a>(from, width(tile), bias, begin, end, y + tile * tile_width * outputs, outputs, samples(tile));
    });
  }
};

// Calls body with the width of a tile as a compile-time constant.
template <class Body>
OPENWORK_INLINE void with_width(std::int64_t width, Body body) {
  if (width == 64) body(std::integral_constant<int, 64>{});
  else if (width == 32) body(std::integral_constant<int, 32>{});
  else body(std::integral_constant<int, 16>{});
}

// Tiles that go whole to one thread each; they come before the others.
OPENWORK_INLINE std::int64_t tiles_alone(std::int64_t tiles, int threads) { return tiles - tiles % threads; }

// Inside a parallel region: deals out the work on `tiles` tiles in `parts` parts. The threads do not wait for each other at the end.
template <class Whole, class Part>
OPENWORK_INLINE void deal(std::int64_t tiles, std::int64_t parts, int threads, Whole whole, Part part) {
  const std::int64_t alone = tiles_alone(tiles, threads), together = tiles - alone;
#pragma omp for schedule(static, 1) nowait
  for (std::int64_t tile = 0; tile < alone; ++tile) whole(tile);
#pragma omp for schedule(dynamic, 1) nowait
  for (std::int64_t i = 0; i < together * parts; ++i) part(alone + i % together, i / together);
}

// multiply(std::integral_constant<int, width>, part, x, y) overwrites the rows of the part in the tile y. prepare() is called by every
// thread of the team first, and what its loops write can be relied upon in multiply().
template <class Multiply, class Prepare>
OPENWORK_INLINE void run_layer(const Layer& layer, int threads, Multiply multiply, Prepare prepare) {
  const std::int64_t tiles = layer.tiles(), alone = tiles_alone(tiles, threads);
  const std::int64_t pieces = layer.tiled_x ? 0 : larger(1, (layer.inputs + feature_piece - 1) / feature_piece);
  const std::int64_t stride = layer.packed_features() * tile_width;
  float* shared = tiles > alone ? scratch<float>(Scratch::shared, (tiles - alone) * stride) : nullptr;

#pragma omp parallel num_threads(threads)
  {
    prepare();
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < (tiles - alone) * pieces; ++i) {
      const std::int64_t tile = i / pieces, begin = i % pieces * feature_piece;
      layer.pack_features(alone + tile, begin, smaller(layer.inputs, begin + feature_piece), shared + tile * stride);
    }
    const auto whole = [&](std::int64_t tile) {
      float* packed = scratch<float>(Scratch::own, stride);
      if (!layer.tiled_x) layer.pack_features(tile, 0, layer.inputs, packed);
      const float* in = layer.inputs_of(tile, packed);
      float* out = layer.outputs_of(tile, packed);
      for (std::int64_t part = 0; part < layer.part_count; ++part)
        with_width(layer.width(tile), [&](auto width) { multiply(width, part, in, out); });
      layer.deliver(tile, 0, layer.outputs, out);
    };
    deal(tiles, layer.part_count, threads, whole, [&](std::int64_t tile, std::int64_t part) {
      float* packed = shared + (tile - alone) * stride;
      float* out = layer.outputs_of(tile, packed);
      with_width(layer.width(tile), [&](auto width) { multiply(width, part, layer.inputs_of(tile, packed), out); });
      layer.deliver(tile, layer.first_row(part), layer.first_row(part + 1), out);
    });
  }
}

template <class Multiply>
OPENWORK_INLINE void run_layer(const Layer& layer, int threads, Multiply multiply) {
  run_layer(layer, threads, multiply, [] {});
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
