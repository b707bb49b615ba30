// Y = activation(X W^T + bias) for few samples, with W as one bit for every position and the kept values packed.
//
// At moderate sparsity finding inputs one by one costs more than multiplying the zeros. Here inputs are read in order, and weights
// are spread over the lanes that the bits name, once for all samples. Four rows go together: the masks of their next 16 columns
// are one word, from which the four places in the value stream follow without waiting for each other, and all values and all
// masks are one stream each, which the processor fetches ahead.
//
// The order of additions depends on the level, not on the number of threads.
#include "activation.h"
#include "expand.h"
#include "scratch.h"
#include "shares.h"
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr int group_rows = 4;

// Samples whose sums fit in the registers, for four rows.
constexpr int most_samples = lanes == 16 ? 6 : 2;

// How far the streams are fetched early, in bytes.
constexpr int values_ahead = 2048;
constexpr int masks_ahead = 512;

template <class Weight>
struct Bitmasked {
  const std::uint64_t* masks;  // [groups][blocks]: 16 columns of 4 rows, row by row from the lowest bit
  const Weight* values;        // in the order of the bits
  const std::int64_t* first;   // [groups + 1]: the first value of each group
  std::int64_t blocks;

  // The sums of group g: sum[row][sample]. x: [block][sample][16].
  template <int samples>
  OPENWORK_INLINE void multiply(std::int64_t g, const float* x, Vec (&sum)[samples][group_rows]) const {
    const std::uint64_t* word = masks + g * blocks;
    const Weight* value = values + first[g];
    OPENWORK_UNROLL
    for (int s = 0; s < samples; ++s) {
      OPENWORK_UNROLL
      for (int r = 0; r < group_rows; ++r) sum[s][r] = Vec{};
    }
    for (std::int64_t block = 0; block < blocks; ++block, ++word, x += samples * mask_bits) {
      prefetch(reinterpret_cast<const char*>(value) + values_ahead);
      prefetch(reinterpret_cast<const char*>(value) + values_ahead + 64);
      if (block % 8 == 0) prefetch(reinterpret_cast<const char*>(word) + masks_ahead);
      std::uint64_t mask = *word;
      asm("" : "+r"(mask));  // one load, not one for each row
      OPENWORK_UNROLL
      for (int r = 0; r < group_rows; ++r) {
        const int bit = r * mask_bits;
        OPENWORK_UNROLL
        for (int j = 0; j < mask_bits; j += lanes) {
          const std::uint64_t before = mask & ((std::uint64_t{1} << (bit + j)) - 1);
          const auto own = static_cast<std::uint32_t>(mask >> (bit + j)) & ((1u << lanes) - 1);
          const Expanded weight = expand(weights(value + __builtin_popcountll(before)), own);
          OPENWORK_UNROLL
          for (int s = 0; s < samples; ++s) sum[s][r] = add_product(weight, load(x + s * mask_bits + j), sum[s][r]);
        }
      }
      value += __builtin_popcountll(mask);
    }
  }
};

struct Job {
  const float* x;
  float* y;
  std::int64_t inputs, outputs;
  const float *scales, *bias;  // either may be null
  Activation activation;
  int threads;

  // Blocks [begin, end) of `samples` rows of x as [block][sample][16], zero behind the last input.
  template <int samples>
  void pack(std::int64_t begin, std::int64_t end, float* to) const {
    for (std::int64_t block = begin; block < end; ++block)
      for (int s = 0; s < samples; ++s)
        for (int j = 0; j < mask_bits; j += lanes) {
          const std::int64_t input = block * mask_bits + j;
          const Vec v = input < inputs ? load_first(x + s * inputs + input, inputs - input) : Vec{};
          store(to + (block * samples + s) * mask_bits + j, v);
        }
  }

  template <int samples, class Weight>
  void run(const Bitmasked<Weight>& weight) const {
    const std::int64_t groups = (outputs + group_rows - 1) / group_rows;
    float* packed = scratch<float>(Scratch::shared, weight.blocks * samples * mask_bits);
#pragma omp parallel num_threads(threads)
    {
      constexpr std::int64_t piece = 8;
#pragma omp for schedule(static)
      for (std::int64_t begin = 0; begin < weight.blocks; begin += piece)
        pack<samples>(begin, smaller(weight.blocks, begin + piece), packed);

#pragma omp for schedule(static, 1)
      for (int share = 0; share < threads; ++share) {
        const std::int64_t last = groups * (share + 1) / threads;  // a group takes the same time whatever it keeps
        for (std::int64_t g = groups * share / threads; g < last; ++g) {
          Vec sum[samples][group_rows];
          weight.template multiply<samples>(g, packed, sum);
          with(activation, [&](auto a) __attribute__((always_inline)) { deliver<a>(g * group_rows, sum); });
        }
      }
    }
  }

  template <Activation a, int samples>
  OPENWORK_INLINE void deliver(std::int64_t row, Vec (&sum)[samples][group_rows]) const {
    const std::int64_t rows = smaller(group_rows, outputs - row);
    const Vec offset = bias ? load_first(bias + row, rows) : Vec{}, factor = scales ? load_first(scales + row, rows) : Vec{};
    OPENWORK_UNROLL
    for (int s = 0; s < samples; ++s) {
      const Vec v = scales ? sums(sum[s]) * factor : sums(sum[s]);
      store_first(y + s * outputs + row, apply<a>(bias ? v + offset : v), rows);
    }
  }

  template <class Weight>
  void run(const Bitmasked<Weight>& weight, std::int64_t samples) const {
    if constexpr (most_samples == 6) {
      if (samples == 6) return run<6>(weight);
      if (samples == 5) return run<5>(weight);
      if (samples == 4) return run<4>(weight);
      if (samples == 3) return run<3>(weight);
    }
    if (samples == 2) return run<2>(weight);
    run<1>(weight);
  }
};

}  // namespace

// x [batch][inputs], y [batch][outputs]; scales (of rows) and bias may be 0. Behind the last value lie 16 more that may be read.
KERNEL(bitmasked_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address masks,
       Address values, Address first, int precision, Address scales, Address bias, int activation, int threads) {
  const std::int64_t blocks = (inputs + mask_bits - 1) / mask_bits;
  for (std::int64_t sample = 0; sample < batch; sample += most_samples) {
    const std::int64_t samples = smaller(most_samples, batch - sample);
    const Job job{at<const float>(x) + sample * inputs, at<float>(y) + sample * outputs, inputs, outputs, at<const float>(scales),
                  at<const float>(bias), static_cast<Activation>(activation), threads};
    with_weight(precision, [&](auto weight) {
      using Weight = decltype(weight);
      job.run(Bitmasked<Weight>{at<const std::uint64_t>(masks), at<const Weight>(values), at<const std::int64_t>(first), blocks},
              samples);
    });
  }
}

}  // namespace openwork::OPENWORK_LEVEL
