// Y = activation(X W^T + bias) with a sparse W in CSR, weights and inputs bfloat16, two nonzeros at a time.
//
// The dot instruction adds two products of neighbouring bfloat16 numbers to a float32 sum. A step takes two nonzeros of a row: the
// inputs of both columns are interleaved, so that the two of one sample become neighbours, and meet the pair of weights in every
// lane. That is half the loads of the float32 kernel for the same nonzeros, from a tile of half the size.
//
// Interleaving works in quarters of 128 bits and would leave the samples in another order; packing puts them in the order that
// makes it come out straight. Sums are float32, an output is one chain of dot instructions in ascending column order, whatever
// tiles and threads do. The instruction takes numbers below 2^-126 as zero.
#include "scratch.h"
#include "tiles.h"
#include "walk.h"
#include "weight.h"

namespace openwork::OPENWORK_LEVEL {

#if defined(__AVX512BF16__)  // the compilation that binds the page to Python knows no such instructions

namespace {

// Samples that fill one vector of inputs.
constexpr int vector_samples = 32;

// Low half: both weights. High half: both columns, 16 bits each. In place of a second nonzero that a run does not have stands a
// zero with the column behind the last, whose inputs are always zero.
using Pair = std::uint64_t;

constexpr int pairs_ahead = 256, pairs_per_line = 8, outputs_ahead = 4;

OPENWORK_INLINE __m512bh interleaved(__m512i a, __m512i b, bool upper) {
  return (__m512bh)(upper ? _mm512_unpackhi_epi16(a, b) : _mm512_unpacklo_epi16(a, b));
}

// One run onto all samples of a tile; n nonzeros, or run->length if n = -1. `first`: the block that starts the sum.
template <bool first, int n, int width>
OPENWORK_INLINE void multiply_run(const Run* run, const Pair* pair, const BFloat16* x, float* y) {
  if (n == 0 && !first) return;
  constexpr int vectors = width / vector_samples;
  const std::int32_t pairs = n >= 0 ? (n + 1) / 2 : (run->length + 1) / 2;
  float* out = y + static_cast<std::size_t>(run->row) * width;
  for (int u = 0; u < pairs; u += pairs_per_line) prefetch(pair + pairs_ahead + u);
  const float* later = y + static_cast<std::size_t>(run[outputs_ahead].row) * width;
  OPENWORK_UNROLL
  for (int j = 0; j < width; j += lanes) prefetch(later + j);

  __m512 sum[2 * vectors];
  OPENWORK_UNROLL
  for (int j = 0; j < 2 * vectors; ++j) sum[j] = first ? __m512{} : (__m512)load(out + j * lanes);
  const auto add = [&](std::int32_t u) __attribute__((always_inline)) {
    Pair both = pair[u];
    asm("" : "+r"(both));  // one load of the word, not one of each part
    const auto weight = (__m512bh)_mm512_set1_epi32(static_cast<int>(both));
    const BFloat16* one = x + (both >> 32 & 0xffff) * width;
    const BFloat16* two = x + (both >> 48) * width;
    OPENWORK_UNROLL
    for (int j = 0; j < vectors; ++j) {
      const __m512i a = _mm512_load_si512(one + j * vector_samples), b = _mm512_load_si512(two + j * vector_samples);
      sum[2 * j] = _mm512_dpbf16_ps(sum[2 * j], interleaved(a, b, false), weight);
      sum[2 * j + 1] = _mm512_dpbf16_ps(sum[2 * j + 1], interleaved(a, b, true), weight);
    }
  };
  if constexpr (n >= 0) {
    OPENWORK_UNROLL
    for (int u = 0; u < (n + 1) / 2; ++u) add(u);
  } else {
    std::int32_t u = 0;
    for (; u + 2 <= pairs; u += 2) {
      add(u);
      add(u + 1);
    }
    if (u < pairs) add(u);
  }
  OPENWORK_UNROLL
  for (int j = 0; j < 2 * vectors; ++j) store(out + j * lanes, (Vec)sum[j]);
}

// The rows of one part: y (overwritten) = W x.
template <int width>
void multiply(const Walk& walk, const Pair* pairs, const std::int64_t* starts, std::int64_t part, const BFloat16* x, float* y) {
  const Run* run = walk.runs + walk.parts[part].run;
  const Pair* pair = pairs + starts[part];
  const std::int32_t* bucket = walk.buckets + part * walk.block_count * bucket_count;
  const auto visit = [&](auto first, auto n, const Run* r) __attribute__((always_inline)) {
    multiply_run<first, n, width>(r, pair, x, y);
    pair += n >= 0 ? (n + 1) / 2 : (r->length + 1) / 2;
  };
  for (std::int64_t block = 0; block < walk.block_count; ++block, bucket += bucket_count) {
    if (block == 0) walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) { visit(std::true_type{}, n, r); });
    else walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) { visit(std::false_type{}, n, r); });
  }
}

// The first n of 16 neighbouring numbers of either precision, as float32, and back.
OPENWORK_INLINE Vec read(const float* p, std::int64_t n) { return load_first(p, n); }
OPENWORK_INLINE Vec read(const BFloat16* p, std::int64_t n) {
  const __mmask16 some = n >= lanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1);
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, p)), 16);
}
OPENWORK_INLINE void write(float* p, Vec v, std::int64_t n) { store_first(p, v, n); }
OPENWORK_INLINE void write(BFloat16* p, Vec v, std::int64_t n) {
  const __mmask16 some = n >= lanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1);
  _mm256_mask_storeu_epi16(p, some, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}

template <class Number>
struct Job {
  const Number* x;  // [batch][inputs]
  Number* y;        // [batch][outputs]
  std::int64_t batch, inputs, outputs;
  const float* bias;
  Activation activation;
  const Walk& walk;
  const Pair* pairs;
  const std::int64_t* starts;

  std::int64_t samples(std::int64_t tile) const { return smaller(tile_width, batch - tile * tile_width); }
  std::int64_t width(std::int64_t tile) const { return samples(tile) > 32 ? 64 : 32; }

  // Floats of the inputs of a packed tile, two inputs to a float, with the zeros behind them.
  std::int64_t packed_inputs(std::int64_t wide) const { return (inputs + 1) * wide / 2; }

  // Features [begin, end) of a tile as [feature][width] bfloat16. Samples 0 ... 15 and 16 ... 31 alternate in fours, which
  // interleaving takes apart again.
  void pack(std::int64_t tile, std::int64_t begin, std::int64_t end, BFloat16* to) const {
    const std::int64_t wide = width(tile), present = samples(tile);
    const __m512i fours = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    if (end == inputs) std::memset(to + inputs * wide, 0, static_cast<std::size_t>(wide) * sizeof *to);
    for (std::int64_t sample = 0; sample < wide; sample += vector_samples)
      for (std::int64_t feature = begin; feature < end; feature += lanes) {
        const std::int64_t features = smaller(lanes, end - feature);
        const auto row = [&](std::int64_t s) __attribute__((always_inline)) {
          return s < present ? read(x + (tile * tile_width + s) * inputs + feature, features) : Vec{};
        };
        Vec low[lanes], high[lanes];
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) low[i] = row(sample + i);
        transpose(low);
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) high[i] = row(sample + lanes + i);
        transpose(high);
        for (int i = 0; i < features; ++i) {
          const auto both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high[i], (__m512)low[i]);
          _mm512_store_si512(to + (feature + i) * wide + sample, _mm512_maskz_permutexvar_epi64(0xff, fours, both));
        }
      }
  }

  template <Activation a>
  void deliver(std::int64_t tile, std::int64_t begin, std::int64_t end, const float* from) const {
    const std::int64_t wide = width(tile), present = samples(tile);
    for (std::int64_t sample = 0; sample < present; sample += lanes)
      for (std::int64_t feature = begin; feature < end; feature += lanes) {
        const std::int64_t features = smaller(lanes, end - feature);
        Vec block[lanes];
        for (int i = 0; i < lanes; ++i) block[i] = i < features ? load(from + (feature + i) * wide + sample) : Vec{};
        transpose(block);
        const Vec offset = bias ? load_first(bias + feature, features) : Vec{};
        for (int i = 0; i < lanes && sample + i < present; ++i)
          write(y + (tile * tile_width + sample + i) * outputs + feature, apply<a>(bias ? block[i] + offset : block[i]), features);
      }
  }

  void multiply_part(std::int64_t tile, std::int64_t part, const float* packed, float* out) const {
    const auto* in = reinterpret_cast<const BFloat16*>(packed);
    if (width(tile) == 64) multiply<64>(walk, pairs, starts, part, in, out);
    else multiply<32>(walk, pairs, starts, part, in, out);
  }

  // As in layer.h: as many tiles as can be dealt out evenly go whole to one thread each, the team shares the others by rows.
  void run(int threads) const {
    constexpr std::int64_t piece_features = 64;
    const std::int64_t tiles = (batch + tile_width - 1) / tile_width;
    const std::int64_t alone = tiles - tiles % threads, together = tiles - alone;
    const std::int64_t pieces = larger(1, (inputs + piece_features - 1) / piece_features);
    const std::int64_t stride = packed_inputs(tile_width) + outputs * tile_width;
    float* shared = together ? scratch<float>(Scratch::shared, together * stride) : nullptr;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (std::int64_t i = 0; i < together * pieces; ++i) {
        const std::int64_t tile = i / pieces, begin = i % pieces * piece_features;
        pack(alone + tile, begin, smaller(inputs, begin + piece_features), reinterpret_cast<BFloat16*>(shared + tile * stride));
      }

#pragma omp for schedule(dynamic, 1) nowait
      for (std::int64_t tile = 0; tile < alone; ++tile) {
        float* in = scratch<float>(Scratch::own, stride);
        float* out = in + packed_inputs(width(tile));
        pack(tile, 0, inputs, reinterpret_cast<BFloat16*>(in));
        for (std::int64_t part = 0; part < walk.part_count; ++part) multiply_part(tile, part, in, out);
        with(activation, [&](auto a) { deliver<a>(tile, 0, outputs, out); });
      }

#pragma omp for schedule(dynamic, 1)
      for (std::int64_t i = 0; i < together * walk.part_count; ++i) {
        const std::int64_t tile = i % together, part = i / together;
        float* in = shared + tile * stride;
        float* out = in + packed_inputs(width(alone + tile));
        multiply_part(alone + tile, part, in, out);
        with(activation, [&](auto a) { deliver<a>(alone + tile, walk.parts[part].row, walk.parts[part + 1].row, out); });
      }
    }
  }
};

}  // namespace

#endif

// x [batch][inputs] and y [batch][outputs] are both float32 or both bfloat16; bias may be 0. inputs at most 65535.
KERNEL_AVX512BF16(pairs_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs,
                  bool bfloat16, Address bias, int activation, Address pairs, Address starts, Address runs, Address buckets,
                  Address parts, std::int64_t part_count, std::int64_t block_count, int threads) {
#if defined(__AVX512BF16__)
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  const auto run = [&](auto number) {
    using Number = decltype(number);
    const Job<Number> job{at<const Number>(x), at<Number>(y), batch, inputs, outputs, at<const float>(bias),
                          static_cast<Activation>(activation), walk, at<const Pair>(pairs), at<const std::int64_t>(starts)};
    job.run(threads);
  };
  if (bfloat16) run(BFloat16{});
  else run(float{});
#endif
}

}  // namespace openwork::OPENWORK_LEVEL
