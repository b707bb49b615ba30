// Feature-major tiles: the activations of a batch tile as [feature][width] floats, `width` samples side by side.
//
// A vector then holds one feature of several samples, every load of the kernels is aligned, and nothing is gathered. Samples
// that the batch does not have are zeros when packed and are dropped when unpacked. PyTorch's [batch][feature] order is
// converted block by block in registers, a few samples from their first feature to their last: with all samples of a feature
// first, rows whose length is a power of two would push each other out of the cache.
#pragma once
#include "activation.h"
#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Samples per tile, except in the last one.
constexpr std::int64_t tile_width = 64;

// Features converted as one piece of work.
constexpr std::int64_t feature_piece = 64;

// The width of a tile that has to hold `samples` samples: narrow tiles keep small batches cheap.
OPENWORK_INLINE std::int64_t width_for(std::int64_t samples) { return samples > 32 ? 64 : samples > 16 ? 32 : 16; }

OPENWORK_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
OPENWORK_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// A value where its gate is open: gates are outputs of relu, which pass a gradient on where they are positive.
OPENWORK_INLINE Vec gated(Vec value, Vec gate) { return gate > 0.0f ? value : Vec{}; }

// Features [begin, end) of `samples` rows of x, whose rows are `stride` floats apart, into the tile. With gates, which lie as x does,
// only what they let through.
template <bool with_gate>
void pack(const float* x, const float* gate, std::int64_t stride, std::int64_t samples, std::int64_t begin, std::int64_t end,
          float* tile, std::int64_t width) {
  for (std::int64_t sample = 0; sample < width; sample += lanes) {
    for (std::int64_t feature = begin; feature < end; feature += lanes) {
      const std::int64_t features = smaller(lanes, end - feature), offset = sample * stride + feature;
      float* to = tile + feature * width + sample;
      Vec block[lanes];
      if (features == lanes && samples - sample >= lanes) {
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) {
          block[i] = load_unaligned(x + offset + i * stride);
          if constexpr (with_gate) block[i] = gated(block[i], load_unaligned(gate + offset + i * stride));
        }
        transpose(block);
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) store(to + i * width, block[i]);
      } else {
        for (int i = 0; i < lanes; ++i) {
          block[i] = sample + i < samples ? load_first(x + offset + i * stride, features) : Vec{};
          if constexpr (with_gate)
            if (sample + i < samples) block[i] = gated(block[i], load_first(gate + offset + i * stride, features));
        }
        transpose(block);
        for (int i = 0; i < features; ++i) store(to + i * width, block[i]);
      }
    }
  }
}
inline void pack(const float* x, std::int64_t stride, std::int64_t samples, std::int64_t begin, std::int64_t end, float* tile,
                 std::int64_t width) {
  pack<false>(x, nullptr, stride, samples, begin, end, tile, width);
}

// The same from one tile to another.
inline void pass(const float* from, const float* gate, std::int64_t begin, std::int64_t end, float* tile, std::int64_t width) {
  for (std::int64_t i = begin * width; i < end * width; i += lanes) store(tile + i, gated(load(from + i), load(gate + i)));
}

// Features [begin, end) of the tile, plus bias (may be null), through the activation, into `samples` rows of y.
template <Activation activation>
void unpack(const float* tile, std::int64_t width, const float* bias, std::int64_t begin, std::int64_t end, float* y,
            std::int64_t stride, std::int64_t samples) {
  for (std::int64_t sample = 0; sample < samples; sample += lanes) {
    for (std::int64_t feature = begin; feature < end; feature += lanes) {
      const std::int64_t features = smaller(lanes, end - feature);
      const float* from = tile + feature * width + sample;
      float* to = y + sample * stride + feature;
      const auto output = [&](int i) __attribute__((always_inline)) {
        const Vec v = load(from + i * width);
        return apply<activation>(bias ? v + broadcast(bias[feature + i]) : v);
      };
      Vec block[lanes];
      if (features == lanes && samples - sample >= lanes) {
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) block[i] = output(i);
        transpose(block);
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) store_unaligned(to + i * stride, block[i]);
      } else {
        for (int i = 0; i < lanes; ++i) block[i] = i < features ? output(i) : Vec{};
        transpose(block);
        for (int i = 0; i < lanes && sample + i < samples; ++i) store_first(to + i * stride, block[i], features);
      }
    }
  }
}

// The same without leaving the tile: bias and activation on features [begin, end).
template <Activation activation>
void finish(float* tile, std::int64_t width, const float* bias, std::int64_t begin, std::int64_t end) {
  if (activation == Activation::none && !bias) return;
  for (std::int64_t feature = begin; feature < end; ++feature) {
    const Vec b = broadcast(bias ? bias[feature] : 0.0f);
    for (std::int64_t sample = 0; sample < width; sample += lanes) {
      float* p = tile + feature * width + sample;
      store(p, apply<activation>(bias ? load(p) + b : load(p)));
    }
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
