// Y = activation(X W^T + bias) for few samples, with W in squares of 4 rows and 4 columns. Larger blocks are made of them.
//
// A square is one vector of weights, row by row, and meets the four inputs of its columns repeated: one index, one load of
// weights and one of inputs for sixteen multiply-adds. The four products of a row lie side by side and are added up when its
// squares are through, sixteen rows at a time.
//
// An output is computed by one thread, in an order that depends on the level alone: not on the number of threads or samples.
#include "activation.h"
#include "padded.h"
#include "shares.h"
#include "tiles.h"
#include "weight.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr int side = 4, square = side * side;

// Vectors that make a square, and sums of each sample that take turns, so that an addition need not wait for the one before.
constexpr int vectors = square / lanes, turns = lanes == 4 ? 1 : 2;

// Samples whose sums fit in the registers, and rows that are finished together.
constexpr int most_samples = lanes == 16 ? 8 : 2, bundle = 4;

// How far the weights are fetched early, in squares.
constexpr int squares_ahead = 24;

// Four inputs, again and again.
OPENWORK_INLINE Vec repeated(const float* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(p));
#elif defined(__AVX2__)
  return (Vec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  return load_unaligned(p);
#endif
}

template <class Column, class Weight>
struct Squares {
  const Column* column;     // [squares], in units of four columns
  const Weight* value;      // [squares][4][4]
  const std::int64_t* end;  // [bands + 1]: band i of four rows has the squares from end[i] to end[i + 1]

  // Products of band i, four to a row, still to be added up. x: the samples, `stride` floats apart, in whole squares.
  template <int samples>
  OPENWORK_INLINE void multiply(std::int64_t i, const float* x, std::int64_t stride, Vec (&total)[samples][vectors]) const {
    Vec sum[samples][turns][vectors] = {};
    const auto add = [&](int turn, std::int64_t e) __attribute__((always_inline)) {
      Vec weight[vectors];
      OPENWORK_UNROLL
      for (int v = 0; v < vectors; ++v) weight[v] = weights(value + e * square + v * lanes);
      const float* in = x + static_cast<std::size_t>(column[e]) * side;
      OPENWORK_UNROLL
      for (int s = 0; s < samples; ++s) {
        const Vec inputs = repeated(in + s * stride);
        OPENWORK_UNROLL
        for (int v = 0; v < vectors; ++v) sum[s][turn][v] = weight[v] * inputs + sum[s][turn][v];
      }
    };
    std::int64_t e = end[i];
    for (; e + turns <= end[i + 1]; e += turns) {
      OPENWORK_UNROLL
      for (int turn = 0; turn < turns; ++turn) {
        prefetch(value + (e + turn + squares_ahead) * square);
        add(turn, e + turn);
      }
    }
    if (e < end[i + 1]) add(0, e);
    OPENWORK_UNROLL
    for (int s = 0; s < samples; ++s) {
      OPENWORK_UNROLL
      for (int v = 0; v < vectors; ++v) {
        total[s][v] = sum[s][0][v];
        OPENWORK_UNROLL
        for (int turn = 1; turn < turns; ++turn) total[s][v] += sum[s][turn][v];
      }
    }
  }
};

// The sums of the fours of four vectors: lane 4 q + i is the sum of four q of vector i.
OPENWORK_INLINE Vec sums_of_fours(Vec (&v)[bundle]) {
  OPENWORK_UNROLL
  for (int apart = 2; apart > 0; apart /= 2) {
    OPENWORK_UNROLL
    for (int i = 0; i < apart; ++i)
      v[i] = shuffle<InterleaveQuarters<false, 1>>(v[i], v[i + apart]) + shuffle<InterleaveQuarters<true, 1>>(v[i], v[i + apart]);
  }
  return v[0];
}

struct Job {
  const float* x;
  float* y;
  std::int64_t batch, inputs, outputs;
  const float *scales, *bias;  // either may be null
  Activation activation;
  int threads;

  std::int64_t bands() const { return (outputs + side - 1) / side; }

  // The bands [first, first + 4), as far as there are such, for `samples` samples.
  template <int samples, class Weight>
  void rows(const Weight& weight, std::int64_t first, const float* in, std::int64_t stride, float* out) const {
    Vec sum[samples][vectors][bundle] = {};
    for (std::int64_t i = 0; i < smaller(bundle, bands() - first); ++i) {
      Vec total[samples][vectors];
      weight.template multiply<samples>(first + i, in, stride, total);
      OPENWORK_UNROLL
      for (int s = 0; s < samples; ++s) {
        OPENWORK_UNROLL
        for (int v = 0; v < vectors; ++v) sum[s][v][i] = total[s][v];
      }
    }
    const std::int64_t row = first * side;
    with(activation, [&](auto a) __attribute__((always_inline)) {
      for (int s = 0; s < samples; ++s) {
        alignas(64) float results[bundle * side];
        for (int v = 0; v < vectors; ++v) {
          const Vec added = sums_of_fours(sum[s][v]);
          OPENWORK_UNROLL
          for (int i = 0; i < lanes; ++i) results[i % 4 * side + v * lanes / 4 + i / 4] = added[i];
        }
        for (int j = 0; j < bundle * side && row + j < outputs; j += lanes) {
          const std::int64_t count = smaller(lanes, outputs - row - j);
          Vec result = load(results + j);
          if (scales) result = result * load_first(scales + row + j, count);
          if (bias) result += load_first(bias + row + j, count);
          store_first(out + s * outputs + row + j, apply<a>(result), count);
        }
      }
    });
  }

  template <class Weight>
  void run(const Weight& weight) const {
    const Padded padded = Padded::of(x, batch, inputs, side);
#pragma omp parallel num_threads(threads)
    {
      padded.fill();
#pragma omp for schedule(static, 1)
      for (int share = 0; share < threads; ++share) {
        const auto boundary = [&](int s) {
          return s == threads ? bands() : share_begin(weight.end, bands(), 2, s, threads) / bundle * bundle;
        };
        const std::int64_t last = boundary(share + 1);
        for (std::int64_t first = boundary(share); first < last; first += bundle) {
          in_portions<most_samples>(batch, [&](auto samples, std::int64_t s) __attribute__((always_inline)) {
            rows<samples>(weight, first, padded.sample(s), padded.stride, y + s * outputs);
          });
        }
      }
    }
  }
};

}  // namespace

// x [batch][inputs], y [batch][outputs]; columns are 16 bits wide or, if `wide`, 32; scales (of rows) and bias may be 0.
KERNEL(squares_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address columns,
       Address values, Address ends, bool wide, int precision, Address scales, Address bias, int activation, int threads) {
  const Job job{at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(scales), at<const float>(bias),
                static_cast<Activation>(activation), threads};
  with_types(wide, precision, [&](auto column, auto weight) {
    using Column = decltype(column);
    using Weight = decltype(weight);
    job.run(Squares<Column, Weight>{at<const Column>(columns), at<const Weight>(values), at<const std::int64_t>(ends)});
  });
}

}  // namespace openwork::OPENWORK_LEVEL
