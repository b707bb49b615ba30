// Y = activation(X W^T + bias) for n:m:g: of the m rows of a group every column has exactly n, and all C(m, n) patterns are about
// equally frequent in every block of columns.
//
// The entries come in steps of one column of every pattern, in a fixed order: straight code without counts or branches. Where a
// pattern has fewer columns than another, its place in the last steps is filled by an entry of weight zero and input zero.
#include "groups.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

struct Steps {
  const std::int32_t* column;  // [steps][patterns]
  const float* weight;         // [steps][patterns][n]
  const std::int32_t* first;   // [blocks][groups] first step, and the end of all
  std::int64_t block_count, group_count;
};

constexpr int choose(int m, int n) { return n == 0 ? 1 : choose(m - 1, n - 1) * m / n; }

// The i-th number of m bits with n ones, ascending.
template <int m, int n>
constexpr unsigned pattern_at(int i) {
  unsigned pattern = 0;
  while (__builtin_popcount(pattern) != n || i-- > 0) ++pattern;
  return pattern;
}

template <int m, int n, int width, int vectors, int... i>
OPENWORK_INLINE void add_step(Sums<m, vectors>& sums, const std::int32_t* column, const float* weight, const float* x,
                              std::integer_sequence<int, i...>) {
  (sums.template add<pattern_at<m, n>(i)>(input_at<width>(x, column[i]), weight + i * n), ...);
}

template <int m, int n, int width>
void multiply(const Steps& w, std::int64_t begin, std::int64_t end, const float* x, float* y) {
  constexpr int patterns = choose(m, n), vectors = strip_vectors<m, width>;
  for (std::int64_t block = 0; block < w.block_count; ++block)
    for (std::int64_t group = begin; group < end; ++group) {
      const std::int32_t* first = w.first + block * w.group_count + group;
      for (int s = 0; s < width; s += vectors * lanes) {
        float* out = y + group * m * width + s;
        Sums<m, vectors> sums;
        sums.template begin<width>(out, block == 0);
        const std::int32_t* column = w.column + static_cast<std::size_t>(first[0]) * patterns;
        const float* weight = w.weight + static_cast<std::size_t>(first[0]) * patterns * n;
        for (std::int32_t step = first[0]; step < first[1]; ++step, column += patterns, weight += patterns * n) {
          OPENWORK_UNROLL
          for (int line = 0; line < patterns * n; line += 16) prefetch(weight + weights_ahead + line);
          add_step<m, n, width>(sums, column, weight, x + s, std::make_integer_sequence<int, patterns>{});
        }
        sums.template end<width>(out);
      }
    }
}

template <int m, int n>
void run(const Steps& w, const Layer& layer, int threads) {
  run_layer(layer, threads, [&](auto width, std::int64_t part, const float* x, float* y) {
    multiply<m, n, width>(w, layer.parts[part] / m, (layer.parts[part + 1] + m - 1) / m, x, y);
  });
}

}  // namespace

// m: 4 or 8, of which each entry has 2. Column `inputs` is the zero input.
KERNEL(nmg, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address bias, int activation,
       Address parts, std::int64_t part_count, int threads, int m, Address column, Address weight, Address first,
       std::int64_t block_count, std::int64_t group_count) {
  const Layer layer{at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(bias),
                    static_cast<Activation>(activation), at<const std::int32_t>(parts), part_count};
  const Steps w{at<const std::int32_t>(column), at<const float>(weight), at<const std::int32_t>(first), block_count,
                group_count};
  if (m == 4) run<4, 2>(w, layer, threads);
  else run<8, 2>(w, layer, threads);
}

}  // namespace openwork::OPENWORK_LEVEL
