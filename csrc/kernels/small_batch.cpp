// Y = activation(X W^T + bias) for 1 to 16 samples, with W in rows of octets: eight nonzeros at a time.
//
// The batch is filled up to a width of 1, 2, 4, 8 or 16 samples and the inputs are turned to [input][width]. Where a vector has
// more lanes than that, it holds several nonzeros of the row, each with its own inputs, and the partial sums come together at the
// end of the row. The eight weights of an octet are loaded once and spread over the lanes by permutations, because loads, not
// arithmetic, are what limits the loop. Rows are filled up to whole octets with nonzeros that point at an input that is always zero.
//
// The order of additions depends on width and level, not on the number of threads.
#include "activation.h"
#include "gather.h"
#include "scratch.h"
#include "shares.h"
#include "tiles.h"
#include "weight.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr int octet = 8;

// Rows finished together, so that outputs leave in whole vectors.
constexpr int group_rows = 16;

// How far values and columns are fetched early, in octets.
constexpr int octets_ahead = 48;

// Eight weights, ready to be spread.
template <class Weight>
struct Spreader {
#if defined(__AVX2__)
  __m256 all;
  OPENWORK_INLINE explicit Spreader(const float* p) : all(_mm256_loadu_ps(p)) {}
  OPENWORK_INLINE explicit Spreader(const BFloat16* p)
      : all(_mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16))) {}
  OPENWORK_INLINE explicit Spreader(const Int8* p)
      : all(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))) {}
#else
  const Weight* all;
  OPENWORK_INLINE explicit Spreader(const Weight* p) : all(p) {}
#endif

  // Lane i of n gets weight (first + i) / width of the octet.
  template <int n, int width, int first, int... i>
  OPENWORK_INLINE Lanes<n> spread(std::integer_sequence<int, i...>) const {
#if defined(__AVX512F__)
    if constexpr (n == 16)
      return (Lanes<n>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)(IntVec{(first + i) / width...}),
                                                   _mm512_castps256_ps512(all));
#endif
#if defined(__AVX2__)
    if constexpr (width == 1) return (Lanes<n>)all;
    else if constexpr (n == 8) return (Lanes<n>)_mm256_permutevar8x32_ps(all, (__m256i)(IntVec{(first + i) / width...}));
#else
    return Lanes<n>{weight(all + (first + i) / width)...};
#endif
  }
};

// Adds the upper half onto the lower until `width` lanes are left, and stores them.
template <int n, int width>
OPENWORK_INLINE void store_sums(Lanes<n> v, float* out) {
  if constexpr (n == width) {
    std::memcpy(out, &v, sizeof v);
  } else if constexpr (n == 4) {
    for (int i = 0; i < width; ++i) out[i] = width == 2 ? v[i] + v[i + 2] : (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    Lanes<n / 2> half[2];
    std::memcpy(half, &v, sizeof v);
    store_sums<n / 2, width>(half[0] + half[1], out);
  }
}

template <int width, class Column, class Weight>
struct Octets {
  // Lanes in use, and vectors in which the eight nonzeros go by.
  static constexpr int n = lanes < octet * width ? lanes : octet * width;
  static constexpr int steps = octet * width / n;
  static constexpr int chains = steps < 8 ? steps : 8;

  const Column* column;
  const Weight* value;
  const std::int64_t* end;  // [rows + 1], in octets: row r has those from end[r] to end[r + 1]

  template <int... step>
  OPENWORK_INLINE void add(std::int64_t o, const float* x, Lanes<n> (&sum)[chains], std::integer_sequence<int, step...>) const {
    const Column* c = column + o * octet;
    const Weight* v = value + o * octet;
    prefetch(c + octets_ahead * octet);
    prefetch(v + octets_ahead * octet);
    const Columns<octet, Column> columns(c);
    const Spreader<Weight> weights(v);
    ((sum[step % chains] = weights.template spread<n, width, step * n>(std::make_integer_sequence<int, n>{}) *
                               gather<n, width>(x + step * n % width, columns, step * n / width) +
                           sum[step % chains]),
     ...);
  }

  // Adds chains onto chains until `left` are left. (A loop would put them into memory.)
  template <int apart, int left, int... i>
  static OPENWORK_INLINE void meet(Lanes<n> (&sum)[chains], std::integer_sequence<int, i...>) {
    ((sum[i] += sum[i + apart]), ...);
    meet<apart / 2, left>(sum);
  }
  template <int apart, int left>
  static OPENWORK_INLINE void meet(Lanes<n> (&sum)[chains]) {
    if constexpr (apart >= left) meet<apart, left>(sum, std::make_integer_sequence<int, apart>{});
  }

  // Row r times all samples: out [width].
  OPENWORK_INLINE void multiply(std::int64_t r, const float* x, float* out) const {
    Lanes<n> sum[chains] = {};
    for (std::int64_t o = end[r]; o < end[r + 1]; ++o) add(o, x, sum, std::make_integer_sequence<int, steps>{});
    constexpr int parts = width > n ? width / n : 1;  // chains that belong to different samples
    meet<chains / 2, parts>(sum);
    if constexpr (parts == 1) {
      store_sums<n, width>(sum[0], out);
    } else {
      OPENWORK_UNROLL
      for (int i = 0; i < parts; ++i) std::memcpy(out + i * n, &sum[i], sizeof sum[i]);
    }
  }
};

// Inputs [begin, end) of all samples as [input][width]. In place of missing samples stands the last one: its results are dropped.
template <int width>
void pack_samples(const float* x, std::int64_t batch, std::int64_t inputs, std::int64_t begin, std::int64_t end, float* to) {
  if constexpr (width == 1) {
    std::memcpy(to + begin, x + begin, static_cast<std::size_t>(end - begin) * sizeof(float));
  } else {
    constexpr int strip = width < lanes ? width : lanes;
    for (std::int64_t sample = 0; sample < width; sample += strip) {
      const auto rows = [&](int i) __attribute__((always_inline)) { return x + smaller(sample + i, batch - 1) * inputs; };
      Vec block[lanes] = {};
      std::int64_t input = begin;
      for (; input + lanes <= end; input += lanes) {
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) block[i] = i < strip ? load_unaligned(rows(i) + input) : Vec{};
        transpose(block);
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) std::memcpy(to + (input + i) * width + sample, &block[i], strip * sizeof(float));
      }
      for (; input < end; ++input)
        for (int i = 0; i < strip; ++i) to[input * width + sample + i] = rows(i)[input];
    }
  }
}

// `rows` rows of sums [row][width], times scales, plus bias, through the activation, to y from output `first` on.
template <int width, Activation activation>
void deliver(const float* sums, std::int64_t rows, const float* scales, const float* bias, std::int64_t first, float* y,
             std::int64_t outputs, std::int64_t batch) {
  constexpr int strip = width < lanes ? width : lanes;
  for (std::int64_t row = 0; row < rows; row += lanes) {
    const std::int64_t count = smaller(lanes, rows - row);
    const Vec offset = bias ? load_first(bias + first + row, count) : Vec{};
    const Vec factor = scales ? load_first(scales + first + row, count) : Vec{};
    const auto finish = [&](Vec v, std::int64_t sample) __attribute__((always_inline)) {
      if (scales) v = v * factor;
      store_first(y + sample * outputs + first + row, apply<activation>(bias ? v + offset : v), count);
    };
    if constexpr (width == 1) {
      finish(load_unaligned(sums + row), 0);
    } else {
      for (std::int64_t sample = 0; sample < batch; sample += strip) {
        Vec block[lanes];  // behind the first `strip` lanes lie sums of the next rows, which become vectors nobody reads
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) block[i] = load_unaligned(sums + (row + i) * width + sample);
        transpose(block);
        OPENWORK_UNROLL
        for (int i = 0; i < strip; ++i)
          if (sample + i < batch) finish(block[i], sample + i);
      }
    }
  }
}

struct Job {
  const float* x;
  float* y;
  std::int64_t batch, inputs, outputs;
  const float *scales, *bias;  // either may be null
  Activation activation;
  int threads;

  template <int width, class Column, class Weight>
  void run(const Octets<width, Column, Weight>& weight) const {
    float* packed = scratch<float>(Scratch::shared, (inputs + 1) * width);
    std::memset(packed + inputs * width, 0, width * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
      constexpr std::int64_t piece = 64;
#pragma omp for schedule(static)
      for (std::int64_t begin = 0; begin < inputs; begin += piece)
        pack_samples<width>(x, batch, inputs, begin, smaller(inputs, begin + piece), packed);

#pragma omp for schedule(static, 1)
      for (int share = 0; share < threads; ++share) {
        const auto boundary = [&](int s) {
          const std::int64_t row = share_begin(weight.end, outputs, 2, s, threads);
          return s == threads ? outputs : row / group_rows * group_rows;
        };
        alignas(64) float sums[group_rows * width + lanes] = {};
        const std::int64_t last = boundary(share + 1);
        for (std::int64_t first = boundary(share); first < last; first += group_rows) {
          const std::int64_t rows = smaller(group_rows, last - first);
          for (std::int64_t r = 0; r < rows; ++r) weight.multiply(first + r, packed, sums + r * width);
          with(activation, [&](auto a) { deliver<width, a>(sums, rows, scales, bias, first, y, outputs, batch); });
        }
      }
    }
  }
};

}  // namespace

// x [batch][inputs], y [batch][outputs], 16 samples at a time; columns are 16 bits wide or, if `wide`, 32; scales (of rows)
// and bias may be 0.
KERNEL(small_batch_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address columns,
       Address values, Address ends, bool wide, int precision, Address scales, Address bias, int activation, int threads) {
  constexpr std::int64_t most = 16;
  for (std::int64_t sample = 0; sample < batch; sample += most) {
    const std::int64_t samples = smaller(most, batch - sample);
    const Job job{at<const float>(x) + sample * inputs, at<float>(y) + sample * outputs, samples, inputs, outputs,
                  at<const float>(scales), at<const float>(bias), static_cast<Activation>(activation), threads};
    with_types(wide, precision, [&](auto column, auto weight) {
      using Column = decltype(column);
      using Weight = decltype(weight);
      const auto* c = at<const Column>(columns);
      const auto* v = at<const Weight>(values);
      const auto* e = at<const std::int64_t>(ends);
      if (samples > 8) job.run(Octets<16, Column, Weight>{c, v, e});
      else if (samples > 4) job.run(Octets<8, Column, Weight>{c, v, e});
      else if (samples > 2) job.run(Octets<4, Column, Weight>{c, v, e});
      else if (samples > 1) job.run(Octets<2, Column, Weight>{c, v, e});
      else job.run(Octets<1, Column, Weight>{c, v, e});
    });
  }
}

}  // namespace openwork::OPENWORK_LEVEL
