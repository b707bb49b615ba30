// y = activation(W x + bias) for few samples, with W in slices of 16 rows (sliced ELL).
//
// A slice holds its rows side by side: entry j of all 16 rows, then entry j + 1. One vector step serves 16 rows, sums stay in
// the lanes, and nothing has to be added up across them, which is what rows of few nonzeros spend their time on. Rows are sorted
// by length, so that the rows of a slice are about equally long; what is missing points at an input that is always zero.
//
// An output is one chain of multiply-adds in ascending column order, whatever the level and the number of threads.
#include "activation.h"
#include "gather.h"
#include "scratch.h"
#include "shares.h"
#include "weight.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr int slice_rows = 16;

// How far values and columns are fetched early, in entries of 16 rows.
constexpr int entries_ahead = 24;

template <class Column, class Weight>
struct Slices {
  const Column* column;        // [entries][16]
  const Weight* value;         // [entries][16]
  const std::int64_t* end;     // [count + 1], in entries: slice i has those from end[i] to end[i + 1]
  const std::int32_t* row;     // [count * 16]: the output each lane belongs to, -1 for none
  std::int64_t count;

  // The sums of slice i for one sample. x: the inputs and a zero behind them.
  OPENWORK_INLINE void multiply(std::int64_t i, const float* x, Vec (&sum)[slice_rows / lanes]) const {
    for (Vec& s : sum) s = Vec{};
    for (std::int64_t e = end[i]; e < end[i + 1]; ++e) {
      const Column* c = column + e * slice_rows;
      const Weight* v = value + e * slice_rows;
      prefetch(c + entries_ahead * slice_rows);
      prefetch(v + entries_ahead * slice_rows);
      const Columns<slice_rows, Column> columns(c);
      OPENWORK_UNROLL
      for (int j = 0; j < slice_rows; j += lanes) {
        const Vec inputs = gather<lanes, 1>(x, columns, j);
        sum[j / lanes] = weights(v + j) * inputs + sum[j / lanes];
      }
    }
  }

  template <Activation activation>
  void deliver(std::int64_t i, const Vec (&sum)[slice_rows / lanes], const float* scales, const float* bias, float* y) const {
    alignas(64) float out[slice_rows], factor[slice_rows] = {}, offset[slice_rows] = {};
    const std::int32_t* rows = row + i * slice_rows;
    if (scales)
      for (int j = 0; j < slice_rows; ++j) factor[j] = rows[j] < 0 ? 0.0f : scales[rows[j]];
    if (bias)
      for (int j = 0; j < slice_rows; ++j) offset[j] = rows[j] < 0 ? 0.0f : bias[rows[j]];
    for (int j = 0; j < slice_rows; j += lanes) {
      const Vec scaled = scales ? sum[j / lanes] * load(factor + j) : sum[j / lanes];
      store(out + j, apply<activation>(bias ? scaled + load(offset + j) : scaled));
    }
    for (int j = 0; j < slice_rows; ++j)
      if (rows[j] >= 0) y[rows[j]] = out[j];
  }

  template <Activation activation>
  void product(const float* x, float* y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, const float* scales,
               const float* bias, int threads) const {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int share = 0; share < threads; ++share) {
      const std::int64_t first = share_begin(end, count, 4, share, threads), last = share_begin(end, count, 4, share + 1, threads);
      float* own = scratch<float>(Scratch::own, inputs + 1);
      own[inputs] = 0.0f;
      for (std::int64_t sample = 0; sample < batch; ++sample) {
        if (inputs)  // without any, x may be null, which memcpy does not take
          std::memcpy(own, x + sample * inputs, static_cast<std::size_t>(inputs) * sizeof(float));
        for (std::int64_t i = first; i < last; ++i) {
          Vec sum[slice_rows / lanes];
          multiply(i, own, sum);
          deliver<activation>(i, sum, scales, bias, y + sample * outputs);
        }
      }
    }
  }
};

}  // namespace

// x [batch][inputs], y [batch][outputs]; columns are 16 bits wide or, if `wide`, 32; scales (of rows) and bias may be 0.
KERNEL(sliced_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address columns,
       Address values, Address ends, Address rows, std::int64_t count, bool wide, int precision, Address scales, Address bias,
       int activation, int threads) {
  with_types(wide, precision, [&](auto column, auto weight) {
    const Slices<decltype(column), decltype(weight)> slices{at<const decltype(column)>(columns), at<const decltype(weight)>(values),
                                                           at<const std::int64_t>(ends), at<const std::int32_t>(rows), count};
    with(static_cast<Activation>(activation), [&](auto a) {
      slices.template product<a>(at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(scales),
                                  at<const float>(bias), threads);
    });
  });
}

}  // namespace openwork::OPENWORK_LEVEL
