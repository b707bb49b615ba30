// Y = activation(X W^T + bias) where a row of W keeps some groups of 16 neighbouring inputs, each weight a code of a few bits.
//
// A weight is (number - zero) * scale, with one scale and zero for a group, and the number that a code stands for. For few samples
// the bytes are the time, as long as decoding is quick: a group becomes a vector of weights and feeds all samples of a piece. How
// codes lie in memory, and what they stand for, is a type of its own (kernels/group_int4.cpp, kernels/group_int8.cpp).
//
// With statistics of 16 bits, number * scale - zero * scale is one fused multiply-add of exact numbers (8 + 11 and 11 + 11 bits), so a
// weight has the bits of (number - zero) * scale rounded once, and is zero where the number is the zero. With those of 32 bits the
// products would not be exact, and the difference is taken first.
//
// An output is computed by one thread, in an order that depends on the level and, for many samples, on the width of the tile; not on
// the number of threads.
#pragma once
#include "layer.h"
#include "padded.h"
#include "scratch.h"
#include "shares.h"
#include "weight.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr int group_inputs = 16;

// Samples whose sums fit in the registers.
constexpr int most_samples = lanes == 16 ? 8 : lanes == 8 ? 4 : 2;

// Vectors that make a group, and sums of each sample that take turns, so that an addition need not wait for the one before.
constexpr int vectors = group_inputs / lanes, turns = lanes == 16 ? 2 : 1;

// How far the streams are fetched early, in groups.
constexpr int groups_ahead = 192;

// Weights from the numbers of a group, its scale, and the offset that Groups::prepare made of its zero.
template <class Statistic>
OPENWORK_INLINE Vec placed(Vec number, Vec scale, Vec offset) {
  if constexpr (std::is_same_v<Statistic, float>) return (number - offset) * scale;
  else return number * scale + offset;
}

template <class Codes, class Column, class Statistic>
struct Groups {
  const Column* column;        // [groups], in groups of inputs
  Codes codes;                 // of [groups]
  const Statistic* scale;      // [groups]
  const Statistic* zero;       // [groups]
  const std::int64_t* end;     // [rows + 1]: row r has the groups from end[r] to end[r + 1]

  // Scales and offsets (see placed) of the groups [begin, stop). Long before they are used one by one: a narrow load
  // right after a wide store waits for it.
  void prepare(std::int64_t begin, std::int64_t stop, float* scales, float* offsets) const {
    for (std::int64_t g = begin; g < stop; g += lanes) {
      const Vec factor = weights(scale + g);
      store_unaligned(scales + (g - begin), factor);
      const Vec of_zero = weights(zero + g);
      store_unaligned(offsets + (g - begin), std::is_same_v<Statistic, float> ? of_zero : -(of_zero * factor));
      prefetch(scale + g + groups_ahead);
      prefetch(zero + g + groups_ahead);
      prefetch(column + g + groups_ahead);
    }
  }

  // The weights of group g.
  OPENWORK_INLINE void decoded(std::int64_t g, float scale, float offset, float* to) const {
    Vec number[vectors];
    codes.decode(g, number);
    OPENWORK_UNROLL
    for (int v = 0; v < vectors; ++v) store(to + v * lanes, placed<Statistic>(number[v], broadcast(scale), broadcast(offset)));
  }

  // Products of row r, still to be added up across the lanes. scales, offsets: of its first group and on. x: the samples,
  // `stride` floats apart, in whole groups.
  template <int samples>
  OPENWORK_INLINE void multiply(std::int64_t r, const float* scales, const float* offsets, const float* x, std::int64_t stride,
                                Vec (&total)[samples]) const {
    Vec sum[samples][turns][vectors] = {};
    const std::int64_t begin = end[r], stop = end[r + 1];
    const auto add = [&](int turn, std::int64_t g) __attribute__((always_inline)) {
      Vec weight[vectors];
      codes.decode(g, weight);
      const Vec factor = broadcast(scales[g - begin]), offset = broadcast(offsets[g - begin]);
      OPENWORK_UNROLL
      for (int v = 0; v < vectors; ++v) weight[v] = placed<Statistic>(weight[v], factor, offset);
      const float* in = x + static_cast<std::size_t>(column[g]) * group_inputs;
      OPENWORK_UNROLL
      for (int s = 0; s < samples; ++s) {
        OPENWORK_UNROLL
        for (int v = 0; v < vectors; ++v)
          sum[s][turn][v] = weight[v] * load_unaligned(in + s * stride + v * lanes) + sum[s][turn][v];
      }
    };
    std::int64_t g = begin;
    for (; g + turns <= stop; g += turns) {
      codes.fetch(g + groups_ahead);
      OPENWORK_UNROLL
      for (int turn = 0; turn < turns; ++turn) add(turn, g + turn);
    }
    if (g < stop) add(0, g);
    OPENWORK_UNROLL
    for (int s = 0; s < samples; ++s) {
      total[s] = sum[s][0][0];
      OPENWORK_UNROLL
      for (int k = 1; k < turns * vectors; ++k) total[s] += sum[s][k / vectors][k % vectors];
    }
  }
};

struct Job {
  const float* x;
  float* y;
  std::int64_t batch, inputs, outputs;
  const float* bias;
  Activation activation;
  int threads;

  // Rows [first, first + lanes) for `samples` samples.
  template <int samples, class Weight>
  void rows(const Weight& weight, std::int64_t first, const float* scales, const float* offsets, const float* in,
            std::int64_t stride, float* out) const {
    const std::int64_t count = smaller(lanes, outputs - first);
    Vec sum[samples][lanes];
    for (int i = 0; i < lanes; ++i) {
      Vec total[samples] = {};
      if (i < count) {
        const std::int64_t before = weight.end[first + i] - weight.end[first];
        weight.template multiply<samples>(first + i, scales + before, offsets + before, in, stride, total);
      }
      OPENWORK_UNROLL
      for (int s = 0; s < samples; ++s) sum[s][i] = total[s];
    }
    const Vec offset = bias ? load_first(bias + first, count) : Vec{};
    with(activation, [&](auto a) __attribute__((always_inline)) {
      for (int s = 0; s < samples; ++s) {
        const Vec v = sums(sum[s]);
        store_first(out + s * outputs + first, apply<a>(bias ? v + offset : v), count);
      }
    });
  }

  template <class Weight>
  void run(const Weight& weight) const {
    const Padded padded = Padded::of(x, batch, inputs, group_inputs);
#pragma omp parallel num_threads(threads)
    {
      padded.fill();
#pragma omp for schedule(static, 1)
      for (int share = 0; share < threads; ++share) {
        const auto boundary = [&](int s) {
          return s == threads ? outputs : share_begin(weight.end, outputs, 2, s, threads) / lanes * lanes;
        };
        const std::int64_t last = boundary(share + 1);
        for (std::int64_t first = boundary(share); first < last; first += lanes) {
          const std::int64_t begin = weight.end[first], stop = weight.end[smaller(first + lanes, outputs)];
          float* scales = scratch<float>(Scratch::own, 2 * (stop - begin + lanes));
          float* offsets = scales + (stop - begin + lanes);
          weight.prepare(begin, stop, scales, offsets);
          in_portions<most_samples>(batch, [&](auto samples, std::int64_t s) __attribute__((always_inline)) {
            rows<samples>(weight, first, scales, offsets, padded.sample(s), padded.stride, y + s * outputs);
          });
        }
      }
    }
  }
};

// For larger batches: samples side by side in a tile, weights decoded once for all of them. Columns are taken a block at a time,
// whose inputs stay in the first-level cache; each row remembers how far it is.
constexpr std::int64_t few_samples = 12;

template <int width>
struct Tile {
  static constexpr int strip = width / lanes < 4 ? width / lanes : 4;          // vectors of a row computed at once
  static constexpr int chains = 8 / strip;                                     // sums of each that take turns
  static constexpr std::int64_t block = 6 * tile_width / width;                // groups of inputs
  static constexpr std::int64_t decoded = (block + lanes) / lanes * lanes;     // room for as many, and what is read beyond

  // Rows [begin, end) of y = W x, overwritten.
  template <class Weight>
  static void multiply(const Weight& weight, std::int64_t begin, std::int64_t end, std::int64_t inputs, const float* x, float* y) {
    std::int64_t* next = scratch<std::int64_t>(Scratch::weights, end - begin);
    for (std::int64_t r = begin; r < end; ++r) next[r - begin] = weight.end[r];
    alignas(64) float numbers[block * group_inputs], scales[decoded], offsets[decoded];
    std::int64_t behind = block;  // the first group of inputs that is not in this block
    do {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::int64_t first = next[r - begin], stop = weight.end[r + 1];
        std::int64_t g = first;
        while (g < stop && static_cast<std::int64_t>(weight.column[g]) < behind) ++g;
        if (g == first && behind > block) continue;
        next[r - begin] = g;
        weight.prepare(first, g, scales, offsets);
        for (std::int64_t i = first; i < g; ++i) weight.decoded(i, scales[i - first], offsets[i - first], numbers + (i - first) * group_inputs);
        for (int s = 0; s < width; s += strip * lanes)
          add(weight.column + first, g - first, numbers, inputs, x + s, y + r * width + s, behind == block);
      }
      behind += block;
    } while ((behind - block) * group_inputs < inputs);
  }

  // Adds the products of `count` groups to a strip of a row, or begins with them.
  template <class Column>
  static void add(const Column* column, std::int64_t count, const float* number, std::int64_t inputs, const float* x, float* y,
                  bool begins) {
    Vec sum[chains][strip] = {};
    if (!begins)
      for (int j = 0; j < strip; ++j) sum[0][j] = load(y + j * lanes);
    const auto product = [&](int i, const float* in) __attribute__((always_inline)) {
      const Vec w = broadcast(number[i]);
      OPENWORK_UNROLL
      for (int j = 0; j < strip; ++j) sum[i % chains][j] = w * load(in + i * width + j * lanes) + sum[i % chains][j];
    };
    for (std::int64_t k = 0; k < count; ++k, number += group_inputs) {
      const std::int64_t from = static_cast<std::int64_t>(column[k]) * group_inputs;
      const float* in = x + from * width;
      if (from + group_inputs <= inputs) {
        OPENWORK_UNROLL
        for (int i = 0; i < group_inputs; ++i) product(i, in);
      } else {
        for (int i = 0; i < group_inputs && from + i < inputs; ++i) {
          const Vec w = broadcast(number[i]);
          for (int j = 0; j < strip; ++j) sum[0][j] = w * load(in + i * width + j * lanes) + sum[0][j];
        }
      }
    }
    for (int j = 0; j < strip; ++j) {
      for (int c = 1; c < chains; ++c) sum[0][j] += sum[c][j];
      store(y + j * lanes, sum[0][j]);
    }
  }
};

template <class Weight>
void run_tiles(const Weight& weight, const Job& job) {
  constexpr int most_parts = 256;
  std::int32_t rows[most_parts + 1];
  const int parts = job.threads < most_parts ? job.threads : most_parts;
  for (int p = 0; p <= parts; ++p) {
    const std::int64_t first = share_begin(weight.end, job.outputs, 2, p, parts);
    rows[p] = static_cast<std::int32_t>(p == parts ? job.outputs : first / row_alignment * row_alignment);
  }
  const Layer layer{job.x, job.y, job.batch, job.inputs, job.outputs, job.bias, job.activation, rows, parts};
  run_layer(layer, job.threads, [&](auto width, std::int64_t part, const float* x, float* y) {
    Tile<width>::multiply(weight, rows[part], rows[part + 1], job.inputs, x, y);
  });
}

// The statistics of openwork.kernels.code_groups.STATISTIC_DTYPES, in their order.
template <class Body>
OPENWORK_INLINE void with_statistic(int statistic, Body body) {
  if (statistic == 0) body(Half{});
  else if (statistic == 1) body(BFloat16{});
  else body(float{});
}

// Few samples one by one, more in tiles. Columns are 16 bits wide or, if `wide`, 32. Behind the last group lie 16 more statistics
// that may be read.
template <class Codes>
OPENWORK_INLINE void run_groups(const Job& job, Codes codes, Address columns, Address scales, Address zeros, Address ends, bool wide,
                                int statistic) {
  with_statistic(statistic, [&](auto kind) {
    using Statistic = decltype(kind);
    const auto run = [&](auto column) {
      using Column = decltype(column);
      const Groups<Codes, Column, Statistic> weight{at<const Column>(columns), codes, at<const Statistic>(scales),
                                                    at<const Statistic>(zeros), at<const std::int64_t>(ends)};
      if (job.batch < few_samples) job.run(weight);
      else run_tiles(weight, job);
    };
    if (wide) run(std::int32_t{});
    else run(std::uint16_t{});
  });
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
