// A whole layer on PyTorch's row-major activations: a tile of the batch is packed, multiplied, and unpacked with bias and
// activation, by one thread while it is in its cache.
//
// As many tiles as can be dealt out evenly go whole to one thread each; the team shares each of the others by rows, so that a
// small batch keeps all threads busy too.
#pragma once
#include <type_traits>

#include "scratch.h"
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Rows of a packed output tile are a multiple of this, so a group of rows that sticks out at the end has a place to go.
constexpr std::int64_t row_alignment = 16;

// Features packed as one piece of work.
constexpr std::int64_t layer_piece = 64;

struct Layer {
  const float* x;  // [batch][inputs]
  float* y;        // [batch][outputs]
  std::int64_t batch, inputs, outputs;
  const float* bias;  // may be null
  Activation activation;
  const std::int32_t* parts;  // [part_count + 1] first rows, multiples of row_alignment except the last, which is `outputs`
  std::int64_t part_count;

  std::int64_t samples(std::int64_t tile) const { return smaller(tile_width, batch - tile * tile_width); }
  std::int64_t width(std::int64_t tile) const { return width_for(samples(tile)); }

  // Behind the inputs of a packed tile stands one more, always zero, for entries that only fill up a step.
  std::int64_t packed_inputs() const { return inputs + 1; }
  std::int64_t packed_features() const {
    return packed_inputs() + (outputs + row_alignment - 1) / row_alignment * row_alignment;
  }

  void pack_features(std::int64_t tile, std::int64_t begin, std::int64_t end, float* to) const {
    const std::int64_t wide = width(tile);
    pack(x + tile * tile_width * inputs, inputs, samples(tile), begin, end, to, wide);
    if (end == inputs)
      for (std::int64_t i = 0; i < wide; i += lanes) store(to + inputs * wide + i, Vec{});
  }
  void deliver(std::int64_t tile, std::int64_t begin, std::int64_t end, const float* from) const {
    with(activation, [&](auto a) {
      unpack<a>(from, width(tile), bias, begin, end, y + tile * tile_width * outputs, outputs, samples(tile));
    });
  }
};

// multiply(std::integral_constant<int, width>, part, x, y) overwrites the rows of the part in the packed tile y.
template <class Multiply>
OPENWORK_INLINE void run_layer(const Layer& layer, int threads, Multiply multiply) {
  const auto multiply_part = [&](std::int64_t tile, std::int64_t part, const float* x, float* y) {
    const std::int64_t width = layer.width(tile);
    if (width == 64) multiply(std::integral_constant<int, 64>{}, part, x, y);
    else if (width == 32) multiply(std::integral_constant<int, 32>{}, part, x, y);
    else multiply(std::integral_constant<int, 16>{}, part, x, y);
  };
  const std::int64_t tiles = (layer.batch + tile_width - 1) / tile_width;
  const std::int64_t alone = tiles - tiles % threads, together = tiles - alone;
  const std::int64_t pieces = larger(1, (layer.inputs + layer_piece - 1) / layer_piece);
  const std::int64_t stride = layer.packed_features() * tile_width;
  float* shared = together ? scratch<float>(Scratch::shared, together * stride) : nullptr;

#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < together * pieces; ++i) {
      const std::int64_t tile = i / pieces, begin = i % pieces * layer_piece;
      layer.pack_features(alone + tile, begin, smaller(layer.inputs, begin + layer_piece), shared + tile * stride);
    }

#pragma omp for schedule(dynamic, 1) nowait
    for (std::int64_t tile = 0; tile < alone; ++tile) {
      float* in = scratch<float>(Scratch::own, stride);
      float* out = in + layer.packed_inputs() * layer.width(tile);
      layer.pack_features(tile, 0, layer.inputs, in);
      for (std::int64_t part = 0; part < layer.part_count; ++part) multiply_part(tile, part, in, out);
      layer.deliver(tile, 0, layer.outputs, out);
    }

#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < together * layer.part_count; ++i) {
      const std::int64_t tile = i % together, part = i / together;
      float* in = shared + tile * stride;
      float* out = in + layer.packed_inputs() * layer.width(alone + tile);
      multiply_part(alone + tile, part, in, out);
      layer.deliver(alone + tile, layer.parts[part], layer.parts[part + 1], out);
    }
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
