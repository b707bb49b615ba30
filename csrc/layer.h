// A whole layer, by tiles: the inputs of a tile of the batch, times the weights, with bias and activation.
//
// Activations are row-major, as PyTorch holds them, or tiles [ceil(batch / 64)][features][64], as a chain of sparse layers hands
// them on. Row-major ones are packed and unpacked by the thread that computes with them, while they are in its cache.
//
// As many tiles as can be dealt out evenly go whole to one thread each; the team shares each of the others by rows, so that a small
// batch keeps all threads busy too. What one thread wrote and another reads has to travel between their caches, which takes longer
// than the product where cores share no cache: so whole tiles go to the threads in order, the same ones in every layer, and of weights
// that are woven in this very call each thread weaves for itself what it computes with. That is all of them if it gets whole tiles;
// where this would be too much work for too few tiles, each thread computes the rows that it wove, in every tile.
#pragma once
#include <cstddef>
#include <type_traits>

#include "scratch.h"
#include "stream.h"
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

// Words that the threads of a team hold for themselves, 8 megabytes in all: more weights than that are not woven by each.
constexpr std::int64_t most_own_words = 1 << 20;

// How the work on tiles is dealt out to the threads of a team: the first `alone` tiles go whole to one thread each, the others by
// parts.
struct Shares {
  std::int64_t tiles, parts, alone;
  bool fixed;  // part p of every tile is computed by the thread that a static schedule gives it to
  bool many;   // weights, for each thread to weave them all

  // freshly_woven: weights that are woven in the same call; may_fix: for these tiles only.
  static Shares of(std::int64_t tiles, std::int64_t parts, int threads, std::int64_t freshly_woven = 0, bool may_fix = true) {
    constexpr std::int64_t few_tiles = 8;
    const bool many = freshly_woven * threads > most_own_words;
    const bool fixed = may_fix && (tiles < threads || (many && tiles <= few_tiles)) && parts >= threads;
    return {tiles, parts, fixed ? 0 : tiles - tiles % threads, fixed, many};
  }

  // Inside a parallel region. The threads do not wait for each other at the end.
  template <class Whole, class OfPart>
  OPENWORK_INLINE void deal(Whole whole, OfPart of_part) const {
    if (fixed) {
#pragma omp for schedule(static, 1) nowait
      for (std::int64_t part = 0; part < parts; ++part)
        for (std::int64_t tile = 0; tile < tiles; ++tile) of_part(tile, part);
      return;
    }
    const std::int64_t together = tiles - alone;
#pragma omp for schedule(static) nowait
    for (std::int64_t tile = 0; tile < alone; ++tile) whole(tile);
#pragma omp for schedule(dynamic, 1) nowait
    for (std::int64_t i = 0; i < together * parts; ++i) of_part(alone + i % together, i / together);
  }
};

// The stream of weights that a call weaves, as the threads need it to take their shares.
struct Woven {
  std::int64_t length;
  Shares shares;
  Word* of_team;  // many weights for whole tiles: woven together

  static Woven of(std::int64_t kept, const Shares& shares) {
    const std::int64_t length = stream_length(kept, shares.parts);
    return {length, shares, shares.many && !shares.fixed ? scratch<Word>(Scratch::weights, length) : nullptr};
  }

  // In each thread: the words, once weave(part, words) has been called for every part that it computes. What the team weaves is
  // whole behind the next barrier only.
  template <class WeavePart>
  OPENWORK_INLINE const Word* in_thread(WeavePart weave) const {
    Word* words = of_team ? of_team : scratch<Word>(Scratch::weights, length);
    if (of_team || shares.fixed) {
#pragma omp for schedule(static, 1) nowait
      for (std::int64_t part = 0; part < shares.parts; ++part) weave(part, words);
    } else {
      for (std::int64_t part = 0; part < shares.parts; ++part) weave(part, words);
    }
    return words;
  }
};

// multiply(std::integral_constant<int, width>, part, words, x, y) overwrites the rows of the part in the tile y; `words` is what
// weights() returned in this thread, which every thread calls before anything else.
template <class Multiply, class Weights>
OPENWORK_INLINE void run_layer(const Layer& layer, const Shares& shares, int threads, Multiply multiply, Weights weights) {
  const std::int64_t alone = shares.alone, together = shares.tiles - alone;
  const std::int64_t pieces = layer.tiled_x ? 0 : larger(1, (layer.inputs + feature_piece - 1) / feature_piece);
  const std::int64_t stride = layer.packed_features() * tile_width;
  float* shared = together ? scratch<float>(Scratch::shared, together * stride) : nullptr;

#pragma omp parallel num_threads(threads)
  {
    const auto words = weights();
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < together * pieces; ++i) {
      const std::int64_t tile = i / pieces, begin = i % pieces * feature_piece;
      layer.pack_features(alone + tile, begin, smaller(layer.inputs, begin + feature_piece), shared + tile * stride);
    }
    const auto whole = [&](std::int64_t tile) {
      float* packed = scratch<float>(Scratch::own, stride);
      if (!layer.tiled_x) layer.pack_features(tile, 0, layer.inputs, packed);
      const float* in = layer.inputs_of(tile, packed);
      float* out = layer.outputs_of(tile, packed);
      for (std::int64_t part = 0; part < layer.part_count; ++part)
        with_width(layer.width(tile), [&](auto width) { multiply(width, part, words, in, out); });
      layer.deliver(tile, 0, layer.outputs, out);
    };
    shares.deal(whole, [&](std::int64_t tile, std::int64_t part) {
      float* packed = shared + (tile - alone) * stride;
      float* out = layer.outputs_of(tile, packed);
      with_width(layer.width(tile), [&](auto width) { multiply(width, part, words, layer.inputs_of(tile, packed), out); });
      layer.deliver(tile, layer.first_row(part), layer.first_row(part + 1), out);
    });
  }
}

// The same with weights that are there already: multiply(width, part, x, y).
template <class Multiply>
OPENWORK_INLINE void run_layer(const Layer& layer, int threads, Multiply multiply) {
  run_layer(
      layer, Shares::of(layer.tiles(), layer.part_count, threads), threads,
      [&](auto width, std::int64_t part, std::nullptr_t, const float* x, float* y) { multiply(width, part, x, y); },
      [] { return nullptr; });
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
