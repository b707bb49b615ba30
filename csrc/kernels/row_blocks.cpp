// Y = activation(X W^T + bias) where `height` consecutive rows of W share one list of columns.
//
// An activation is loaded once for all of them: with four rows and more the multiply-adds, not the loads, are the limit, and a
// kept weight costs what it costs in a dense product. For a handful of samples and 16 rows the weights of an entry are vectors
// themselves, and each sample is one broadcast.
#include "groups.h"
#include "weight.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

template <class Weight>
struct RowBlocks {
  const std::int32_t* column;  // [entries]
  const Weight* weight;        // [entries][height]
  const std::int32_t* first;   // [blocks][groups] first entry, and the end of all
  std::int64_t block_count, group_count;
};

// Rows computed at once: 16 take two turns, for they would leave one vector each.
template <int height>
constexpr int turn = height < 8 ? height : 8;

template <int height, int width>
void multiply(const RowBlocks<float>& w, std::int64_t begin, std::int64_t end, const float* x, float* y) {
  constexpr int rows = turn<height>, vectors = strip_vectors<rows, width>;
  for (std::int64_t block = 0; block < w.block_count; ++block)
    for (std::int64_t group = begin; group < end; ++group) {
      const std::int32_t* first = w.first + block * w.group_count + group;
      if (first[0] == first[1] && block > 0) continue;
      for (int r = 0; r < height; r += rows)
        for (int s = 0; s < width; s += vectors * lanes) {
          float* out = y + (group * height + r) * width + s;
          Sums<rows, vectors> sums;
          sums.template begin<width>(out, block == 0);
          const float* weight = w.weight + static_cast<std::size_t>(first[0]) * height + r;
          for (std::int32_t e = first[0]; e < first[1]; ++e, weight += height) {
            prefetch(weight + weights_ahead);
            sums.template add<(1u << rows) - 1>(input_at<width>(x + s, w.column[e]), weight);
          }
          sums.template end<width>(out);
        }
    }
}

template <int height>
void run(const RowBlocks<float>& w, const Layer& layer, int threads) {
  run_layer(layer, threads, [&](auto width, std::int64_t part, const float* x, float* y) {
    multiply<height, width>(w, layer.parts[part] / height, (layer.parts[part + 1] + height - 1) / height, x, y);
  });
}

// `samples` samples and one group of 16 rows, straight from and to row-major activations. Entries are added in `chains` chains,
// because one would wait for itself.
template <Activation activation, int samples, class Weight>
void multiply_few(const RowBlocks<Weight>& w, const float* scales, std::int64_t group, const Layer& layer, std::int64_t sample) {
  constexpr int vectors = 16 / lanes, chains = accumulators / vectors / samples > 1 ? accumulators / vectors / samples : 1;
  const float* x = layer.x + sample * layer.inputs;
  Vec sum[chains][samples][vectors] = {};
  const auto add = [&](int chain, std::int32_t e) __attribute__((always_inline)) {
    const float* in = x + w.column[e];
    const Weight* weight = w.weight + static_cast<std::size_t>(e) * 16;
    OPENWORK_UNROLL
    for (int b = 0; b < samples; ++b) {
      const Vec input = broadcast(in[b * layer.inputs]);
      OPENWORK_UNROLL
      for (int j = 0; j < vectors; ++j) sum[chain][b][j] = input * weights(weight + j * lanes) + sum[chain][b][j];
    }
  };
  std::int32_t e = w.first[group];
  const std::int32_t end = w.first[group + 1];
  for (; e + chains <= end; e += chains) {
    OPENWORK_UNROLL
    for (int c = 0; c < chains; ++c) {
      prefetch(w.weight + static_cast<std::size_t>(e + c) * 16 + weights_ahead);
      add(c, e + c);
    }
  }
  for (; e < end; ++e) add(0, e);
  const std::int64_t row = group * 16, rows = smaller(16, layer.outputs - row);
  OPENWORK_UNROLL
  for (int b = 0; b < samples; ++b) {
    OPENWORK_UNROLL
    for (int j = 0; j < vectors; ++j) {
      const std::int64_t left = rows - j * lanes;
      if (left <= 0) break;
      Vec total = sum[0][b][j];
      OPENWORK_UNROLL
      for (int c = 1; c < chains; ++c) total += sum[c][b][j];
      if (scales) total = total * load_first(scales + row + j * lanes, left);
      if (layer.bias) total += load_first(layer.bias + row + j * lanes, left);
      store_first(layer.y + (sample + b) * layer.outputs + row + j * lanes, apply<activation>(total), left);
    }
  }
}

template <class Weight>
void run_few(const RowBlocks<Weight>& w, const float* scales, const Layer& layer, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t part = 0; part < layer.part_count; ++part)
    with(layer.activation, [&](auto a) {
      for (std::int64_t group = layer.parts[part] / 16; group * 16 < layer.parts[part + 1]; ++group) {
        std::int64_t sample = 0;
        for (; sample + 4 <= layer.batch; sample += 4) multiply_few<a, 4>(w, scales, group, layer, sample);
        for (; sample + 2 <= layer.batch; sample += 2) multiply_few<a, 2>(w, scales, group, layer, sample);
        for (; sample < layer.batch; ++sample) multiply_few<a, 1>(w, scales, group, layer, sample);
      }
    });
}

// Batches below this skip the tiles where the storage allows it.
constexpr std::int64_t few_samples = 12;

}  // namespace

// Weights are aligned to 64 bytes. height: 2, 4, 8 or 16. Narrow weights are for few samples: height 16, one block of columns.
// scales (of rows) may be 0.
KERNEL(row_blocks, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address bias,
       int activation, Address parts, std::int64_t part_count, int threads, int height, int precision, Address column,
       Address weight, Address first, Address scales, std::int64_t block_count, std::int64_t group_count) {
  const Layer layer{at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(bias),
                    static_cast<Activation>(activation), at<const std::int32_t>(parts), part_count};
  const auto few = [&](auto number) {
    using Weight = decltype(number);
    const RowBlocks<Weight> w{at<const std::int32_t>(column), at<const Weight>(weight), at<const std::int32_t>(first), block_count,
                              group_count};
    run_few(w, at<const float>(scales), layer, threads);
  };
  if (precision != static_cast<int>(Precision::float32) || (height == 16 && block_count == 1 && batch < few_samples))
    return with_weight(precision, few);
  const RowBlocks<float> w{at<const std::int32_t>(column), at<const float>(weight), at<const std::int32_t>(first), block_count,
                           group_count};
  if (height == 16) run<16>(w, layer, threads);
  else if (height == 8) run<8>(w, layer, threads);
  else if (height == 4) run<4>(w, layer, threads);
  else run<2>(w, layer, threads);
}

}  // namespace openwork::OPENWORK_LEVEL
